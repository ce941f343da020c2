"""Does ``affect-rl plan`` foresee the memory that a learner's processes take?

Prints one JSON line. Each rank is a process of its own that loads a policy and makes two updates on the CPU, at three
sizes and in four ways. Measured is the most that it held, planned the peak of `cluster.plan.rank_memory`. Both are in
GiB; ``ratio`` is planned over measured.

- ``full``: float32, all weights, ZeRO stage 1, activations kept.
- ``lora``: float32, adapters, stage 1, activations recomputed.
- ``sharded``: float32, all weights, stage 3 on two ranks, activations recomputed.
- ``bfloat16``: all weights, stage 1, on very few tokens, for many processors take a hundred times as long in bfloat16:
  it compares weights, gradients and optimiser alone.

Run with ``python -m benchmarks.plan [small] [middle] [large]`` (default: all sizes).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from affect_rl import memory
from affect_rl.config.load import Config
from affect_rl.network import LOOPBACK, open_store
from affect_rl.policy.tokens import tiny_config
from benchmarks.workload import AGENTS, AUDIO_DIM, VIDEO_DIM, random_episodes, tiny_policy
from cluster.plan import GIB, Memory, rank_memory
from cluster.sizes import policy_sizes
from learners.learner import LearnerWorker
from learners.meeting import Seat, seats
from learners.shares import deal

SIZES = {
    "small": {"layers": 4, "dim": 256, "heads": 4},
    "middle": {"layers": 8, "dim": 512, "heads": 8},
    "large": {"layers": 12, "dim": 768, "heads": 12},
}
LONG = {"tokens": 2048, "episodes": 4, "prompt": (80, 120), "answer": (170, 200)}
"""Answers are long, so that a chunk of the head is full."""
SHORT = {"tokens": 64, "episodes": 1, "prompt": (8, 24), "answer": (3, 9)}
WAYS: dict[str, dict[str, Any]] = {
    "full": {"dtype": "float32", "rank": 0, "zero_stage": 1, "workers": 1, "recompute": False, **LONG},
    "lora": {"dtype": "float32", "rank": 16, "zero_stage": 1, "workers": 1, "recompute": True, **LONG},
    "sharded": {"dtype": "float32", "rank": 0, "zero_stage": 3, "workers": 2, "recompute": True, **LONG},
    "bfloat16": {"dtype": "bfloat16", "rank": 0, "zero_stage": 1, "workers": 1, "recompute": True, **SHORT},
}
VOCABULARY = 32768


def config_of(size: dict[str, int], way: dict[str, Any]) -> Config:
    """A job that trains in this way; `tiny_policy` has such fusion modules."""
    return Config.model_validate(
        {
            "model": {
                "dtype": way["dtype"],
                "context": min(512, way["tokens"]),
                "tiny": {**size, "vocabulary": VOCABULARY},
                "lora": {"rank": way["rank"]},
                "fusion": {"dim": 16, "heads": 2, "soft_tokens": 2},
            },
            "learner": {
                "workers": way["workers"],
                "zero_stage": way["zero_stage"],
                "tokens_per_microbatch": way["tokens"],
                "checkpoint_activations": way["recompute"],
                "epochs": 1,
                "minibatches": 1,
                "threads": 1,
            },
        }
    )


def make_work(config: Config, way: dict[str, Any], directory: Path) -> tuple[Any, Any]:
    """Write a policy to `directory`; returns a step of random episodes and each rank's share of it."""
    torch.set_num_threads(1)
    policy = tiny_policy(**config.model.tiny.model_dump())
    policy.save(directory)
    episodes = random_episodes(policy, way["episodes"], prompt=way["prompt"], answer=way["answer"])
    adapters = dict.fromkeys(AGENTS, "team") if config.model.lora.rank else None
    return deal(episodes, AGENTS, config.learner, (0, 0), separate_critic=False, adapters=adapters)


def peak_of(config: Config, directory: Path, seat: Seat, step: Any, share: Any) -> int:
    """Bytes that this process has held at its peak, after it was a rank that loads the policy and makes updates."""
    os.dup2(2, 1)  # DeepSpeed prints
    # Models that fill a card have no small tensors; here, they would leave holes in the heap.
    memory.LARGE_BLOCK = 2**18
    memory.map_large_blocks()
    worker = LearnerWorker(config, directory, seat.rank, 0)
    worker.start(seat)
    for _ in range(2):  # the first one makes the moments
        worker.update(step, share)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def measure(config: Config, way: dict[str, Any]) -> list[int]:
    """What each rank takes, in bytes."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, spawn) as maker:
            step, shares = maker.submit(make_work, config, way, Path(folder) / "policy").result()
        store = open_store(600)
        with ProcessPoolExecutor(len(shares), spawn) as ranks:
            jobs = [
                ranks.submit(peak_of, config, Path(folder) / "policy", seat, step, share)
                for seat, share in zip(seats([LOOPBACK] * len(shares), store.port), shares, strict=True)
            ]
            return [job.result() for job in jobs]


def planned(config: Config) -> Memory:
    """What the plan says of a rank."""
    tiny = config.model.tiny
    shape = tiny_config(tiny.vocabulary, layers=tiny.layers, dim=tiny.dim, heads=tiny.heads, context=2048)
    return rank_memory(config, policy_sizes(shape, config.model, AUDIO_DIM, VIDEO_DIM), config.learner)


def main() -> None:
    found = {}
    for name in sys.argv[1:] or SIZES:
        for way, settings in WAYS.items():
            config = config_of(SIZES[name], settings)
            took, plan = max(measure(config, settings)), planned(config)
            parts = {part: round(size / GIB, 3) for part, size in plan.parts.items()}
            row = {"measured": round(took / GIB, 3), "planned": round(plan.peak / GIB, 3), "parts": parts}
            found[f"{name} {way}"] = row | {"ratio": round(plan.peak / took, 2)}
            print(found[f"{name} {way}"], file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
