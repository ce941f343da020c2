"""Spans and the Chrome trace that they are written to."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affect_rl.timeline import GAP_S, Span, Spans, Timeline, read_timeline


def test_a_block_is_recorded_with_the_wall_clock_even_if_it_fails() -> None:
    spans, before = Spans(), time.time()
    with pytest.raises(KeyError), spans("learn"):
        raise KeyError
    (span,) = spans.fetch()
    assert span.what == "learn" and before <= span.begun <= time.time() and span.seconds >= 0
    assert spans.fetch() == []


def test_what_follows_its_like_at_once_is_one_span() -> None:
    spans = Spans()
    for what, begun in (("play", 0.0), ("play", 1 + GAP_S / 2), ("play", 3.0), ("load", 4.0), ("play", 5.0)):
        spans.add(what, begun, 1.0)
    assert [(s.what, s.begun, round(s.seconds, 4)) for s in spans.fetch()] == [
        ("play", 0.0, 2 + GAP_S / 2), ("play", 3.0, 1.0), ("load", 4.0, 1.0), ("play", 5.0, 1.0),
    ]  # fmt: skip


def test_a_resumed_run_goes_on_with_the_trace_that_a_kill_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    Timeline(path).write({"loop": [Span("rollout", 1.0, 2.0)], "rollout-0": [Span("play", 1.0, 1.5)]})
    with path.open("a") as file:
        file.write('{"ph": "X", "na')
    Timeline(path).write({"rollout-0": [Span("play", 9.0, 1.0)], "learner-0": []})
    assert read_timeline(path) == {
        "loop": [Span("rollout", 1.0, 2.0)],
        "rollout-0": [Span("play", 1.0, 1.5), Span("play", 9.0, 1.0)],
    }
    events = json.loads(path.read_text().rstrip(",\n") + "]")
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert all(names[e["pid"]] == e["cat"] for e in events if e["ph"] == "X")


@given(st.lists(st.tuples(st.sampled_from(["play", "load"]), st.floats(0, 2e9), st.floats(0, 1e4)), max_size=20))
def test_a_trace_is_what_json_reads_once_it_is_closed(rows: list[tuple[str, float, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timeline.json"
        Timeline(path).write({"rollout-0": [Span(*row) for row in rows]})
        events = json.loads(path.read_text().rstrip(",\n") + "]") if rows else []
        assert sum(event["ph"] == "X" for event in events) == len(rows)
        read = read_timeline(path).get("rollout-0", [])
        assert [span.begun for span in read] == pytest.approx([begun for _, begun, _ in rows], abs=1e-5)
