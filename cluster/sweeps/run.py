"""Runs a sweep: the warm start that trials share, Ray Tune, and what was found."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import SearchAlgorithm, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator

from affect_rl.config.actors import logical_cpus, placed_actors
from affect_rl.config.load import Config
from affect_rl.data.dataset import Dataset
from affect_rl.errors import AffectError
from affect_rl.experiments.sweep import Asha, Pbt, Range, SweepSpec
from affect_rl.experiments.sweep_results import SweepResults
from affect_rl.scoring.scoring import wheels_of
from cluster.experiments.stages import warm_started
from cluster.runtime.capacity import Capacity, check_resources, connected_cluster, this_machine
from cluster.runtime.placement import resources
from cluster.runtime.services import Services
from cluster.runtime.session import joins_cluster, ray_session
from cluster.sweeps.summary import summarise
from cluster.sweeps.trial import SCORE, STEP, run_trial

logger = logging.getLogger(__name__)


def run_sweep(spec: SweepSpec, out: Path, more: tuple[str, ...], command: str) -> SweepResults:
    """Run the trials, or the rest of those that were cut off, and write what was found to `out`.

    Raises:
        AffectError: a setting does not fit, resources are missing, or a trial failed.
    """
    config = spec.check(more)
    runs, tune_dir = out.resolve() / "runs", out.resolve() / "tune"
    config = config.model_copy(update={"runs_dir": str(runs), "name": spec.name, "cluster": _room(config, spec)})
    wheels_of(config.evaluate.wheels, config.evaluate.mapping)
    dataset = Dataset.of(config.data)
    if not joins_cluster(config):
        check_room(spec, config, this_machine(config))
    random.seed(spec.seed)  # PBT perturbs settings with the one
    np.random.seed(spec.seed)  # and draws them from the other
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # paths of settings are relative to the job's directory
    with ray_session(config):
        check_room(spec, config, connected_cluster())
        if not (config.policy or spec.sweeps_warm_start):
            with closing(Services()) as services:
                warm_started(config, dataset, services)
        results = _tuner(spec, config, runs, tune_dir, more).fit()
        if results.errors:
            raise AffectError(
                f"{len(results.errors)} of {len(results)} trials failed, see {tune_dir}; the same command goes on with "
                f"them. The first: {str(results.errors[0]).strip().splitlines()[-1]}"
            )
        return summarise(spec, config, out, command)


def check_room(spec: SweepSpec, config: Config, capacity: Capacity) -> None:
    """Raise `AffectError` unless ``concurrent`` trials, and the warm start, find their CPUs and GPUs."""
    trial = placed_actors(config, "train")
    others = [replace(actors, count=actors.count * (spec.concurrent - 1)) for actors in trial if spec.concurrent > 1]
    check_resources(config, ["train"], capacity, others)
    if not config.policy:
        check_resources(config, ["sft"], capacity, [*trial, *others] if spec.sweeps_warm_start else [])


def _room(config: Config, spec: SweepSpec) -> Any:
    """A local Ray has logical CPUs for all trials that run at the same time."""
    cpus = config.cluster.num_cpus or spec.concurrent * logical_cpus(config)
    return config.cluster.model_copy(update={"num_cpus": max(cpus, os.cpu_count() or 1)})


def _tuner(spec: SweepSpec, config: Config, runs: Path, tune_dir: Path, more: tuple[str, ...]) -> tune.Tuner:
    def bundles(settings: dict[str, Any]) -> tune.PlacementGroupFactory:
        trial = spec.trial_config(settings, more)
        return tune.PlacementGroupFactory([{}, *resources(placed_actors(trial, "train"))])

    trainable = tune.with_resources(partial(run_trial, spec=spec, more=more, runs=runs), bundles)
    space = {key: domain(values) for key, values in spec.space.items()}
    if tune.Tuner.can_restore(str(tune_dir)):
        logger.info("%s: goes on", tune_dir)
        return tune.Tuner.restore(str(tune_dir), trainable, resume_errored=True, param_space=space)
    for begun in runs.glob("trial-*"):  # of a sweep that was killed before Tune had written anything
        shutil.rmtree(begun)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=SCORE,
            mode="max",
            num_samples=spec.trials,
            max_concurrent_trials=spec.concurrent if spec.search == "optuna" else None,
            scheduler=scheduler(spec, config),
            search_alg=search(spec),
        ),
        run_config=tune.RunConfig(name=tune_dir.name, storage_path=str(tune_dir.parent), verbose=1),
    )


def domain(values: Range) -> Any:
    """As Ray Tune says it."""
    if values.integers:
        low, high = values.integers
        return tune.randint(low, high + 1)
    if values.uniform:
        return tune.uniform(*values.uniform)
    return tune.loguniform(*values.loguniform) if values.loguniform else tune.choice(values.choice)


def scheduler(spec: SweepSpec, config: Config) -> TrialScheduler:
    """Which trials go on, by the training step."""
    chosen = spec.scheduler
    if isinstance(chosen, Asha):
        return ASHAScheduler(
            time_attr=STEP,
            max_t=config.train.steps,
            grace_period=chosen.grace_steps,
            reduction_factor=chosen.reduction,
        )
    if isinstance(chosen, Pbt):
        return PopulationBasedTraining(
            time_attr=STEP,
            perturbation_interval=chosen.perturb_every,
            hyperparam_mutations={key: values.choice or domain(values) for key, values in spec.space.items()},
            quantile_fraction=chosen.quantile,
            resample_probability=chosen.resample,
            custom_explore_fn=partial(_inside, spec.space),
        )
    return FIFOScheduler()


def _inside(space: Mapping[str, Range], settings: dict[str, Any]) -> dict[str, Any]:
    """Perturbed settings, none of which leaves its range."""
    return {key: space[key].clipped(value) for key, value in settings.items()}


def search(spec: SweepSpec) -> Searcher | SearchAlgorithm:
    """Who proposes settings.

    Raises:
        AffectError: Optuna is not installed.
    """
    if spec.search == "random":
        # A population is whole from the start: with PBT, trials pause while others run.
        at_once = 0 if isinstance(spec.scheduler, Pbt) else spec.concurrent
        return BasicVariantGenerator(max_concurrent=at_once, random_state=spec.seed)
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise AffectError("search=optuna: the package is not installed; pip install 'affect-rl[sweep]'") from None
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(seed=spec.seed)
