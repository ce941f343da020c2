"""An engine whose policy is replaced where it came from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest

from affect_rl.config.load import load_config
from affect_rl.files import replace_directory
from affect_rl.policy.tokens import train_tokenizer
from benchmarks.workload import tiny_policy
from cluster.serving.replicas import EngineReplica


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.05)


def test_a_policy_with_another_tokenizer_is_not_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = tiny_policy(dim=64)
    there = policy.save(tmp_path / "policy")
    settings = ["rollout.kv_cache_gib=0.1", "model.context=256", "rollout.deterministic=false"]
    replica = EngineReplica(load_config(None, [*settings, "serve.policy_every_s=0.1"]), there, None)
    caplog.set_level(logging.WARNING)

    async def watched() -> None:
        _, first = await replica.play([])
        other = deepcopy(policy)
        other.tokenizer = train_tokenizer(["quite other words"] * 9, len(policy.tokenizer))
        replace_directory(other.save(tmp_path / "other"), there)
        await until(lambda: "has another tokenizer.json" in caplog.text)
        assert "the policy before stays" in caplog.text and (await replica.play([]))[1] == first
        await replica.check_health()
        next(policy.parameters()).data.mul_(0.9)
        replace_directory(policy.save(tmp_path / "good"), there)
        await until(lambda: "is taken over" in caplog.text)
        assert (await replica.play([]))[1] != first

    try:
        asyncio.run(watched())
    finally:
        replica._worker.engine.close()
