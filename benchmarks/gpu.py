"""What one card makes of a 7B policy: the learner's update, a sync of its weights, and the engine.

Prints one JSON line. Weights are random, of the shape of Qwen2.5-7B-Instruct by default, trained through LoRA in
bfloat16; nothing is downloaded. The learner's half needs neither Ray nor vLLM, and the engine's is left out where vLLM
is not installed. Each half is a process of its own and has the card to itself. Without a card both run on the CPU, for
which the size ``tiny`` is meant.

- ``tokens_per_s``: tokens of prompts and answers through the whole update (see `learners.update`).
- ``of_matmul``: floating-point operations of the model per second, over those of one large matrix product on the same
  device. Recomputed activations, attention and optimiser are no part of the model's operations.
- ``mfu``: the same over what the card's data sheet promises for dense bfloat16; null for a card that is not known here.
- ``peak_gib``, ``planned_gib``: most memory that torch (on the CPU: the process) held, and ``affect-rl plan``'s.
- ``publish_s``, ``load_s``, ``sync_mb``: a sync of the adapters, on the learner's and on the engine's side.
- ``generated_tokens_per_s``: of the engine, for all prompts at once.
- ``equal``: whether the engine then holds what the learner published, by checksum.

Run with ``python -m benchmarks.gpu [7b|0.5b|tiny] [key=value ...]`` (configuration overrides).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from affect_rl.config.load import Config, load_config
from affect_rl.network import LOOPBACK, open_store
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.weights import WeightsHandle
from affect_rl.trajectory import Prompt
from benchmarks.workload import AGENTS, AUDIO_DIM, VIDEO_DIM, random_episodes, tiny_policy
from cluster.plan import CONTEXT, GIB, rank_memory
from cluster.sizes import PolicySizes, policy_sizes
from learners.learner import LearnerWorker
from learners.meeting import seats
from learners.shares import deal

SIZES: dict[str, dict[str, Any]] = {
    # As published in the config.json of Qwen2.5-7B-Instruct and Qwen2.5-0.5B-Instruct.
    "7b": {"num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False},
    "0.5b": {"num_hidden_layers": 24, "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2,
             "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
             "intermediate_size": 128, "vocab_size": 512, "tie_word_embeddings": True},
}  # fmt: skip
PEAK_TFLOPS = {"A100": 312, "H100": 989, "H200": 989, "B200": 2250, "L40S": 362, "L4": 121, "RTX 4090": 165}
"""Dense bfloat16 with accumulation in float32, by NVIDIA's data sheets; those of H100 and H200 are of SXM cards."""
REPEATS = 3


def config_of(size: str, overrides: list[str]) -> Config:
    """A job with one learner and one engine."""
    gpus, large = int(torch.cuda.is_available()), size != "tiny"
    return load_config(
        None,
        [
            "model.dtype=bfloat16", "model.context=2048", "model.lora.rank=16",
            "model.fusion.dim=16", "model.fusion.heads=2", "model.fusion.soft_tokens=2",
            f"learner.gpus_per_worker={gpus}", f"rollout.gpus_per_worker={gpus}",
            f"learner.tokens_per_microbatch={16384 if large else 2048}", "learner.checkpoint_activations=true",
            "learner.epochs=1", f"train.samples_per_step={64 if large else 4}",
            "rollout.deterministic=false", f"rollout.max_num_seqs={256 if large else 16}",
            f"rollout.enforce_eager={str(not gpus).lower()}", *overrides,
        ],
    )  # fmt: skip


def make_policy(size: str, directory: Path) -> Path:
    """Write a policy of random weights."""
    tokenizer = tiny_policy().tokenizer
    shape = Qwen2Config(
        **SIZES[size],
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # on a card, a second instead of minutes
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    policy = AffectPolicy.create(
        model, tokenizer, audio_dim=AUDIO_DIM, video_dim=VIDEO_DIM, dim=16, heads=2, soft_tokens=2, experts=4, top_k=2
    )
    return policy.save(directory)


def learner_half(config: Config, policy: Path, weights: str) -> tuple[dict[str, Any], WeightsHandle]:
    """Updates, and a publication of what they made, below `weights`."""
    os.dup2(2, 1)  # DeepSpeed prints
    # Any log-probs will do, so a small policy with the same tokens makes the episodes.
    episodes = random_episodes(tiny_policy(), config.train.samples_per_step, prompt=(200, 400), answer=(60, 120))
    step, (share,) = deal(
        episodes, AGENTS, config.learner, (0, 0), separate_critic=False, adapters=dict.fromkeys(AGENTS, "team")
    )
    worker, store = LearnerWorker(config, policy, rank=0, seed=0), open_store(600)
    worker.start(*seats([LOOPBACK], store.port))
    seconds = []
    for _ in range(REPEATS + 1):  # the first warms up
        begun = time.perf_counter()
        metrics = worker.update(step, share)
        seconds.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    handle = worker.publish(1, weights, "gpu")
    assert handle is not None
    found: dict[str, Any] = {
        "seconds": (best := min(seconds[1:])),
        "tokens_per_s": share.tokens / best,
        "prepare_s": metrics["learner/prepare_s"],
        "publish_s": time.perf_counter() - begun,
        "sync_mb": handle.bytes / 1e6,
        **memory(config, policy),
    }
    sizes = sizes_of(config, policy)
    rate = operations(config, sizes, share.tokens, len(step.agent)) / best
    card = torch.cuda.get_device_name() if config.learner.gpus_per_worker else "CPU"
    peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in card.split("-")[0]), None)
    found |= {"of_matmul": rate / matmul_rate(config), "mfu": rate / (peak * 1e12) if peak else None, "card": card}
    return found, handle


def sizes_of(config: Config, policy: Path) -> PolicySizes:
    text_config = Qwen2Config(**json.loads((policy / "config.json").read_text())["text_config"])
    return policy_sizes(text_config, config.model, AUDIO_DIM, VIDEO_DIM)


def memory(config: Config, policy: Path) -> dict[str, float]:
    """Peak of this process so far, and the plan's; a card's context is in neither."""
    plan = rank_memory(config, sizes_of(config, policy), config.learner)
    if config.learner.gpus_per_worker:
        return {"peak_gib": torch.cuda.max_memory_reserved() / GIB, "planned_gib": (plan.peak - CONTEXT) / GIB}
    return {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "planned_gib": plan.peak / GIB}


def operations(config: Config, sizes: PolicySizes, tokens: int, answered: int) -> float:
    """Floating-point operations of the model in an update.

    A token costs two for each weight of the blocks in a forward pass, and an answer's token two for each of the head.
    Backward is as much again through frozen weights, and twice as much through weights that train. There are two
    forward passes to prepare (policy and reference), then one of each kind an epoch.
    """
    body = sizes.language - (1 if sizes.tied else 2) * sizes.head
    forward = 2.0 * (body * tokens + sizes.head * answered)
    return forward * (2 + config.learner.epochs * (2 if config.model.lora.rank else 3))


def matmul_rate(config: Config) -> float:
    """Floating-point operations per second of a square matrix product in bfloat16 on the learner's device."""
    gpu = config.learner.gpus_per_worker > 0
    side, device = (8192, "cuda") if gpu else (512, "cpu")
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        a @ a
        if gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2.0 * side**3 / best


def engine_half(config: Config, policy: Path, handle: WeightsHandle) -> dict[str, Any]:
    """Generation, and a load of what the learner published."""
    from affect_rl.policy.adapters import Lora
    from rollout_workers.vllm.engine import RolloutEngine

    os.dup2(2, 1)  # vLLM prints
    lora = config.model.lora
    engine = RolloutEngine(
        policy, config.rollout, context=config.model.context, seed=0, lora=Lora(lora.rank, lora.alpha, lora.targets)
    )
    turns = [turn for e in random_episodes(tiny_policy(), config.rollout.max_num_seqs) for turn in e.turns]

    async def generate(prompts: list[Prompt]) -> int:
        answers = await asyncio.gather(
            *(engine.generate(p, max_tokens=128, temperature=1.0, seed=n) for n, p in enumerate(prompts))
        )
        return sum(len(answer.token_ids) for answer in answers)

    async def measure() -> dict[str, Any]:
        rates = []
        for _ in range(REPEATS + 1):
            engine.forget()
            begun = time.perf_counter()
            tokens = await generate([turn.prompt for turn in turns])
            rates.append(tokens / (time.perf_counter() - begun))
        begun = time.perf_counter()
        await engine.update_weights(handle)
        load_s = time.perf_counter() - begun
        equal = engine.checksum() == handle.checksum
        return {"generated_tokens_per_s": max(rates[1:]), "load_s": load_s, "equal": equal}

    try:
        return asyncio.run(measure())
    finally:
        engine.close()


def main() -> None:
    size = sys.argv[1] if sys.argv[1:2] and "=" not in sys.argv[1] else "7b"
    config = config_of(size, sys.argv[2 if size in sys.argv[1:2] else 1 :])
    alone = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "policy"
        with ProcessPoolExecutor(1, alone) as process:
            process.submit(make_policy, size, policy).result()
        with ProcessPoolExecutor(1, alone) as process:
            found, handle = process.submit(learner_half, config, policy, folder).result()
        if importlib.util.find_spec("vllm"):
            with ProcessPoolExecutor(1, alone) as process:
                found |= process.submit(engine_half, config, policy, handle).result()
    rounded = {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in found.items()}
    print(json.dumps({"benchmark": "gpu", "size": size, **rounded}))


if __name__ == "__main__":
    main()
