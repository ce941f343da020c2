"""The DeepSpeed engine, and the supervised training on it, against plain torch; one rank, no Ray.

One file, because DeepSpeed remembers the first process group it sees: the group is made once and
ended before the tests of other files.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from affect_rl.algorithms.batching import MicroBatch, collate, rows_of, turns_to_sequences
from affect_rl.config.sections import SftConfig
from affect_rl.errors import AffectError
from affect_rl.policy.model import AffectPolicy
from benchmarks.workload import random_episodes, tiny_policy
from learners.engine import Engine, choose_device, deepspeed_config, has_bfloat16_units, join_group
from learners.sft import sft_steps

SETTINGS = SftConfig(steps=40, batch_samples=4, lr=1e-2, warmup=4, tokens_per_microbatch=128)
STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])


@pytest.fixture(scope="module")
def device() -> Iterator[torch.device]:
    """A process group of one; the environment and the group are put back afterwards."""
    environment = dict(os.environ)
    device = choose_device(gpu=False, threads=1, workers=1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join_group(0, 1, "127.0.0.1", port, gpu=False, timeout_s=60)
    yield device
    dist.destroy_process_group()
    os.environ.clear()
    os.environ |= environment


@pytest.fixture(scope="module")
def batches() -> list[MicroBatch]:
    policy = tiny_policy()
    sequences = turns_to_sequences(e.turns for e in random_episodes(policy, 4))
    return [collate(rows_of(sequences), rows, policy.fusion.shape, 0) for rows in ([0, 1, 2], [3, 4, 5, 6], [7, 8])]


def make(device: torch.device, stage: int, dtype: torch.dtype = torch.float32, **options: bool) -> Engine:
    policy = tiny_policy().to(dtype)
    return Engine(policy, device, zero_stage=stage, weight_decay=0.01, max_grad_norm=0.5, **options)


def train(engine: Engine, batches: list[MicroBatch], steps: int) -> list[float]:
    norms = []
    for _ in range(steps):
        for batch in batches:
            output = engine(batch.tokens, values=True)
            engine.backward(output.values.square().sum() - output.logprobs.sum())
        norms.append(engine.step(1e-3))
    return norms


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    with engine.gathered():
        return {name: p.detach().clone() for name, p in engine.policy.named_parameters()}


def bare(policy: AffectPolicy, batches: list[MicroBatch], steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    norms = []
    for _ in range(steps):
        for batch in batches:
            output = policy(batch.tokens, values=True)
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
        torch.testing.assert_close(tensor, policy.get_parameter(name), atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [*((stage, torch.float32) for stage in range(4)), *((stage, torch.bfloat16) for stage in (0, 2, 3))],
)
def test_checkpoints_resume_exactly(
    device: torch.device, batches: list[MicroBatch], stage: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    engine = make(device, stage, dtype)
    train(engine, batches, 2)
    engine.save(tmp_path)
    expected = train(engine, batches, 2), weights(engine)
    resumed = make(device, stage, dtype)
    resumed.load(tmp_path)
    assert train(resumed, batches, 2) == expected[0]
    got = weights(resumed)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected[1].items())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_spares_the_rotary_frequencies(device: torch.device, stage: int, tmp_path: Path) -> None:
    policy = AffectPolicy.load(tiny_policy().save(tmp_path / "policy"), dtype=torch.bfloat16)
    engine = Engine(policy, device, zero_stage=stage, weight_decay=0.0, max_grad_norm=1.0)
    assert engine.policy.language_model.get_buffer("model.rotary_emb.inv_freq").dtype == torch.float32


def test_a_checkpoint_of_another_layout_is_an_error(device: torch.device, tmp_path: Path) -> None:
    make(device, 1).save(tmp_path)
    with pytest.raises(AffectError, match="holds other parameters or shards than this learner"):
        make(device, 0).load(tmp_path)


@pytest.mark.parametrize("stage", [0, 3])
def test_recomputed_activations_change_no_number(device: torch.device, batches: list[MicroBatch], stage: int) -> None:
    kept, recomputed = make(device, stage), make(device, stage, checkpoint_activations=True)
    assert train(recomputed, batches, 2) == train(kept, batches, 2)
    assert all(torch.equal(tensor, weights(kept)[name]) for name, tensor in weights(recomputed).items())


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@STAGES
def test_deepspeed_accepts_the_configuration(kind: str, dtype: torch.dtype, stage: int) -> None:
    config = deepspeed_config(torch.device(kind), dtype, zero_stage=stage, max_grad_norm=0.5)
    assert config["zero_optimization"] == {"stage": stage, "overlap_comm": kind == "cuda" and stage >= 2}
    assert config["gradient_clipping"] == (0.5 if stage else 0)  # stage 0 is clipped by the engine
    assert config["bf16"]["enabled"] == (dtype == torch.bfloat16)
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


def test_values_of_bfloat16_weights_are_float32(device: torch.device, batches: list[MicroBatch]) -> None:
    engine = make(device, 1, torch.bfloat16)
    values = engine(batches[0].tokens, logprobs=False, values=True).values
    assert values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float())


def unequal_chunks(rank: int, port: int, results: Path) -> None:
    """One of two ranks whose passes have unequally many chunks, with a head that ZeRO 3 really shards."""
    device = choose_device(gpu=False, threads=1, workers=2)
    join_group(rank, 2, "127.0.0.1", port, gpu=False, timeout_s=60)
    policy = tiny_policy(vocabulary=4000)
    sequences = turns_to_sequences(e.turns for e in random_episodes(policy, 3))
    rows = ([0, 1, 2, 3, 4, 5], [6])
    batch = [collate(rows_of(sequences), r, policy.fusion.shape, 0) for r in rows]
    policy.chunk_logits = 4000 * 8
    engine = Engine(policy, device, zero_stage=3, weight_decay=0.01, max_grad_norm=0.5, checkpoint_activations=True)
    norms = train(engine, [batch[rank]], 1)
    if rank == 0:
        assert norms == pytest.approx(bare(tiny_policy(vocabulary=4000), batch, 1), rel=1e-4)
        assert policy.head.weight.numel() == 0  # the other rank holds a part of it
        results.touch()


def test_ranks_may_have_unequally_many_chunks(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(unequal_chunks, (port, tmp_path / "done"), nprocs=2)
    assert (tmp_path / "done").exists()


def test_autocast_stays_near_float32(device: torch.device, batches: list[MicroBatch]) -> None:
    exact, rough = train(make(device, 1), batches, 1), train(make(device, 1, autocast=True), batches, 1)
    assert rough == pytest.approx(exact, rel=0.05)
    assert (rough != exact) == has_bfloat16_units(device), "where nothing computes bfloat16, float32 is faster"


def test_sft_learns_its_demonstrations_and_repeats_itself(device: torch.device) -> None:
    sequences = turns_to_sequences(e.turns for e in random_episodes(tiny_policy(), 4))
    runs = [list(sft_steps(make(device, 1), sequences, SETTINGS, balance_weight=0.01, seed=3)) for _ in range(2)]
    assert runs[0] == runs[1]
    first, last = runs[0][0], runs[0][-1]
    assert last["loss"] < 0.4 * first["loss"]
    assert {f"{role}/{name}" for role in ("planner", "filter", "generator") for name in ("loss", "accuracy")} < set(
        last
    )
    assert last["generator/accuracy"] > 0.6


def test_sft_goes_on_where_a_checkpoint_was_written(device: torch.device, tmp_path: Path) -> None:
    sequences = turns_to_sequences(e.turns for e in random_episodes(tiny_policy(), 9))
    settings = SETTINGS.model_copy(update={"steps": 8})

    def steps(engine: Engine, done: int = 0) -> Iterator[dict[str, float]]:
        return sft_steps(engine, sequences, settings, balance_weight=0.01, seed=3, done=done)

    whole = make(device, 1)
    expected = list(steps(whole))
    killed, resumed = make(device, 1), make(device, 1)
    assert list(itertools.islice(steps(killed), 3)) == expected[:3]
    killed.save(tmp_path)
    resumed.load(tmp_path)
    assert list(steps(resumed, done=3)) == expected[3:]
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(resumed).items())


def test_first_loss_is_the_mean_cross_entropy(device: torch.device) -> None:
    sequences = turns_to_sequences(e.turns for e in random_episodes(tiny_policy(), 4))
    policy = tiny_policy()
    batch = collate(rows_of(sequences), range(len(sequences)), policy.fusion.shape, 0)
    expected = -policy(batch.tokens).logprobs.mean().item()
    first = next(sft_steps(make(device, 1), sequences, SETTINGS, balance_weight=0.0, seed=0))
    assert first["loss"] == pytest.approx(expected, abs=1e-5)
