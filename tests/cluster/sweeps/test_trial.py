"""A trial that goes on from another trial's checkpoint, and what it reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from affect_rl.errors import AffectError
from cluster.runtime.rundir import Progress, RunDirectory
from cluster.sweeps.trial import SCORE, STEP, TuneTracker, adopt


def run(path: Path, steps: range, keep: int = 10) -> RunDirectory:
    """A run that was scored best after each of `steps`; its files hold its name and the step."""
    directory = RunDirectory(path)
    for folder in ("checkpoints", "policies"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    for step in steps:
        progress = Progress(step=step, best_step=step, best_score=step / 10)
        directory.candidate(step).mkdir()
        (directory.candidate(step) / "weights").write_text(f"{path.name} {step}")
        checkpoint = directory.checkpoint(progress)
        (checkpoint / "optimiser").write_text(f"{path.name} {step}")
        directory.seal(checkpoint, progress, keep)
    (path / "config.yaml").write_text(f"name: {path.name}\n")
    return directory


def goes_on_from(directory: RunDirectory) -> str:
    """What its optimiser comes from."""
    _, checkpoint = directory.latest()
    assert checkpoint
    return (checkpoint / "optimiser").read_text()


def test_a_trial_goes_on_from_the_checkpoint_that_was_chosen(tmp_path: Path) -> None:
    good, bad = run(tmp_path / "good", range(2, 9, 2)), run(tmp_path / "bad", range(2, 7, 2))
    adopt(good.path / "checkpoints" / "step-00004", bad)
    assert goes_on_from(bad) == "good 4"
    assert len(bad.checkpoints()) == 1 and not (bad.path / "config.yaml").exists(), "its settings are to change"
    assert goes_on_from(good) == "good 8"


def test_a_score_that_other_settings_earned_is_not_taken_over(tmp_path: Path) -> None:
    good, bad = run(tmp_path / "good", range(2, 9, 2)), run(tmp_path / "bad", range(2, 7, 2))
    adopt(good.path / "checkpoints" / "step-00004", bad)
    progress, _ = bad.latest()
    assert (progress.step, progress.best_step, progress.best_score) == (4, -1, -1)
    assert good.latest()[0].best_score == 0.8


@pytest.mark.parametrize(("left", "newest"), [(range(2, 13, 2), "good 12"), (range(2, 4, 2), "good 2")])
def test_a_checkpoint_that_is_gone_is_replaced_by_the_newest(tmp_path: Path, left: range, newest: str) -> None:
    """The other trial keeps three; or it has gone on from somebody's earlier one itself."""
    good, bad = run(tmp_path / "good", left, keep=3), run(tmp_path / "bad", range(2, 7, 2))
    adopt(good.path / "checkpoints" / "step-00004", bad)
    assert goes_on_from(bad) == newest


def test_a_checkpoint_that_is_being_deleted_is_passed_over(tmp_path: Path) -> None:
    good, bad = run(tmp_path / "good", range(2, 9, 2)), run(tmp_path / "bad", range(2, 7, 2))
    (good.path / "checkpoints" / "step-00004" / "progress.json").unlink()  # the first that `seal` deletes
    adopt(good.path / "checkpoints" / "step-00004", bad)
    assert goes_on_from(bad) == "good 8"
    assert sorted(path.name for path in bad.path.iterdir()) == ["checkpoints", "metrics.jsonl", "policies"]


def test_without_any_checkpoint_the_trial_s_own_are_left(tmp_path: Path) -> None:
    good, bad = run(tmp_path / "good", range(0)), run(tmp_path / "bad", range(2, 7, 2))
    with pytest.raises(AffectError, match=r"good: has no checkpoint to go on from"):
        adopt(good.path / "checkpoints" / "step-00004", bad)
    assert goes_on_from(bad) == "bad 6"


def test_a_step_is_reported_once_and_with_its_own_checkpoint(tmp_path: Path) -> None:
    directory, told = run(tmp_path / "trial", range(2, 3)), list[tuple[float, float]]()
    tracker = TuneTracker(directory, lambda scored, checkpoint: told.append((scored[STEP], scored[SCORE])))
    tracker.log(3, {"loss/policy": 1})
    tracker.log(4, {"dev/f_s": 0.5})
    # The learner is lost before the checkpoint of step 4, so 3 and 4 are done again.
    tracker.log(3, {"loss/policy": 1})
    assert told == []
    tracker.log(4, {"dev/f_s": 0.6})
    tracker.log(5, {"loss/policy": 1})
    assert told == [(4, 0.6)]
