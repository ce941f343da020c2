"""What a sweep sees to before its first trial: room, and that it is the sweep that its directory holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from affect_rl.errors import AffectError
from affect_rl.experiments.sweep import SweepSpec
from cluster.runtime.capacity import Capacity, Node
from cluster.sweeps.kept import keep, refuse_another
from cluster.sweeps.run import check_room

LR = {"learner.lr": {"loguniform": [1e-5, 1e-3]}}


def sweep(space: dict[str, Any] = LR, **changes: Any) -> SweepSpec:
    tree = {"name": "s", "config": "configs/quickstart.yaml", "space": space, **changes}
    return SweepSpec.model_validate(tree)


def check(spec: SweepSpec, cpus: float) -> None:
    check_room(spec, spec.check(), Capacity("the cluster", (Node(cpus),)))


@pytest.mark.parametrize("choice", [[1, 30], [30, 1]])
def test_the_largest_trial_must_fit(choice: list[int]) -> None:
    spec = sweep({"learner.workers": {"choice": choice}, "learner.lr": {"choice": [0.1, 0.2]}})
    check(spec, 40)
    with pytest.raises(AffectError, match="30 x 1 for each learner"):
        check(spec, 30)


def test_trials_at_the_same_time_must_fit() -> None:
    spec = sweep(concurrent=4)
    check(spec, 4 * 10)
    with pytest.raises(AffectError, match="4 x 1 for each learner"):
        check(spec, 10)


def test_every_warm_start_that_is_made_at_a_time_must_fit() -> None:
    spec = sweep({"sft.lr": {"uniform": [0.1, 1]}}, concurrent=3, overrides={"sft.workers": 10})
    check(spec, 60)
    with pytest.raises(AffectError, match="30 x 1 for each sft worker"):
        check(spec, 40)


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"trials": 9}, "trials=8, now it is 9"),
        ({"concurrent": 2}, "concurrent=1, now it is 2"),
        ({"scheduler": {"name": "asha", "grace_steps": 3}}, "scheduler.grace_steps=1, now it is 3"),
        ({"scheduler": {"name": "none"}}, "scheduler.name='asha', now it is 'none'"),
        ({"space": {"learner.lr": {"loguniform": [1e-5, 1e-2]}}}, "space.learner.lr="),
        ({"overrides": {"learner.epochs": 2}}, "learner.epochs=1, now it is 2"),
    ],
)
def test_another_sweep_is_not_taken_for_the_one_that_was_begun(
    tmp_path: Path, changes: dict[str, Any], differs: str
) -> None:
    begun, other = sweep(), sweep(**changes)
    keep(begun, begun.check()[0], tmp_path)
    with pytest.raises(AffectError) as error:
        refuse_another(other, other.check()[0], tmp_path)
    assert f"was begun with {differs}" in str(error.value)


def test_what_changes_no_trial_may_change(tmp_path: Path) -> None:
    begun, other = sweep(), sweep(title="Which?", overrides={"evaluate.resamples": 7, "learner.deadline_s": 9})
    keep(begun, begun.check()[0], tmp_path)
    refuse_another(begun, begun.check()[0], tmp_path)
    refuse_another(other, other.check()[0], tmp_path)
