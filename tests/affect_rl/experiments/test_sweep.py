"""What a sweep's file may say, and what becomes of its trials in tables and on a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from affect_rl.errors import AffectError
from affect_rl.experiments.report.plots import parallel_coordinates
from affect_rl.experiments.report.sweep import render_sweep
from affect_rl.experiments.results import CURVES, Interval
from affect_rl.experiments.sweep import Range, SweepSpec, load_sweep
from affect_rl.experiments.sweep_results import SweepResults, Trial, read_curves, write_sweep

SPACE: dict[str, Any] = {"learner.lr": {"loguniform": [1e-5, 1e-3]}, "learner.epochs": {"choice": [1, 2]}}


def read(folder: Path, **changes: Any) -> SweepSpec:
    tree = {"name": "s", "config": "configs/quickstart.yaml", "space": SPACE} | changes
    (folder / "sweep.yaml").write_text(yaml.safe_dump(tree))
    return load_sweep(folder / "sweep.yaml")


@pytest.mark.parametrize("file", sorted(Path("configs/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_that_ship_can_be_run(file: Path) -> None:
    spec = load_sweep(file)
    assert spec.name == file.stem
    for config in spec.check(("model.base=tiny",)):
        assert config.train.checkpoint_every == config.train.eval_every


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"space": {}}, "space is empty"),
        ({"space": {"learner.lr": {"uniform": [1, 2], "choice": [1]}}}, "space.learner.lr: give exactly one of"),
        ({"space": {"learner.lr": {"uniform": [2, 1]}}}, "the range from 2.0 to 1.0 is empty"),
        ({"space": {"learner.lr": {"loguniform": [0, 1]}}}, "a logarithm needs numbers above 0"),
        ({"space": {"learner.lr": {"logunifrom": [0, 1]}}}, "did you mean `loguniform`?"),
        ({"scheduler": {"name": "pbt", "perturb_every": 10}, "search": "optuna"}, "pbt proposes settings itself"),
        ({"scheduler": {"name": "pbt", "perturb_every": 10}, "trials": 1}, "population of 2 or more"),
        ({"scheduler": {"name": "asha", "grace": 2}}, "did you mean `grace_steps`?"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AffectError) as error:
        read(tmp_path, **changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"space": {"learner.lr": {"uniform": [-1, 1]}}}, "sweep s, learner.lr=-1.0: .*greater than or equal to 0"),
        ({"space": {"learner.rate": {"uniform": [0, 1]}}}, "unknown key `learner.rate`"),
        ({"space": {"train.checkpoint_every": {"choice": [1]}}}, "whenever it is scored"),
        ({"overrides": {"train.eval_every": 0}}, "train.eval_every=0: trials are compared"),
        (
            {"scheduler": {"name": "pbt", "perturb_every": 7}},
            "perturb_every=7 is not a multiple of train.eval",
        ),
        (
            {"scheduler": {"name": "pbt", "perturb_every": 10}, "space": {"sft.lr": {"uniform": [0.1, 1]}}},
            "space.sft.lr: pbt changes settings while a trial trains",
        ),
    ],
)
def test_settings_are_checked_before_anything_starts(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AffectError, match=message):
        read(tmp_path, **changes).check()


def test_the_command_line_cannot_undo_what_is_searched(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=r"learner\.lr: sweep s searches it"):
        read(tmp_path).check(("learner.lr=1",))


def test_trials_share_a_warm_start_unless_its_settings_are_searched(tmp_path: Path) -> None:
    assert not read(tmp_path).sweeps_warm_start
    assert read(tmp_path, space=SPACE | {"sft.lr": {"uniform": [0.1, 1]}}).sweeps_warm_start
    assert read(tmp_path, space=SPACE | {"seed": {"choice": [0, 1]}}).sweeps_warm_start


def test_trials_of_all_ends_of_the_space_are_known_before(tmp_path: Path) -> None:
    space = {"learner.workers": {"choice": [8, 1]}, "rollout.workers": {"integers": [1, 4]}}
    configs = read(tmp_path, space=space).check()
    assert {config.learner.workers for config in configs} == {8, 1}
    assert {config.rollout.bounds[0] for config in configs} == {1, 4}


def test_as_many_warm_starts_are_made_at_a_time_as_differ(tmp_path: Path) -> None:
    assert read(tmp_path, concurrent=4).warm_starts == 1
    assert read(tmp_path, concurrent=4, space={"sft.lr": {"uniform": [0.1, 1]}}).warm_starts == 4
    assert read(tmp_path, concurrent=4, space=SPACE | {"seed": {"choice": [0, 1]}}).warm_starts == 2


def test_perturbed_settings_stay_in_their_range() -> None:
    assert Range(uniform=(0, 1)).clipped(1.2) == 1 and Range(loguniform=(0.1, 1)).clipped(0.08) == 0.1
    assert Range(integers=(1, 4)).clipped(2.4) == 2 and Range(choice=["a", "b"]).clipped("b") == "b"


def results(count: int = 3) -> SweepResults:
    trials = [
        Trial(name=f"trial-{n}", settings={"learner.lr": 10.0 ** -n, "learner.epochs": n, "task.score": "a<b"},
              steps=4, best_step=2, score=0.9 - n / 10, state="finished" if n else "ended early")
        for n in range(1, count + 1)
    ]  # fmt: skip
    interval = {"weighted_f1": Interval(value=0.8, low=0.7, high=0.9)}
    return SweepResults(
        name="s", title="Which?", metric="weighted_f1", command="c", trials=trials, best={"dev": interval}
    )


def test_what_is_written_is_read_and_shown(tmp_path: Path) -> None:
    rows = [
        {"arm": f"trial-{n}", "seed": 0, "step": step, "metric": "dev/weighted_f1", "value": step / 10}
        for n in (1, 2, 3) for step in (1, 2)
    ]  # fmt: skip
    write_sweep(tmp_path, results(), rows)
    found = SweepResults.read(tmp_path)
    assert found == results()
    text = found.markdown()
    assert "| trial-1 | 0.1 | 1 | a<b | 80.0 | 2 | 4 | finished |" in text
    assert "trial-1 on dev: weighted F1 80.0 [70.0, 90.0]" in text and "too high" in text
    page = render_sweep(found, read_curves(tmp_path))
    assert page == render_sweep(found, read_curves(tmp_path))
    assert "Weighted F1 on dev" in page and "a&lt;b" in page and "<script" not in page
    assert page.count("<svg") == 3 + 2, "a key for each trial, two plots"
    assert len(render_sweep(results(1), pa.table({f.name: pa.array([], f.type) for f in CURVES})))


@given(st.lists(st.tuples(st.floats(0, 1e6), st.sampled_from(["x", "y"]), st.booleans()), min_size=1, max_size=5))
def test_any_settings_can_be_plotted(rows: list[tuple[float, str, bool]]) -> None:
    svg = parallel_coordinates(["a.b", "c", "d"], [(row, n) for n, row in enumerate(rows)], key="k", alt="alt")
    assert svg.startswith("<svg") and "nan" not in svg
