"""Where results may be written, and what they say in Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from affect_rl.errors import AffectError
from affect_rl.experiments.results import Arm, Interval, Measure, Results, check_replaceable, write_results

HALF = Interval(value=0.5, low=0.4, high=0.6)
ARM = Arm(metrics={"weighted_f1": HALF}, per_seed=[{"weighted_f1": 0.5}], tokens_per_sample=1, seconds_per_sample=1)
MEASURES = [
    Measure(arm="b", name="gain/helpful", samples=7, mean=Interval(value=-0.1, low=-0.2, high=0.05)),
    Measure(arm="a", name="load_entropy", samples=1, mean=Interval(value=0.9, low=0.9, high=0.9)),
    Measure(arm="b", name="load_entropy", samples=1, mean=Interval(value=0.8, low=0.7, high=0.9)),
]


def make_results(**changes: object) -> Results:
    fields = {
        "experiment": "e", "title": "Does it?", "dataset": "d", "split": "test", "samples": 9, "seeds": [0],
        "selection": "dev", "command": "c", "labels": [], "arms": {"a": ARM, "b": ARM}, "comparisons": [],
    }  # fmt: skip
    return Results.model_validate(fields | changes)


def test_results_replace_results_and_nothing_else(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "new")
    check_replaceable(tmp_path)  # empty
    write_results(tmp_path / "synth" / "rag", make_results(), "", {})
    check_replaceable(tmp_path / "synth" / "rag")
    (tmp_path / "file").touch()
    for other in (tmp_path, tmp_path / "synth", tmp_path / "file"):
        with pytest.raises(AffectError, match="holds no experiment's results; give another --out"):
            check_replaceable(other)


def test_results_may_lie_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_results(Path("."), make_results(), "", {})
    assert Results.read(tmp_path) == make_results()


def test_measures_are_a_table_with_a_column_an_arm() -> None:
    text = make_results(measures=MEASURES, notes=["few seeds"]).markdown()
    assert "| measure | a | b |" in text
    assert "| gain/helpful (n = 7) |  | -0.100 [-0.200, 0.050] |" in text
    assert "| load_entropy (n = 1) | 0.900 [0.900, 0.900] | 0.800 [0.700, 0.900] |" in text
    assert text.endswith("- few seeds\n")
    assert "measure" not in make_results().markdown()
