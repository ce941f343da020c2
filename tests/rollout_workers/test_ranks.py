"""Engines of two ranks: what they compute, what weights each holds, and that they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rollout_cases import CONTEXT, SETTINGS, answer_all, logprob_gaps, make_policy, make_prompts, perturbed
from vllm.lora.request import LoRARequest
from vllm.v1.worker.worker_base import WorkerBase

from affect_rl.errors import AffectError
from affect_rl.policy.adapters import ADAPTERS, TEAM, Lora
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.transfer import FileTransfer
from affect_rl.policy.weights import publish_weights
from rollout_workers.vllm.checksum import RanksDisagreeError, joined
from rollout_workers.vllm.engine import EngineError, RolloutEngine

LORA = Lora(rank=5, alpha=12)
LAYER = "language_model.model.layers.1"
DIVIDED = (
    "language_model.model.embed_tokens.weight",
    f"{LAYER}.self_attn.q_proj.bias",
    f"{LAYER}.self_attn.o_proj.weight",
    f"{LAYER}.mlp.up_proj.weight",
    f"{LAYER}.mlp.down_proj.weight",
)
COPIED = ("language_model.model.norm.weight", "fusion.video.std")


@contextmanager
def two_ranks(policy_dir: Path, **settings: Any) -> Iterator[tuple[RolloutEngine, list[psutil.Process]]]:
    """An engine and the processes of its ranks, which end with it."""
    config = SETTINGS.model_copy(update={"tensor_parallel": 2, **settings})
    engine = RolloutEngine(policy_dir, config, context=CONTEXT, seed=0, lora=LORA, adapters=1)
    processes = [psutil.Process(worker.proc.pid) for worker in engine._engine.model_executor.workers]
    try:
        assert len(processes) == 2
        yield engine, processes
    finally:
        engine.close()
    _, alive = psutil.wait_procs(processes, timeout=240)
    assert not alive


@pytest.fixture(scope="module")
def ranks(policy_dir: Path) -> Iterator[RolloutEngine]:
    with two_ranks(policy_dir) as (engine, _):
        yield engine


def with_adapter(policy_dir: Path) -> AffectPolicy:
    torch.manual_seed(0)
    policy = AffectPolicy.load(policy_dir).eval()
    policy.add_adapters(LORA)
    with torch.no_grad():
        for tensor in policy.adapters()[0].tensors.values():
            tensor.add_(torch.randn(tensor.shape) * 0.1)
    return policy


def gap(policy: AffectPolicy, engine: RolloutEngine, seed: int = 0) -> float:
    """The largest difference between log-probs of engine and learner."""
    prompts = make_prompts(policy, 16, seed)
    with policy.use_adapter(TEAM if policy.adapter_names else None):
        gaps = logprob_gaps(policy, prompts, asyncio.run(answer_all(engine, prompts, seed=seed)))
    return max(float(part.max()) for part in gaps)


def test_two_ranks_compute_what_one_does(
    policy: AffectPolicy, policy_dir: Path, ranks: RolloutEngine, start: Callable[..., RolloutEngine], tmp_path: Path
) -> None:
    """At the start, after syncs of the whole model, and after one of an adapter: both as near to the learner."""
    one, two = start(policy_dir), ranks
    assert gap(policy, one) < 5e-6 and gap(policy, two) < 5e-6
    assert one.checksum() == two.checksum()
    trained, adapted = deepcopy(policy), with_adapter(policy_dir)
    published = [publish_weights(perturbed(trained, 0.02).export(), version, tmp_path) for version in (1, 2)]
    for handle in published:
        assert asyncio.run(two.update_weights(handle)) == handle.version
        assert two.checksum() == handle.checksum
    assert gap(trained, two, seed=1) < 5e-6
    handle = adapted.publish(3, tmp_path)
    assert asyncio.run(two.update_weights(handle)) == 3
    assert two.checksum() == handle.checksum
    assert gap(adapted, two, seed=2) < 5e-6


def load_on_one_rank(worker: WorkerBase, rank: int, directory: str) -> None:
    """Runs on each rank."""
    if worker.rank == rank:
        worker.start_weight_update()
        announcement = FileTransfer(Path(directory)).announcement(11)
        worker.update_weights({"announcement": announcement, "directory": directory})
        worker.finish_weight_update()


def add_adapter_on_one_rank(worker: WorkerBase, rank: int, request: LoRARequest) -> None:
    """Runs on each rank."""
    if worker.rank == rank:
        worker.remove_lora(request.lora_int_id)
        worker.add_lora(request)


def reported(engine: RolloutEngine) -> int | None:
    """The checksum; None: the ranks disagree."""
    try:
        return engine.checksum()
    except RanksDisagreeError:
        return None


def test_the_checksum_sees_a_wrong_tensor_on_one_rank(
    policy: AffectPolicy, ranks: RolloutEngine, tmp_path: Path
) -> None:
    truth = {name: tensor.detach() for name, tensor in policy.export()}
    handle = publish_weights(truth.items(), 10, tmp_path)
    asyncio.run(ranks.update_weights(handle))
    for name in DIVIDED + COPIED:
        other = publish_weights({**truth, name: truth[name] + 1e-3}.items(), 11, tmp_path)
        for rank in range(2):
            ranks._engine.collective_rpc(load_on_one_rank, args=(rank, other.path))
            assert reported(ranks) not in (handle.checksum, other.checksum), (name, rank)
            assert (reported(ranks) is None) == (name in COPIED)
            asyncio.run(ranks.update_weights(handle))
            assert ranks.checksum() == handle.checksum


def test_the_checksum_sees_a_wrong_adapter_on_one_rank(policy_dir: Path, ranks: RolloutEngine, tmp_path: Path) -> None:
    """A is divided where the layer divides its input, B where it divides its output."""
    adapted = with_adapter(policy_dir)
    handle = adapted.publish(20, tmp_path)
    asyncio.run(ranks.update_weights(handle))
    right = ranks.adapters and ranks._sync.adapters[TEAM]
    assert ranks.checksum() == handle.checksum
    for layer, part, copied in (
        ("q_proj", "lora_A", True),
        ("q_proj", "lora_B", False),
        ("down_proj", "lora_A", False),
        ("down_proj", "lora_B", True),
    ):
        wrong = deepcopy(adapted)
        for name, tensor in wrong.adapters()[0].tensors.items():
            if f"{layer}.{part}" in name:
                tensor.data.add_(1e-3)
        folder = Path(wrong.publish(21, tmp_path).path) / ADAPTERS / TEAM
        for rank in range(2):
            request = LoRARequest(TEAM, right.lora_int_id, str(folder))
            ranks._engine.collective_rpc(add_adapter_on_one_rank, args=(rank, request))
            assert reported(ranks) != handle.checksum
            assert (reported(ranks) is None) == copied
            asyncio.run(ranks.update_weights(handle))
            assert ranks.checksum() == handle.checksum


@pytest.mark.slow
def test_free_ranks_with_copies_of_a_key_value_head(tmp_path: Path) -> None:
    """They draw the same tokens though requests have no seeds. The engine dies with the first of them."""
    policy = make_policy(tied=False, key_value_heads=1)
    with two_ranks(policy.save(tmp_path / "policy"), deterministic=False) as (engine, processes):
        assert gap(policy, engine) < 5e-6
        handle = publish_weights(perturbed(policy, 0.02).export(), 1, tmp_path)
        asyncio.run(engine.update_weights(handle))
        assert engine.checksum() == handle.checksum
        assert gap(policy, engine, seed=1) < 5e-6
        adapted = with_adapter(tmp_path / "policy")
        handle = adapted.publish(2, tmp_path)
        asyncio.run(engine.update_weights(handle))
        assert engine.checksum() == handle.checksum
        assert gap(adapted, engine, seed=2) < 5e-6
        processes[1].kill()
        with pytest.raises(EngineError, match="the engine died under weight version 2"):
            gap(policy, engine)


def test_what_cannot_be_divided_is_refused(policy_dir: Path, start: Callable[..., RolloutEngine]) -> None:
    with pytest.raises(AffectError, match=r"tensor_parallel=3 does not divide the 2 attention heads of .*policies"):
        start(policy_dir, tensor_parallel=3)


def test_copies_count_once_and_have_to_be_equal() -> None:
    assert joined([{"all ranks": 5, "rank 0": 1}, {"all ranks": 5, "rank 1": 2**64 - 2}]) == 4
    with pytest.raises(RanksDisagreeError, match=r"rank 2 .*\(key-value heads 1\)"):
        joined([{"key-value heads 0": 1}, {"key-value heads 1": 2}, {"key-value heads 1": 3}])
