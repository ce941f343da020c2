"""An engine whose policy is replaced where it came from, and encoders of clips that nobody waits for any more."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
import wave
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from affect_rl.config.load import load_config
from affect_rl.data.dataset import write_dataset
from affect_rl.data.extraction import PROSODY, Checkpoint, Extraction
from affect_rl.files import replace_directory
from affect_rl.policy.tokens import train_tokenizer
from affect_rl.sample import AffectSample
from benchmarks.workload import tiny_policy
from cluster.serving.replicas import CLIPS_AT_ONCE, EncoderReplica, EngineReplica


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


def sound(seconds: float) -> bytes:
    """A WAV file of noise."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(np.random.default_rng(0).integers(-9999, 9999, round(16_000 * seconds), np.int16).tobytes())
    return file.getvalue()


def test_clips_that_are_given_up_do_not_pile_up(tmp_path: Path) -> None:
    sample = AffectSample("u", "d", "train", "c", "s", "well", ("joy",), "closed", ("anger", "joy"))
    made = Extraction(Checkpoint.find(PROSODY), None, segments=2)
    directory = write_dataset(tmp_path / "data", [sample], name="d", extraction=made)
    replica = EncoderReplica(load_config(None, [f"data.dir={directory}"]).data)
    long, short = sound(8), sound(1)

    async def ask() -> AffectSample:
        await replica.perceive(sample, "clip.wav", short)  # what is loaded the first time
        threads = threading.active_count()
        for _ in range(8):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await replica.perceive(sample, "clip.wav", long)
        assert threading.active_count() - threads < CLIPS_AT_ONCE
        return await replica.perceive(sample, "clip.wav", short)

    assert asyncio.run(ask()).audio is not None
