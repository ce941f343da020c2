"""Seconds per weight sync and per MB, through shared memory, as one JSON line.

Per model size (width x layers), medians over a few syncs:

- ``mb``: megabytes published, without the value head.
- ``publish_s``: learner's side, export, write and checksum.
- ``load_s``: engine's side, reload of all layers and drop of all caches, with 16 requests in flight that
  go on under the new weights.
- ``sync_s``: both, one after the other; ``ms_per_mb``: sync_s per megabyte.
- ``checksum_s``: what ``train.verify_sync`` adds on the engine's side.

Every sync is verified: version and checksum have to be those published.

Run with ``python -m benchmarks.sync [WIDTHxLAYERS ...]``; default ``128x4 512x8``.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from affect_rl.config.sections import RolloutConfig
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.tokens import tiny_language_model, train_tokenizer
from affect_rl.policy.weights import new_weights_dir, publish_weights
from affect_rl.trajectory import Prompt
from rollout_workers.vllm.engine import RolloutEngine

REPEATS = 5
CONTEXT = 256
T = TypeVar("T")


def make_policy(width: int, layers: int) -> AffectPolicy:
    tokenizer = train_tokenizer(["some words to begin with"], 2048)
    tokenizer.add_tokens([f"word{number}" for number in range(2048 - len(tokenizer))])
    model = tiny_language_model(tokenizer, layers=layers, dim=width, heads=width // 32, context=CONTEXT, seed=0)
    return AffectPolicy.create(
        model, tokenizer, audio_dim=16, video_dim=16, dim=64, heads=4, soft_tokens=2, experts=4, top_k=2
    )


def timed(work: Callable[[], T]) -> tuple[T, float]:
    begun = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begun


async def sync(engine: RolloutEngine, policy: AffectPolicy, version: int, directory: Path) -> dict[str, float]:
    """One sync in the midst of work."""
    calls = [
        asyncio.ensure_future(engine.generate(Prompt((5 + i,) * 40, ()), max_tokens=30, temperature=1.0, seed=i))
        for i in range(16)
    ]
    while not engine.stats()["running"]:
        await asyncio.sleep(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.01)
    handle, published = timed(lambda: publish_weights(policy.export(), version, directory))
    begun = time.perf_counter()
    assert await engine.update_weights(handle) == version
    loaded = time.perf_counter() - begun
    checksum, checked = timed(engine.checksum)
    assert checksum == handle.checksum
    answers = await asyncio.gather(*calls)
    assert {answer.weight_versions[-1] for answer in answers if len(answer.token_ids) == 30} == {version}
    return {"mb": handle.bytes / 1e6, "publish_s": published, "load_s": loaded, "checksum_s": checked}


async def measure(engine: RolloutEngine, policy: AffectPolicy, directory: Path) -> dict[str, float]:
    rounds = [await sync(engine, policy, version, directory) for version in range(1, REPEATS + 2)][1:]
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    total = medians["publish_s"] + medians["load_s"]
    medians |= {"sync_s": total, "ms_per_mb": 1000 * total / medians["mb"]}
    return {name: round(value, 4) for name, value in medians.items()}


def main() -> None:
    results = {}
    for size in sys.argv[1:] or ["128x4", "512x8"]:
        width, layers = map(int, size.split("x"))
        policy, directory = make_policy(width, layers), new_weights_dir()
        with tempfile.TemporaryDirectory() as folder:
            policy_dir = policy.save(Path(folder) / "policy")
            engine = RolloutEngine(policy_dir, RolloutConfig(kv_cache_gib=0.2), context=CONTEXT, seed=0)
            results[size] = asyncio.run(measure(engine, policy, directory))
            engine.close()
        shutil.rmtree(directory)
    print(json.dumps({"benchmark": "sync", **results}))


if __name__ == "__main__":
    main()
