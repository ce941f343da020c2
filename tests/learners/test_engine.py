"""The DeepSpeed engine against plain torch: the same losses give the same weights, at every ZeRO stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from affect_rl.batching import MicroBatch, collate, flatten, turns_to_sequences
from affect_rl.errors import AffectError
from affect_rl.policy import AffectPolicy
from benchmarks.workload import random_episodes, tiny_policy
from learners.engine import Engine

STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])


@pytest.fixture(scope="module")
def batches() -> list[MicroBatch]:
    policy = tiny_policy()
    sequences = turns_to_sequences(e.turns for e in random_episodes(policy, 4))
    flat = flatten(sequences)
    return [collate(sequences, flat, rows, policy.fusion.shape, 0) for rows in ([0, 1, 2], [3, 4, 5, 6], [7, 8])]


def make(device: torch.device, stage: int, **options: bool) -> Engine:
    return Engine(tiny_policy(), device, zero_stage=stage, weight_decay=0.01, max_grad_norm=0.5, **options)


def train(engine: Engine, batches: list[MicroBatch], steps: int) -> list[float]:
    norms = []
    for _ in range(steps):
        for batch in batches:
            output = engine(batch.tokens)
            engine.backward(output.values.square().sum() - output.logprobs.sum())
        norms.append(engine.step(1e-3))
    return norms


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    with engine.gathered():
        return {name: p.detach().clone() for name, p in engine.policy.named_parameters()}


def bare(policy: AffectPolicy, batches: list[MicroBatch], steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.01)
    norms = []
    for _ in range(steps):
        for batch in batches:
            output = policy(batch.tokens)
            (output.values.square().sum() - output.logprobs.sum()).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)))
        optimizer.step()
        optimizer.zero_grad()
    return norms


@STAGES
def test_steps_equal_plain_adamw(device: torch.device, batches: list[MicroBatch], stage: int) -> None:
    engine, policy = make(device, stage), tiny_policy()
    assert train(engine, batches, 3) == pytest.approx(bare(policy, batches, 3), rel=1e-4)
    for name, tensor in weights(engine).items():
        torch.testing.assert_close(tensor, policy.get_parameter(name), atol=2e-5, rtol=0)


@STAGES
def test_checkpoints_resume_exactly(device: torch.device, batches: list[MicroBatch], stage: int, tmp_path: Path) -> None:
    engine = make(device, stage)
    train(engine, batches, 2)
    engine.save(tmp_path)
    expected = train(engine, batches, 2), weights(engine)
    resumed = make(device, stage)
    resumed.load(tmp_path)
    assert train(resumed, batches, 2) == expected[0]
    got = weights(resumed)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected[1].items())


def test_a_checkpoint_of_another_layout_is_an_error(device: torch.device, tmp_path: Path) -> None:
    make(device, 1).save(tmp_path)
    with pytest.raises(AffectError, match="holds other parameters or shards than this learner"):
        make(device, 0).load(tmp_path)


def test_autocast_stays_near_float32(device: torch.device, batches: list[MicroBatch]) -> None:
    exact, rough = train(make(device, 1), batches, 1), train(make(device, 1, autocast=True), batches, 1)
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact
