"""Publications on their way: in a file, and between processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from affect_rl.network import LOOPBACK, open_store
from affect_rl.policy.adapters import Adapter, read_adapters
from affect_rl.policy.checksum import multiset_checksum
from affect_rl.policy.directory import WEIGHTS
from affect_rl.policy.publication import Publication, TensorSpec, in_buckets, split_adapters
from affect_rl.policy.transfer import CollectiveTransfer, FileTransfer, Meeting, TransferError

ADAPTER = Adapter(
    "team", {"r": 2, "lora_alpha": 8}, {"x.lora_A.weight": torch.ones(2, 3), "x.lora_B.weight": torch.ones(5, 2)}
)
TIMEOUT_S = 3.0


def named() -> dict[str, Tensor]:
    """Odd numbers of elements of unlike types, one tensor larger than a bucket."""
    random = torch.Generator().manual_seed(0)
    return {
        "language_model.odd": torch.randn(7, generator=random).bfloat16(),
        "language_model.large": torch.randn(2**25 // 3, 3, generator=random),
        "language_model.scalar": torch.tensor(3.5),
        "fusion.w": torch.randn(3, 5, generator=random),
        "value_head.weight": torch.ones(1),
    }


def publication(version: int = 1) -> Publication:
    return Publication(version, named().items(), [ADAPTER], dtype=torch.bfloat16)


def same(tensors: dict[str, Tensor]) -> bool:
    expected = {name: t for name, t in named().items() if not name.startswith("value_head")}
    return tensors.keys() == expected.keys() and all(torch.equal(t, expected[n]) for n, t in tensors.items())


specs = st.builds(
    TensorSpec, st.text(), st.sampled_from(["F32", "BF16"]), st.lists(st.integers(0, 9), max_size=3).map(tuple)
)


@given(st.lists(specs), st.integers(1, 500))
def test_buckets_hold_all_tensors_in_order_and_no_more_than_they_may(layout: list[TensorSpec], limit: int) -> None:
    buckets = in_buckets(tuple(layout), limit)
    assert [spec for bucket in buckets for spec in bucket] == layout
    for bucket in buckets:
        assert len(bucket) == 1 or sum(spec.bytes for spec in bucket) <= limit


def test_a_file_holds_what_was_sent(tmp_path: Path) -> None:
    sent = publication()
    FileTransfer(tmp_path).send(sent.announcement(), sent.tallied())
    assert same(load_file(tmp_path / WEIGHTS))
    announcement = FileTransfer(tmp_path).announcement(1)
    assert same(dict(FileTransfer(tmp_path).receive(announcement)))
    adapter = read_adapters(tmp_path)[0]
    assert {t.dtype for t in adapter.tensors.values()} == {torch.bfloat16}
    own = [t for name, t in named().items() if not name.startswith("value_head")]
    assert sent.checksum == multiset_checksum([*own, *adapter.served()])


def learner(meeting: Any, results: Any) -> None:
    store = open_store(TIMEOUT_S)
    place = Meeting((LOOPBACK, store.port), 3, "gloo", True, TIMEOUT_S)
    sent = publication()
    sent.count()
    for _ in range(2):
        meeting.put((place, sent.announcement()))
    transfer = CollectiveTransfer(place, LOOPBACK, store)
    begun = time.monotonic()
    try:
        transfer.send(sent.announcement(), sent.buckets())
        transfer.send(sent.announcement(), sent.buckets())
        results.put("sent")
    except TransferError:
        transfer.close()
        results.put(time.monotonic() - begun)


def engine(meeting: Any, results: Any, fails: bool) -> None:
    place, announcement = meeting.get()
    transfer = CollectiveTransfer(place, LOOPBACK)
    adapters: list[Adapter] = []
    if fails:  # it is there and does nothing
        time.sleep(6 * TIMEOUT_S)
        return
    begun = time.monotonic()
    try:
        for _ in range(2):
            adapters.clear()
            tensors = dict(split_adapters(announcement, transfer.receive(announcement), adapters))
            assert same(tensors)
            total = multiset_checksum([*tensors.values(), *adapters[0].served()])
            assert total == announcement.checksum
        results.put("received")
    except TransferError:
        results.put(time.monotonic() - begun)


def run(rank: int, meeting: Any, results: Any, faults: bool) -> None:
    torch.set_num_threads(1)
    if rank == 0:
        learner(meeting, results)
    else:
        engine(meeting, results, faults and rank == 2)


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    context = torch.multiprocessing.get_context("spawn")
    meeting, results = context.SimpleQueue(), context.SimpleQueue()
    processes = torch.multiprocessing.spawn(run, (meeting, results, request.param), nprocs=3, join=False)
    yield [results.get() for _ in range(2 if request.param else 3)]
    if request.param:
        for process in processes.processes:
            process.kill()
    else:
        processes.join()


@pytest.mark.parametrize("outcomes", [False], indirect=True)
def test_a_broadcast_reaches_all_engines_again_and_again(outcomes: list[Any]) -> None:
    assert sorted(outcomes) == ["received", "received", "sent"]


@pytest.mark.parametrize("outcomes", [True], indirect=True)
def test_an_engine_that_stands_still_holds_the_others_no_longer_than_the_deadline(outcomes: list[Any]) -> None:
    assert all(isinstance(outcome, float) and outcome < 4 * TIMEOUT_S for outcome in outcomes)
