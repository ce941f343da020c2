"""Stages of experiments: two that want the same one do not make it twice, and share what there is to do."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cluster.experiments.stages import TakenError, _once, shared_out


def test_who_comes_second_is_told_and_finds_the_stage_later(tmp_path: Path) -> None:
    stage, made = tmp_path / "sft-1", tmp_path / "sft-1" / "sft"
    events: list[str] = []
    told = threading.Event()

    def want_it_too() -> None:
        with pytest.raises(TakenError, match="sft-1: another process makes it") as taken:
            _once(stage, made, lambda: events.append("twice"))
        events.append("told")
        told.set()
        taken.value.wait()
        _once(stage, made, lambda: events.append("twice"))
        events.append("found")

    second = threading.Thread(target=want_it_too, daemon=True)

    def make() -> None:
        second.start()
        assert told.wait(timeout=60)
        second.join(timeout=0.2)
        assert second.is_alive(), "it waits"
        events.append("made")
        made.mkdir(parents=True)

    _once(stage, made, make)
    second.join(timeout=60)
    assert events == ["told", "made", "found"]


def test_a_stage_that_failed_is_free(tmp_path: Path) -> None:
    stage, made = tmp_path / "sft-1", []
    with pytest.raises(ZeroDivisionError):
        _once(stage, stage, lambda: 1 // 0)
    _once(stage, stage, lambda: made.append(True))
    assert made


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_jobs_are_shared_out(tmp_path: Path, processes: int) -> None:
    """Six arms of two seeds each want the warm start of their seed, and something of their own."""
    jobs = [(seed, arm) for seed in range(2) for arm in range(6)]
    events: list[tuple[int, str]] = []
    found: dict[int, dict[tuple[int, int], str]] = {}

    def process(number: int) -> None:
        def stage(name: str) -> str:
            def make() -> None:
                events.append((number, name))
                time.sleep(0.05)
                (tmp_path / name).mkdir()

            _once(tmp_path / name, tmp_path / name, make)
            return name

        def work(job: tuple[int, int]) -> str:
            seed, arm = job
            stage(f"sft-{seed}")
            return stage(f"train-{seed}-{arm}")

        found[number] = shared_out(jobs, work, rest=lambda: None)

    threads = [threading.Thread(target=process, args=(number,)) for number in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    stages = [name for _, name in events]
    assert sorted(stages) == sorted({*(f"sft-{s}" for s, _ in jobs), *(f"train-{s}-{a}" for s, a in jobs)})
    assert list(found.values()) == [{(s, a): f"train-{s}-{a}" for s, a in jobs}] * processes
    workers = {number for number, _ in events}
    assert len(workers) >= min(processes, 2)


def test_who_has_nothing_to_do_gives_back_what_it_holds(tmp_path: Path) -> None:
    stage, begun, enough = tmp_path / "sft-1", threading.Event(), threading.Event()
    events: list[str] = []

    def make() -> None:
        begun.set()
        assert enough.wait(timeout=60)
        stage.mkdir()

    def rest() -> None:
        events.append("rested")
        enough.set()

    threading.Thread(target=_once, args=(stage, stage, make), daemon=True).start()
    assert begun.wait(timeout=60)
    assert shared_out([1], lambda _: _once(stage, stage, lambda: events.append("made twice")), rest) == {1: None}
    assert events == ["rested"]


def test_a_failure_is_not_put_off(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        shared_out([1, 0, 2], lambda job: 1 // job, rest=lambda: None)
