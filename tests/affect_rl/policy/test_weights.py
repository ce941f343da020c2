"""Publications of weights, and their checksum."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from affect_rl.errors import AffectError
from affect_rl.policy.checksum import multiset_checksum
from affect_rl.policy.directory import WEIGHTS
from affect_rl.policy.weights import mark_of, new_weights_dir, publish_weights, weights_parent

numbers = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40)


@given(numbers, st.data())
def test_checksum_does_not_see_how_numbers_are_arranged(values: list[float], data: st.DataObject) -> None:
    """Split, put in another order, padded with zeros: the same."""
    cut = data.draw(st.integers(0, len(values)))
    shuffled = data.draw(st.permutations(values))
    parts = [torch.tensor(shuffled[:cut]), torch.tensor([*shuffled[cut:], 0.0, -0.0])]
    assert multiset_checksum([torch.tensor(values)]) == multiset_checksum(parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_checksum_sees_every_bit(dtype: torch.dtype) -> None:
    tensor = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    integers = tensor.view(torch.int32 if dtype.itemsize == 4 else torch.int16)
    sums = {multiset_checksum([tensor])}
    for bit in range(8 * dtype.itemsize - 1):
        changed = integers.clone()
        changed[2, 3] ^= 1 << bit
        sums.add(multiset_checksum([changed.view(dtype)]))
    assert len(sums) == 8 * dtype.itemsize
    assert all(0 <= value < 2**64 for value in sums)


def named(version: int) -> dict[str, Tensor]:
    return {"language_model.w": torch.full((2, 3), float(version)), "value_head.weight": torch.ones(1)}


def test_a_publication_is_whole_and_without_the_value_head(tmp_path: Path) -> None:
    handle = publish_weights(named(3).items(), 3, tmp_path)
    stored = load_file(Path(handle.path) / WEIGHTS)
    assert stored.keys() == {"language_model.w"}
    assert handle.version == 3 and handle.bytes == 2 * 3 * 4
    assert handle.checksum == multiset_checksum(stored.values())
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_only_the_last_two_publications_stay(tmp_path: Path) -> None:
    for version in range(12):
        publish_weights(named(version).items(), version, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"10", "11"}


def test_each_publisher_has_a_directory_of_its_own(tmp_path: Path) -> None:
    one, other = new_weights_dir("run", str(tmp_path)), new_weights_dir("run", str(tmp_path))
    assert one != other and one.is_dir() and other.is_dir()


KILLED = """
import os, signal, sys
from affect_rl.policy.weights import new_weights_dir, publish_weights
for mark in sys.argv[2:]:
    publish_weights(iter([]), 1, new_weights_dir(mark, sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_goes_when_it_is_resumed(tmp_path: Path) -> None:
    run, another = mark_of(Path("runs/run")), mark_of(Path("runs/run-2"))
    live = new_weights_dir(run, str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), run, another], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*/1"))) == 2
    resumed = new_weights_dir(run, str(tmp_path))
    (other,) = tmp_path.glob(f"*-{another}-*")
    assert set(tmp_path.iterdir()) == {live, resumed, other}


def test_a_mark_is_the_same_wherever_a_run_is_named_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert mark_of(Path("runs/a")) == mark_of(tmp_path / "runs" / "a")
    assert len({mark_of(Path(place)) for place in ("runs/a", "runs/b", "others/a")}) == 3


@pytest.mark.parametrize(("size", "memory"), [(1, True), (2**60, False)])
def test_memory_is_taken_only_if_it_has_room_for_two_versions(
    size: int, memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = new_weights_dir("room", size=size)
    shutil.rmtree(made)
    assert made.parent == (Path("/dev/shm") if memory and Path("/dev/shm").is_dir() else tmp_path.resolve())


def test_weights_go_where_all_nodes_see_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "run"
    assert weights_parent("", run, nodes=1) == "" and not run.exists()
    assert weights_parent("", run, nodes=2) == str(run.resolve())
    assert new_weights_dir("run", str(run)).parent == run.resolve()
    assert weights_parent("/elsewhere", run, nodes=1) == weights_parent("/elsewhere", run, nodes=2) == "/elsewhere"
    monkeypatch.chdir(tmp_path)  # actors are elsewhere
    assert weights_parent("", Path("runs/run"), nodes=2) == str(run.resolve())
    assert weights_parent("runs", run, nodes=2) == str(run.parent.resolve())
    with pytest.raises(AffectError, match=r"rollout.weights_dir=.*no such directory; make it"):
        new_weights_dir("run", str(tmp_path / "absent"))
