"""How fast is the update? Its tokens/s over those of a bare torch loop that makes the same passes.

Prints one JSON line. Tokens are those of prompts and answers, without padding.

- ``tokens_per_s``: the whole of `LearnerWorker.update`: the passes of policy and reference that prepare it, DeepSpeed's
  optimiser steps, losses and statistics.
- ``bare_tokens_per_s``: the same passes in plain torch: two forward without gradients, then forward,
  ``-logprobs.mean()``, backward and AdamW.
- ``ratio``: the first over the second; the target is 0.8. ``prepare_ratio`` and ``optimise_ratio`` are of
  its two parts.

Run with ``python -m benchmarks.learner [key=value ...]`` (configuration overrides).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from affect_rl.algorithms.batching import Pass, collate
from affect_rl.config.load import Config, load_config
from affect_rl.policy.batches import TokenBatch
from affect_rl.policy.model import AffectPolicy
from benchmarks.workload import random_episodes, tiny_policy
from learners.engine import choose_device
from learners.learner import LearnerWorker
from learners.meeting import seats
from learners.shares import Share, deal

REPEATS = 5


def bare_seconds(config: Config, policy: AffectPolicy, share: Share) -> tuple[float, float]:
    """Seconds of the forward passes and of all epochs in plain torch, over the same minibatches and micro-batches."""
    settings = config.learner
    device = choose_device(settings.gpus_per_worker > 0, settings.threads, 1)
    policy = policy.to(device).eval()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.lr, betas=(0.9, 0.95), fused=True)

    def passes(plan: Sequence[Pass]) -> Iterator[TokenBatch]:
        for rows, _ in plan:
            yield collate(share.actor.rows, rows, policy.fusion.shape, policy.tokenizer.pad_token_id).tokens.to(device)

    begun = _now(device)
    with torch.no_grad():
        for tokens in passes(share.actor.whole):
            policy(tokens)
            policy(tokens)
    prepared = _now(device)
    for plan in share.actor.minibatches:
        for tokens in passes(plan):
            (-policy(tokens).logprobs.mean()).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return prepared - begun, _now(device) - prepared


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


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
        worker.start(*seats([worker.place()], worker.open_store()))
        ours, bares = [], []
        for _ in range(REPEATS):
            metrics = worker.update(step, share)
            ours.append((metrics["learner/prepare_s"], metrics["learner/optimise_s"]))
            bares.append(bare_seconds(config, policy, share))
    prepare, optimise, whole = (_medians(times) for times in zip(_with_sum(ours), _with_sum(bares), strict=True))
    print(json.dumps({
        "tokens": tokens, "tokens_per_s": round(tokens / whole[0]), "bare_tokens_per_s": round(tokens / whole[1]),
        "ratio": round(whole[1] / whole[0], 3), "prepare_ratio": round(prepare[1] / prepare[0], 3),
        "optimise_ratio": round(optimise[1] / optimise[0], 3),
        "threads": torch.get_num_threads(), "layers": tiny.layers, "dim": tiny.dim,
    }))  # fmt: skip


def _with_sum(times: Sequence[tuple[float, float]]) -> list[list[float]]:
    """The two parts of every run and their sums, as three lists."""
    return [[a for a, _ in times], [b for _, b in times], [a + b for a, b in times]]


def _medians(lists: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(times) for times in lists]


if __name__ == "__main__":
    main()
