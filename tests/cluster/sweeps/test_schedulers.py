"""Ray Tune's schedulers as a sweep uses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from affect_rl.experiments.sweep import SweepSpec
from cluster.sweeps.schedulers import scheduler
from cluster.sweeps.trial import SCORE, STEP


def sweep(**settings: Any) -> SweepSpec:
    space = {"learner.lr": {"loguniform": [1e-5, 1e-3]}}
    return SweepSpec.model_validate({"name": "s", "config": "c.yaml", "space": space, "scheduler": settings})


def trial(out: Path, name: str, last: int = 0, **scores: float) -> Trial:
    """One that Tune has kept, with what it had reported last, and its run with the scores of its steps."""
    made = Trial("a trial", stub=True, trial_id=name, storage=StorageContext(str(out), "tune"))
    if last:
        made.update_last_result({STEP: last, SCORE: scores[f"step_{last}"]})
        lines = [{"step": int(step.removeprefix("step_")), "dev/f_s": score} for step, score in scores.items()]
        (out / "runs" / f"trial-{name}").mkdir(parents=True)
        metrics = out / "runs" / f"trial-{name}" / "metrics.jsonl"
        whole = "".join(json.dumps(line) + "\n" for line in [{"step": 1}, *lines])
        metrics.write_text(whole + '{"step": 7, "dev/')  # a kill cuts off what is being written
    return made


@pytest.mark.parametrize("ended", [Trial.TERMINATED, Trial.PENDING])
def test_halving_goes_on_after_a_kill_with_what_trials_had_reported(tmp_path: Path, ended: str) -> None:
    asha = scheduler(sweep(name="asha", grace_steps=2), 8)
    asha.set_search_properties(SCORE, "max")
    before, late = trial(tmp_path, "before", 4, step_2=0.9, step_4=0.9, step_6=0.1), trial(tmp_path, "late")
    before.set_status(ended)
    asha.on_trial_add(None, before)  # type: ignore[arg-type]  # it asks the controller nothing
    asha.on_trial_add(None, late)  # type: ignore[arg-type]
    assert asha.on_trial_result(None, late, {STEP: 2, SCORE: 0.1}) == TrialScheduler.STOP  # type: ignore[arg-type]


def test_a_population_does_not_exchange_when_nobody_could_train_with_it(tmp_path: Path) -> None:
    population = scheduler(sweep(name="pbt", perturb_every=2), 6)
    population.set_search_properties(SCORE, "max")
    one = trial(tmp_path, "one")
    answer = population.on_trial_result(None, one, {STEP: 6, SCORE: 0.1})  # type: ignore[arg-type]
    assert answer == TrialScheduler.CONTINUE
