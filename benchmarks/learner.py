"""How fast is the update? Its tokens/s over those of a bare torch loop on the same batches and model.

Prints one JSON line. Tokens are those of prompts and answers, without padding.

- ``update_tokens_per_s``: the optimiser passes of `LearnerWorker.update` (DeepSpeed, losses, statistics).
- ``whole_tokens_per_s``: the same tokens over the whole call, the prepare pass included.
- ``bare_tokens_per_s``: forward, ``-logprobs.mean()``, backward, AdamW, in plain torch on one process.
- ``ratio``: the first over the last; the target is 0.8.

Run with ``python -m benchmarks.learner [key=value ...]`` (configuration overrides).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from affect_rl.algorithms.batching import collate
from affect_rl.config.load import Config, load_config
from affect_rl.policy.model import AffectPolicy
from benchmarks.workload import random_episodes, tiny_policy
from learners.engine import choose_device
from learners.learner import LearnerWorker
from learners.shares import Share, deal

REPEATS = 5


def bare_seconds(config: Config, policy: AffectPolicy, share: Share) -> float:
    """Seconds of all epochs in plain torch, over the same minibatches and micro-batches."""
    settings = config.learner
    device = choose_device(settings.gpus_per_worker > 0, settings.threads, 1)
    policy = policy.to(device).eval()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.lr, betas=(0.9, 0.95), fused=True)
    begun = time.perf_counter()
    for plan in share.actor.minibatches:
        for rows, _ in plan:
            sequences, shape = share.actor.sequences, policy.fusion.shape
            batch = collate(sequences, rows, shape, policy.tokenizer.pad_token_id).to(device)
            (-policy(batch.tokens).logprobs.mean()).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    config = load_config(None, ["train.samples_per_step=64", "learner.epochs=1", *sys.argv[1:]])
    tiny = config.model.tiny
    policy = tiny_policy(
        layers=tiny.layers,
        dim=tiny.dim,
        heads=tiny.heads,
        fusion_dim=config.model.fusion.dim,
        vocabulary=tiny.vocabulary,
    )
    episodes = random_episodes(policy, config.train.samples_per_step, prompt=(80, 240), answer=(12, 40))
    separate = config.algorithm.separate_critic
    step, (share,) = deal(episodes, config.team.trained, config.learner, (0, 0), separate_critic=separate)
    tokens = share.tokens * config.learner.epochs
    with tempfile.TemporaryDirectory() as folder:
        worker = LearnerWorker(config, policy.save(Path(folder) / "policy"), rank=0, seed=0)
        worker.start(*worker.place())
        updates, wholes, bares = [], [], []
        for _ in range(REPEATS):
            metrics = worker.update(step, share)
            updates.append(metrics["learner/optimise_s"])
            wholes.append(metrics["learner/optimise_s"] + metrics["learner/prepare_s"])
            bares.append(bare_seconds(config, policy, share))
    update, whole, bare = (tokens / statistics.median(times) for times in (updates, wholes, bares))
    print(json.dumps({
        "tokens": tokens, "update_tokens_per_s": round(update), "whole_tokens_per_s": round(whole),
        "bare_tokens_per_s": round(bare), "ratio": round(update / bare, 3), "whole_ratio": round(whole / bare, 3),
        "threads": torch.get_num_threads(), "layers": tiny.layers, "dim": tiny.dim,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
