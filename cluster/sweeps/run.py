"""Runs a sweep: the warm start that trials share, Ray Tune, and what was found."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from affect_rl.config.actors import Actors, actors_of, largest, logical_cpus, placed_actors, sft_workers
from affect_rl.config.load import Config
from affect_rl.data.dataset import Dataset
from affect_rl.errors import AffectError
from affect_rl.experiments.sweep import SweepSpec
from affect_rl.experiments.sweep_results import SweepResults
from affect_rl.scoring.scoring import wheels_of
from cluster.experiments.stages import warm_started
from cluster.prospect import check_memory_and_disk
from cluster.runtime.capacity import Capacity, check_actors, connected_cluster, this_machine
from cluster.runtime.placement import resources
from cluster.runtime.services import Services
from cluster.runtime.session import joins_cluster, ray_session
from cluster.sweeps.kept import keep, refuse_another
from cluster.sweeps.schedulers import scheduler
from cluster.sweeps.search import domain, search
from cluster.sweeps.summary import summarise
from cluster.sweeps.trial import SCORE, run_trial

logger = logging.getLogger(__name__)


def run_sweep(spec: SweepSpec, out: Path, more: tuple[str, ...], command: str) -> SweepResults:
    """Run the trials, or the rest of those that were cut off, and write what was found to `out`.

    Raises:
        AffectError: a setting does not fit, `out` holds another sweep, resources are missing, or a trial failed.
    """
    configs = spec.check(more)
    runs, tune_dir = out.resolve() / "runs", out.resolve() / "tune"
    config = configs[0]
    config = config.model_copy(update={"runs_dir": str(runs), "name": spec.name, "cluster": _room(configs, spec)})
    goes_on = tune.Tuner.can_restore(str(tune_dir))
    if goes_on:
        refuse_another(spec, config, out)
    for trial in () if goes_on else configs:
        own = trial.model_copy(update={"runs_dir": str(runs), "name": spec.name})
        check_memory_and_disk(own, ["train"] if trial.policy else ["sft", "train"], here=not joins_cluster(config))
    wheels_of(config.evaluate.wheels, config.evaluate.mapping)
    dataset = Dataset.of(config.data)
    if not joins_cluster(config):
        check_room(spec, configs, this_machine(config))
    random.seed(spec.seed)  # PBT perturbs settings with the one
    np.random.seed(spec.seed)  # and draws them from the other
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # paths of settings are relative to the job's directory
    with ray_session(config):
        check_room(spec, configs, connected_cluster())
        if not (config.policy or spec.sweeps_warm_start):
            with closing(Services()) as services:
                warm_started(config, dataset, services)
        if not goes_on:
            keep(spec, config, out)
        results = _tuner(spec, config, runs, tune_dir, more).fit()
        if results.errors:
            raise AffectError(
                f"{len(results.errors)} of {len(results)} trials failed, see {tune_dir}; the same command goes on with "
                f"them. The first: {str(results.errors[0]).strip().splitlines()[-1]}"
            )
        return summarise(spec, config, out, command)


def check_room(spec: SweepSpec, configs: Sequence[Config], capacity: Capacity) -> None:
    """Raise `AffectError` unless ``concurrent`` trials of any settings, and warm starts, find their CPUs and GPUs.

    Args:
        spec: the sweep.
        configs: as `SweepSpec.check` returns them; what counts is the largest need of each kind of actor.
        capacity: what there is.
    """
    trials = _times(spec.concurrent, largest(placed_actors(config, "train") for config in configs))
    stages = {"train": trials}
    if not configs[0].policy:
        workers = largest([sft_workers(config.sft)] for config in configs)
        alone = largest(actors_of(config, "sft") for config in configs)
        stages["sft"] = [*trials, *_times(spec.warm_starts, workers)] if spec.sweeps_warm_start else alone
    check_actors(stages, capacity)


def _times(count: int, actors: Sequence[Actors]) -> list[Actors]:
    return [replace(one, count=count * one.count) for one in actors]


def _room(configs: Sequence[Config], spec: SweepSpec) -> Any:
    """A local Ray has logical CPUs for all trials that run at the same time."""
    cluster = configs[0].cluster
    cpus = cluster.num_cpus or spec.concurrent * logical_cpus(*configs)
    return cluster.model_copy(update={"num_cpus": max(cpus, os.cpu_count() or 1)})


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
            scheduler=scheduler(spec, config.train.steps),
            search_alg=search(spec),
        ),
        run_config=tune.RunConfig(name=tune_dir.name, storage_path=str(tune_dir.parent), verbose=1),
    )
