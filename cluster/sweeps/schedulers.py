"""Which trials go on: Ray Tune's schedulers, by the training step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from affect_rl.experiments.sweep import Asha, Pbt, Range, SweepSpec
from cluster.sweeps.search import domain
from cluster.sweeps.trial import SCORE, STEP, score_in
from cluster.watching.trackers import logged


def scheduler(spec: SweepSpec, steps: int) -> TrialScheduler:
    """That of a sweep whose trials have so many training steps."""
    chosen = spec.scheduler
    if isinstance(chosen, Asha):
        return ResumableAsha(
            time_attr=STEP, max_t=steps, grace_period=chosen.grace_steps, reduction_factor=chosen.reduction
        )
    if isinstance(chosen, Pbt):
        return Population(
            steps,
            time_attr=STEP,
            perturbation_interval=chosen.perturb_every,
            hyperparam_mutations={key: values.choice or domain(values) for key, values in spec.space.items()},
            quantile_fraction=chosen.quantile,
            resample_probability=chosen.resample,
            custom_explore_fn=partial(_inside, spec.space),
        )
    return FIFOScheduler()


class ResumableAsha(ASHAScheduler):
    """Successive halving that goes on after a kill with what trials had reported.

    Tune keeps the trials, but not the scheduler: its levels would be empty, and whoever came first would pass.
    """

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        reports = [*_reports(trial)]
        for report in reports:
            self.on_trial_result(tune_controller, trial, report)
        if reports and trial.is_finished():
            self.on_trial_complete(tune_controller, trial, reports[-1])


class Population(PopulationBasedTraining):
    """Population-based training that exchanges nothing at the last of `steps`: nobody could train with it."""

    def __init__(self, steps: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._steps = steps

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if result.get(STEP, 0) >= self._steps:
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)


def _reports(trial: Trial) -> Iterator[dict[str, float]]:
    """What a trial had reported when Tune last wrote down its state: Tune keeps the last report, the run all scores."""
    metrics = Path(trial.storage.experiment_fs_path).parent / "runs" / f"trial-{trial.trial_id}" / "metrics.jsonl"
    last = (trial.last_result or {}).get(STEP, 0)
    for found in logged(metrics):
        if found["step"] <= last and (score := score_in(found)) is not None:
            yield {STEP: found["step"], SCORE: score}


def _inside(space: Mapping[str, Range], settings: dict[str, Any]) -> dict[str, Any]:
    """Perturbed settings, none of which leaves its range."""
    return {key: space[key].clipped(value) for key, value in settings.items()}
