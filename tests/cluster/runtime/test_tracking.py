"""The file of a run's metrics: what a resumed run keeps of it."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.runtime.tracking import Tracker


def test_a_resumed_run_drops_the_steps_that_it_does_again_and_a_line_that_was_cut_off(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        tracker = Tracker(tmp_path, step - 1)
        tracker.log(step, {"loss": step / 2, "gap": float("nan")})
        tracker.close()
    file = tmp_path / "metrics.jsonl"
    with file.open("a") as lines:
        lines.write('{"step": 4, "lo')
    tracker = Tracker(tmp_path, 2)
    tracker.log(3, {"loss": 7.0})
    tracker.close()
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in kept] == [(1, 0.5), (2, 1.0), (3, 7.0)]
    assert kept[0]["gap"] is None
