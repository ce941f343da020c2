"""The DeepSpeed engine, and the supervised training on it, against plain torch; one rank, no Ray.

One file, because DeepSpeed remembers the first process group it sees: the group is made once and
ended before the tests of other files. On a machine with a GPU it runs there: ``pytest -m gpu tests/learners`` needs
neither Ray nor vLLM.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from affect_rl.algorithms.batching import MicroBatch, collate, rows_of, turns_to_sequences
from affect_rl.config.learning import SftConfig
from affect_rl.errors import AffectError
from affect_rl.network import LOOPBACK, open_store
from affect_rl.policy.model import AffectPolicy
from benchmarks.workload import random_episodes, tiny_policy
from learners.engine import WEIGHTS, Engine, choose_device, deepspeed_config, has_bfloat16_units
from learners.meeting import Seat, join_group
from learners.sft import sft_steps

SETTINGS = SftConfig(steps=40, batch_samples=4, lr=1e-2, warmup=4, tokens_per_microbatch=128)
STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])
GPU = torch.cuda.is_available()

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> Iterator[torch.device]:
    """A process group of one; the environment and the group are put back afterwards."""
    environment = dict(os.environ)
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what CUDA needs to repeat itself
    torch.use_deterministic_algorithms(GPU, warn_only=True)
    device = choose_device(gpu=GPU, threads=1, neighbours=1)
    store = open_store(60)
    join_group(Seat(0, 1, 1, LOOPBACK, (LOOPBACK, store.port)), gpu=GPU, timeout_s=60, store=store)
    yield device
    torch.use_deterministic_algorithms(False)
    dist.destroy_process_group()
    os.environ.clear()
    os.environ |= environment


@pytest.fixture(scope="module")
def batches(device: torch.device) -> list[MicroBatch]:
    policy = tiny_policy()
    sequences = turns_to_sequences(e.turns for e in random_episodes(policy, 4))
    rows = ([0, 1, 2], [3, 4, 5, 6], [7, 8])
    return [collate(rows_of(sequences), chosen, policy.fusion.shape, 0).to(device) for chosen in rows]


def policy_of(dtype: torch.dtype) -> AffectPolicy:
    """The tiny policy as it would be loaded in `dtype`."""
    policy = tiny_policy()
    for part in (policy.language_model, policy.fusion):
        part.to(dtype)
    return policy


def make(device: torch.device, stage: int, dtype: torch.dtype = torch.float32, **options: bool) -> Engine:
    policy = policy_of(dtype)
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
    engine, policy = make(device, stage), tiny_policy().to(device)
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


def two_of_three_steps(rank: int, ports: Any, folder: Path, kinds: Sequence[tuple[int, torch.dtype]]) -> None:
    """One of two ranks that train, write checkpoints, and go on from those that one rank wrote."""
    device = meet(rank, ports)
    batches = halves(rank)
    for stage, dtype in kinds:
        engine = make(device, stage, dtype)
        train(engine, batches, 2)
        kept = folder / f"{dtype}-{stage}"
        engine.save(kept / "by-two")
        train(engine, batches, 1)
        ended = weights(engine)
        resumed = make(device, stage, dtype)
        resumed.load(kept / "by-one")
        train(resumed, batches, 1)
        after = weights(resumed)
        if rank == 0:
            save_file(ended, kept / "by-two.safetensors")
            save_file(after, kept / "by-one-then-two.safetensors")
        dist.barrier()


def halves(rank: int | None) -> list[MicroBatch]:
    """What rank 0 or 1 of two reads, or both (None)."""
    policy = tiny_policy()
    sequences = turns_to_sequences(e.turns for e in random_episodes(policy, 4))
    rows = ([0, 1, 2, 3], [4, 5, 6, 7, 8])
    return [
        collate(rows_of(sequences), chosen, policy.fusion.shape, 0)
        for chosen in (rows if rank is None else [rows[rank]])
    ]


@pytest.mark.slow
def test_another_number_of_ranks_reads_a_checkpoint(device: torch.device, tmp_path: Path) -> None:
    kinds = [*((stage, torch.float32) for stage in range(4)), (1, torch.bfloat16)]  # which has an optimiser of its own
    expected = {}
    for stage, dtype in kinds:
        kept = tmp_path / f"{dtype}-{stage}"
        for name in ("by-one", "by-two"):
            (kept / name).mkdir(parents=True)
        engine = make(device, stage, dtype)
        train(engine, halves(None), 2)
        engine.save(kept / "by-one")
        train(engine, halves(None), 1)
        expected[stage, dtype] = weights(engine)
    in_two_ranks(two_of_three_steps, tmp_path, kinds)
    for stage, dtype in kinds:
        kept = tmp_path / f"{dtype}-{stage}"
        engine = make(device, stage, dtype)
        engine.load(kept / "by-two")
        train(engine, halves(None), 1)
        by_two = load_file(kept / "by-two.safetensors")
        by_one_then_two = load_file(kept / "by-one-then-two.safetensors")
        start = dict(policy_of(dtype).named_parameters())
        for ended, again in ((by_two, weights(engine)), (expected[stage, dtype], by_one_then_two)):
            far, near = (
                sum(torch.dist(tensor.float(), other[name].float()) ** 2 for name, tensor in ended.items())
                for other in (start, again)
            )
            assert near < (1e-5 if dtype == torch.float32 else 1e-3) * far, (stage, dtype)


def test_a_checkpoint_of_other_parameters_or_without_all_parts_is_an_error(
    device: torch.device, tmp_path: Path
) -> None:
    engine = make(device, 1)
    engine.save(tmp_path)
    part = next(tmp_path.glob("rank-*"))
    held = load_file(part)
    save_file({key: tensor for key, tensor in held.items() if "value_head.weight" not in key}, part)
    with pytest.raises(AffectError, match=r"the checkpoint lacks \d+ of \d+ numbers \(master\) of value_head"):
        engine.load(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    save_file({name: tensor for name, tensor in stored.items() if name != "value_head.weight"}, tmp_path / WEIGHTS)
    with pytest.raises(AffectError, match="holds other parameters than this learner"):
        engine.load(tmp_path)


@pytest.mark.parametrize("stage", [0, 3])
def test_recomputed_activations_change_no_number(device: torch.device, batches: list[MicroBatch], stage: int) -> None:
    kept, recomputed = make(device, stage), make(device, stage, checkpoint_activations=True)
    assert train(recomputed, batches, 2) == train(kept, batches, 2)
    assert all(torch.equal(tensor, weights(kept)[name]) for name, tensor in weights(recomputed).items())


def initialised(config: dict[str, Any], device: torch.device) -> Any:
    """DeepSpeed's engine on a small model: here it validates the configuration."""
    import deepspeed  # after the group is there

    model = torch.nn.Linear(8, 8).to(device, torch.bfloat16 if config["bf16"]["enabled"] else torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)[0]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("stage", "dtype"),
    [*((stage, torch.float32) for stage in range(4)), *((stage, torch.bfloat16) for stage in (1, 2, 3))],
)
def test_deepspeed_accepts_the_configuration(
    device: torch.device, dtype: torch.dtype, stage: int, autocast: bool
) -> None:
    """It does not depend on the device, so what DeepSpeed says of it here it says on a GPU."""
    engine = initialised(deepspeed_config(dtype, zero_stage=stage, max_grad_norm=0.5, autocast=autocast), device)
    assert engine.zero_overlap_comm() == (stage >= 2)
    assert engine.get_data_types() == (dtype, torch.float32)
    assert engine.gradient_clipping() == (0.5 if stage else 0)  # stage 0 is clipped by our engine
    before = engine.module.state_dict() if stage < 3 else {}
    before = {name: tensor.clone() for name, tensor in before.items()}
    for _ in range(2):
        engine.backward(engine(torch.ones(2, 8, dtype=dtype, device=device)).float().square().sum())
    engine.step()
    assert all(not torch.equal(engine.module.get_parameter(name), tensor) for name, tensor in before.items())


@pytest.mark.parametrize("stage", [0, 1])
def test_deepspeed_refuses_overlap_at_low_stages(device: torch.device, stage: int) -> None:
    config = deepspeed_config(torch.float32, zero_stage=stage, max_grad_norm=0.5)
    config["zero_optimization"]["overlap_comm"] = True
    with pytest.raises(AssertionError, match="supports ZeRO overlap_comm only with ZeRO stage 2"):
        initialised(config, device)


@STAGES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_no_number_changes_nothing(
    device: torch.device, batches: list[MicroBatch], stage: int, dtype: torch.dtype
) -> None:
    engine = make(device, stage, dtype)
    before = weights(engine)
    output = engine(batches[0].tokens, values=True)
    engine.backward(torch.nan * (output.values.sum() + output.logprobs.sum()))
    assert not math.isfinite(engine.step(1e-3))
    for name, tensor in weights(engine).items():
        torch.testing.assert_close(tensor, before[name], atol=0, rtol=0)
    assert math.isfinite(train(engine, batches, 1)[0])
    after = weights(engine)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert any((tensor != before[name]).any() for name, tensor in after.items())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_norm_of_bfloat16_weights_is_that_of_all_gradients(
    device: torch.device, batches: list[MicroBatch], stage: int
) -> None:
    def head_alone(engine: Engine) -> float:
        output = engine(batches[0].tokens, logprobs=False, values=True)
        engine.backward(100 * output.values.sum() + 0 * output.router.sum())
        return engine.step({"policy": 0.0, "critic": 0.0})

    exact, rough = (
        Engine(policy_of(dtype), device, zero_stage=stage, weight_decay=0.0, max_grad_norm=1.0, group_of=group)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert head_alone(rough) == pytest.approx(head_alone(exact), rel=0.01)


def group(name: str) -> str:
    return "critic" if name.startswith("value_head.") else "policy"


def meet(rank: int, ports: Any) -> torch.device:
    """Join the other one of two ranks, which are told through a queue where rank 0's store is."""
    device = choose_device(gpu=False, threads=1, neighbours=2)
    store = open_store(60) if rank == 0 else None
    if store:
        ports.put(store.port)
    seat = Seat(rank, 2, 2, LOOPBACK, (LOOPBACK, store.port if store else ports.get()))
    join_group(seat, gpu=False, timeout_s=60, store=store)
    return device


def regressed(read: list[torch.Tensor], steps: int) -> dict[str, torch.Tensor]:
    """The value head after least squares on the states that it reads, in float64 by plain torch."""
    head = torch.nn.Linear(read[0].shape[-1], 1)
    head.load_state_dict(tiny_policy().value_head.state_dict())
    head.double()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(steps):
        torch.stack([(head(states.double())[:, 0] - 1).square().sum() for states in read]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return head.state_dict()


def values_alone(rank: int, ports: Any, folder: Path) -> None:
    """One of two ranks on which only the value head of a bfloat16 policy learns."""
    device = meet(rank, ports)
    sequences = turns_to_sequences(e.turns for e in random_episodes(tiny_policy(), 4))
    for stage in (1, 2, 3):
        policy = policy_of(torch.bfloat16)
        rows = ([0, 1, 2], [3, 4, 5, 6]) if rank == 0 else ([7], [8])
        batches = [collate(rows_of(sequences), r, policy.fusion.shape, 0) for r in rows]
        engine = Engine(policy, device, zero_stage=stage, weight_decay=0.0, max_grad_norm=1e6, group_of=group)
        head, read = policy.value_head, list[torch.Tensor]()
        head.register_forward_pre_hook(lambda _, args, read=read: read.append(args[0].detach()))
        for _ in range(3):
            for batch in batches:
                output = engine(batch.tokens, logprobs=False, values=True)
                engine.backward((output.values - 1).square().sum())
                assert head.weight.grad is not None and head.weight.grad.dtype == torch.float32
            engine.step({"policy": 0.0, "critic": 1e-3})
        everybodys: list[list[torch.Tensor]] = [[], []]
        dist.all_gather_object(everybodys, read[:2])  # the states stay, for the rest does not learn
        expected = regressed([*everybodys[0], *everybodys[1]], 3)
        for name, tensor in expected.items():
            torch.testing.assert_close(head.get_parameter(name).double(), tensor, atol=1e-7, rtol=0)
        weight = expected["weight"].float()
        assert (weight.bfloat16() - weight).abs().max() > 2e-5, "in bfloat16 it would be another head"
        engine.save(folder)
        states = load_file(folder / f"rank-{rank}-of-2.safetensors")
        assert {tensor.dtype for tensor in states.values()} == {torch.float32}
        dist.barrier()
    if rank == 0:
        (folder / "done").touch()


def test_the_value_head_of_bfloat16_weights_trains_in_float32(tmp_path: Path) -> None:
    in_two_ranks(values_alone, tmp_path)
    assert (tmp_path / "done").exists()


def in_two_ranks(function: Callable[..., None], *args: Any) -> None:
    ports = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(partial(_called, function, ports, args), nprocs=2)


def _called(function: Callable[..., None], ports: Any, args: tuple[Any, ...], rank: int) -> None:
    function(rank, ports, *args)
    dist.barrier()
    dist.destroy_process_group()  # its threads must not outlive the interpreter


def unequal_chunks(rank: int, ports: Any, results: Path) -> None:
    """One of two ranks whose passes have unequally many chunks, with a head that ZeRO 3 really shards."""
    device = meet(rank, ports)
    policy = tiny_policy(vocabulary=4000)
    sequences = turns_to_sequences(e.turns for e in random_episodes(policy, 3))
    rows = ([0, 1, 2, 3, 4, 5], [6])
    batch = [collate(rows_of(sequences), r, policy.fusion.shape, 0) for r in rows]
    expected = bare(policy, batch, 2)
    for stage in (2, 3):  # where communication overlaps with computing
        policy = tiny_policy(vocabulary=4000)
        policy.chunk_logits = 4000 * 8
        engine = Engine(
            policy, device, zero_stage=stage, weight_decay=0.01, max_grad_norm=0.5, checkpoint_activations=True
        )
        assert train(engine, [batch[rank]], 2) == pytest.approx(expected, rel=1e-4)
        assert (policy.head.weight.numel() == 0) == (stage == 3)  # there the other rank holds a part of it
    if rank == 0:
        results.touch()


def test_ranks_may_have_unequally_many_chunks(tmp_path: Path) -> None:
    in_two_ranks(unequal_chunks, tmp_path / "done")
    assert (tmp_path / "done").exists()


def threads(_: int, results: Any) -> None:
    cores = os.sched_getaffinity(0)
    for neighbours in (1, 2 * len(cores)):
        choose_device(gpu=False, threads=0, neighbours=neighbours)
        results.put(torch.get_num_threads())
    os.sched_setaffinity(0, {min(cores)})
    choose_device(gpu=False, threads=0, neighbours=1)
    results.put(torch.get_num_threads())
    choose_device(gpu=False, threads=3, neighbours=1)
    results.put(torch.get_num_threads())


def test_ranks_share_the_cores_that_they_may_use() -> None:
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(threads, (results,), nprocs=1)
    assert [results.get() for _ in range(4)] == [len(os.sched_getaffinity(0)), 1, 1, 3]


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
