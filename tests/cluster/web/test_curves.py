"""Metrics files that are read while they are written, and curves that are thinned."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.watching.trackers import JsonlTracker
from cluster.web.watch.curves import Column, MetricsLog


def _read(log: MetricsLog, name: str = "loss") -> list[tuple[int, float]]:
    log.refresh()
    column = log.columns.get(name, Column(array("q"), array("d")))
    return list(zip(column.steps, column.values, strict=True))


def test_lines_are_read_once_and_one_without_its_end_later(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file)
    assert _read(log) == [] and log.reading == 0
    JsonlTracker(tmp_path).log(1, {"loss": 1.0, "gap": float("nan")})
    assert _read(log) == [(1, 1.0)] and "gap" not in log.columns
    whole = json.dumps({"step": 2, "time": 1.0, "loss": 0.5}) + "\n"
    with file.open("a") as lines:
        lines.write(whole[:20])
        lines.flush()
        before = log.reading
        assert _read(log) == [(1, 1.0)] and log.reading == before
        lines.write(whole[20:] + "no JSON\n" + '"nor a step"\n')
    assert _read(log) == [(1, 1.0), (2, 0.5)]


def test_a_resumed_run_and_a_deleted_file_are_noticed(tmp_path: Path) -> None:
    tracker, log = JsonlTracker(tmp_path), MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        tracker.log(step, {"loss": step})
    assert len(_read(log)) == 3
    before = log.reading
    JsonlTracker(tmp_path, first_step=2)
    assert _read(log) == [(1, 1.0), (2, 2.0)] and log.reading > before
    before = log.reading
    (tmp_path / "metrics.jsonl").unlink()
    assert _read(log) == [] and log.last == {} and log.reading > before


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 60), st.integers(0, 5))
def test_a_thinned_curve_keeps_the_ends_the_extremes_and_the_mean(values: list[float], most: int, first: int) -> None:
    steps = range(first, first + 2 * len(values), 2)
    curve = Column(array("q", steps), array("d", values)).thinned(most)
    assert len(curve.steps) == len(curve.mean) == len(curve.low) == len(curve.high) == min(most, len(values))
    assert curve.steps == sorted(curve.steps) and curve.steps[-1] == steps[-1]
    assert min(curve.low) == pytest.approx(min(values), rel=1e-5)
    assert max(curve.high) == pytest.approx(max(values), rel=1e-5)
    if len(values) % len(curve.steps) == 0:
        assert np.mean(curve.mean) == pytest.approx(np.mean(values), rel=1e-4, abs=20)
    if len(values) <= most:
        assert curve.mean == pytest.approx(values, rel=1e-5)


def test_the_time_of_a_step_is_that_of_the_newest_and_a_resumption_does_not_count(tmp_path: Path) -> None:
    file, log = tmp_path / "metrics.jsonl", MetricsLog(tmp_path / "metrics.jsonl")
    log.refresh()
    assert log.step_s() is None
    times = [1.0, 100.0, 2.0, 7.0, 12.0, 17.0]
    file.write_text("".join(json.dumps({"step": n, "time": time}) + "\n" for n, time in enumerate(times)))
    log.refresh()
    assert log.step_s() == 5.0


def test_ten_thousand_steps_take_a_moment_and_what_is_new_next_to_nothing(tmp_path: Path) -> None:
    names = [f"metric/{n}" for n in range(40)]
    line = dict.fromkeys(names, 0.123456789)
    file, log = tmp_path / "metrics.jsonl", MetricsLog(tmp_path / "metrics.jsonl")
    file.write_text("".join(json.dumps({"step": n, "time": n, **line}) + "\n" for n in range(10_000)))
    log.refresh()
    assert log.last["step"] == 9_999
    answer = json.dumps({name: curve._asdict() for name, curve in log.curves(names, 200).items()})
    assert len(answer) < 40 * 200 * 45
    with file.open("a") as lines:
        lines.write(json.dumps({"step": 10_000, **line}) + "\n")
    before = log.reading
    log.refresh()
    assert log.reading == before + 1 and log.columns["metric/0"].steps[-1] == 10_000
