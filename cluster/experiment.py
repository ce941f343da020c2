"""Runs an experiment: every arm with every seed, stage by stage, then the tables.

Stages lie side by side in ``runs_dir`` under the names that `affect_rl.experiment` gives them. A finished one
is found again, by this and by other experiments; a training that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from affect_rl.baselines import logistic_regression
from affect_rl.bootstrap import Difference, Estimate
from affect_rl.config import Config, dump_config
from affect_rl.data.dataset import Dataset
from affect_rl.data.library import evidence_library
from affect_rl.errors import AffectError
from affect_rl.experiment import (
    ExperimentSpec,
    base_key,
    bridge_key,
    evaluation_key,
    training_config,
    training_key,
    warm_start_key,
)
from affect_rl.files import whole_directory
from affect_rl.measures import measures
from affect_rl.results import (
    CURVES,
    CURVES_FILE,
    DETAILS_FILE,
    EPISODES_FILE,
    PREDICTIONS,
    PREDICTIONS_FILE,
    Arm,
    Comparison,
    Interval,
    Results,
    check_replaceable,
    write_results,
)
from affect_rl.sample import AffectSample
from affect_rl.scoring import Scoring, scoring_of, wheels_of
from affect_rl.seeds import derived_seed
from affect_rl.trajectory_store import trajectory_table
from cluster.bridge import bridge_warm_start
from cluster.evaluate import play_samples
from cluster.fusion_details import fusion_details, fusion_table
from cluster.jobs import Job, make_job, run_training, run_warm_start
from cluster.rundir import RunDirectory
from cluster.services import Services
from cluster.session import ray_session
from cluster.warm_start import create_policy
from rollout_workers.worker import EpisodeJob

logger = logging.getLogger(__name__)

EPISODES = 12
"""Evaluated episodes of the first seed that are kept in full, counterfactuals included."""

FEWEST_SEEDS = 3
"""Results of fewer seeds carry a note."""

FUSION_FILE = "fusion.parquet"
_ANSWERS = pa.schema([PREDICTIONS.field(name) for name in ("sample_id", "labels", "predicted")])

Answers = list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One arm under one seed: where its evaluation and (if it was trained) its training lie."""

    evaluation: Path
    training: Path | None

    def answers(self) -> Answers:
        """Predicted labels in the order of the samples."""
        return [tuple(labels) for labels in pq.read_table(self.evaluation / PREDICTIONS_FILE)["predicted"].to_pylist()]

    def fusion(self) -> list[dict[str, Any]]:
        """What fusion did with each sample, see `cluster.fusion_details`."""
        return pq.read_table(self.evaluation / FUSION_FILE).to_pylist()

    def cost(self) -> dict[str, float]:
        """Tokens and seconds per sample."""
        return json.loads((self.evaluation / "cost.json").read_text())


def run_experiment(spec: ExperimentSpec, out: Path, overrides: tuple[str, ...], command: str) -> Results:
    """Run what is not there yet, and write the result directory `out`.

    Raises:
        AffectError: `out` holds something else, an override would undo what tells arms apart, or the wheels cannot be
            read or do not fit the samples.
    """
    check_replaceable(out)
    base = spec.check(overrides)
    wheels, dataset = wheels_of(base.evaluate), Dataset.load(base.data.dir)
    samples = dataset.samples(base.evaluate.split, base.data.limit(base.evaluate.split))
    scoring = scoring_of(samples, wheels)
    found: dict[str, list[Evaluated]] = {arm: [] for arm in spec.arms}
    with ray_session(base), closing(Services()) as services:
        for seed in range(spec.seeds):
            for arm in spec.arms:
                logger.info("%s: %s, seed %d", spec.name, arm, seed)
                found[arm].append(_run_arm(spec, arm, seed, overrides, dataset, samples, services))
    results = _summarise(spec, base, samples, scoring, dataset, found, command)
    tables = dict(_tables(samples, found))
    if spec.fusion_details:
        arms = {arm: [(run.answers(), run.fusion()) for run in runs] for arm, runs in found.items()}
        tables[DETAILS_FILE] = fusion_details(spec.reference, dataset, samples, arms)
        results = results.model_copy(update={"measures": measures(tables[DETAILS_FILE])})
    write_results(out, results, dump_config(base), tables)
    return results


def _run_arm(
    spec: ExperimentSpec,
    arm: str,
    seed: int,
    overrides: tuple[str, ...],
    dataset: Dataset,
    samples: Sequence[AffectSample],
    services: Services,
) -> Evaluated:
    config = spec.run_config(arm, seed, overrides)
    untrained = spec.arms[arm].policy == "none"
    start = _created(config, dataset) if untrained else _warm_started(config, dataset, services)
    config, reader = _frozen_at(config, start), start
    if steps := spec.arms[arm].bridge_steps:
        start = _bridged(config, start, steps, dataset, services)
    training, policy = None, start
    if spec.arms[arm].policy == "trained":
        training = _trained(config, start, dataset, services)
        policy = training / "policy"
    config = _frozen_at(spec.run_config(arm, seed, overrides, evaluate=True), reader)
    directory = Path(config.runs_dir) / evaluation_key(config, policy)
    with _lacking(directory, directory) as lacking:
        if lacking:
            shown = EPISODES if seed == 0 else 0
            _evaluate(make_job(config, dataset, services), policy, samples, directory, shown)
    return Evaluated(directory, training)


def _frozen_at(config: Config, policy: Path) -> Config:
    """Let frozen agents, if there are any, play with `policy` all through."""
    if not config.episode.frozen:
        return config
    return config.model_copy(update={"episode": config.episode.model_copy(update={"frozen_policy": str(policy)})})


@contextmanager
def _lacking(stage: Path, made: Path) -> Iterator[bool]:
    """Whether a stage is still to be made, which leaves `made`. Whoever else makes the same one is waited for."""
    if made.exists():
        yield False
        return
    locks = stage.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / stage.name)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("%s: another experiment makes it; waiting", stage)
        lock.acquire()
    try:
        yield not made.exists()
    finally:
        lock.release()


def _created(config: Config, dataset: Dataset) -> Path:
    policy = Path(config.runs_dir) / base_key(config)
    with _lacking(policy, policy) as lacking:
        if lacking:
            create_policy(config, dataset).save(policy)
    return policy


def _warm_started(config: Config, dataset: Dataset, services: Services) -> Path:
    config = config.model_copy(update={"name": warm_start_key(config)})
    run = RunDirectory(config.run_dir)
    with _lacking(run.path, run.sft) as lacking:
        if lacking:
            shutil.rmtree(run.path, ignore_errors=True)  # cut off, maybe under settings that do not matter here
            run_warm_start(make_job(config, dataset, services))
    return run.sft


def _bridged(config: Config, reader: Path, steps: int, dataset: Dataset, services: Services) -> Path:
    stage = Path(config.runs_dir) / bridge_key(config, reader, steps)
    policy = stage / "sft"
    with _lacking(stage, policy) as lacking:
        if lacking:
            bridge_warm_start(make_job(config, dataset, services), reader, policy, steps)
    return policy


def _trained(config: Config, start: Path, dataset: Dataset, services: Services) -> Path:
    config = training_config(config, dataset.label_kind)
    config = config.model_copy(update={"name": training_key(config, start), "policy": str(start)})
    run = RunDirectory(config.run_dir)
    with _lacking(run.path, run.policy) as lacking:
        if lacking:
            run_training(make_job(config, dataset, services), resume=(run.path / "metrics.jsonl").exists())
    if not run.policy.exists():
        raise AffectError(f"{run.path}: the training was stopped; the same command goes on")
    return run.path


def _evaluate(job: Job, policy: Path, samples: Sequence[AffectSample], directory: Path, shown: int) -> None:
    """Play `samples`, and the first of them again with counterfactuals, for the reader."""
    pool, config = job.pool(policy), job.config
    temperature = config.evaluate.temperature
    if config.episode.frozen:  # their engine starts with the first episode, off the clock
        play_samples(config, samples[:1], pool, policy)
    began = time.perf_counter()
    episodes = play_samples(config, samples, pool, policy)
    seconds = time.perf_counter() - began
    again = [
        EpisodeJob.of(config, ("shown", s.id), s, derived_seed(config.seed, "evaluate", s.id), temperature)
        for s in samples[:shown]
    ]
    predicted = {"sample_id": [t.sample_id for t in episodes], "predicted": [list(t.predicted) for t in episodes]}
    texts = pa.array([s.text for s in samples[:shown]], pa.string())
    library = evidence_library(job.dataset, config.retrieval)
    cost = {
        "tokens_per_sample": sum(t.generated_tokens for t in episodes) / len(episodes),
        "seconds_per_sample": seconds / len(episodes),
    }
    with whole_directory(directory) as fresh:
        pq.write_table(pa.table(predicted), fresh / PREDICTIONS_FILE)
        pq.write_table(trajectory_table(pool.play(again)).append_column("text", texts), fresh / EPISODES_FILE)
        pq.write_table(fusion_table(library, policy, samples, episodes), fresh / FUSION_FILE)
        (fresh / "cost.json").write_text(json.dumps(cost) + "\n")


def _summarise(
    spec: ExperimentSpec,
    config: Config,
    samples: Sequence[AffectSample],
    scoring: Scoring,
    dataset: Dataset,
    found: dict[str, list[Evaluated]],
    command: str,
) -> Results:
    resamples = config.evaluate.resamples
    answers = {arm: [run.answers() for run in runs] for arm, runs in found.items()}
    arms = {}
    for arm, runs in found.items():
        mean = scoring.evaluate(answers[arm], resamples=resamples)
        costs = [run.cost() for run in runs]
        arms[arm] = Arm(
            train=spec.arms[arm].train,
            evaluate=spec.arms[arm].evaluate,
            policy=spec.arms[arm].policy,
            metrics={name: _interval(mean[name]) for name in scoring.names},
            per_seed=scoring.per_run(answers[arm]),
            **{name: sum(cost[name] for cost in costs) / len(costs) for name in costs[0]},
        )
    comparisons = []
    for one, other in spec.pairs:
        gains = scoring.compare(answers[other], answers[one], resamples=resamples)
        comparisons += [
            Comparison(reference=one, other=other, metric=m, difference=_interval(gains[m]), p=gains[m].p)
            for m in scoring.names
        ]
    baselines = {}
    if spec.baseline and dataset.candidates and (dataset.audio_dim or dataset.video_dim):
        mean = scoring.evaluate([logistic_regression(dataset, samples)], resamples=resamples)
        baselines["logistic regression"] = {name: _interval(mean[name]) for name in scoring.names}
    return Results(
        experiment=spec.name,
        title=spec.title,
        dataset=samples[0].dataset,
        split=config.evaluate.split,
        samples=len(samples),
        seeds=list(range(spec.seeds)),
        selection="dev" if config.train.select == "best_dev" else config.train.select,
        command=command,
        labels=list(dataset.candidates),
        main=scoring.main,
        arms=arms,
        comparisons=comparisons,
        baselines=baselines,
        notes=[*scoring.notes, *_notes(spec, config)],
    )


def _notes(spec: ExperimentSpec, config: Config) -> Iterator[str]:
    yield from spec.notes
    if spec.seeds < FEWEST_SEEDS:
        yield f"{spec.seeds} of at least {FEWEST_SEEDS} seeds: intervals tell little of how runs differ."
    if config.evaluate.split == "dev" and config.train.select == "best_dev":
        yield "Policies were selected on the samples that they are scored on: values are too high."


def _tables(samples: Sequence[AffectSample], found: dict[str, list[Evaluated]]) -> Iterator[tuple[str, pa.Table]]:
    """The Parquet files of the result directory."""
    labels = [list(s.labels) for s in samples]
    ids = [s.id for s in samples]
    runs = [(arm, seed, run) for arm, of_arm in found.items() for seed, run in enumerate(of_arm)]
    predictions = [
        {"sample_id": ids, "labels": labels, "predicted": [list(p) for p in run.answers()]} for _, _, run in runs
    ]
    yield PREDICTIONS_FILE, _keyed([pa.table(columns, schema=_ANSWERS) for columns in predictions], runs)
    episodes = [(arm, seed, run) for arm, seed, run in runs if seed == 0]
    yield EPISODES_FILE, _keyed([pq.read_table(run.evaluation / EPISODES_FILE) for _, _, run in episodes], episodes)
    trained = [(arm, seed, run) for arm, seed, run in runs if run.training]
    if trained:
        yield (
            CURVES_FILE,
            _keyed([_curves(run.training) for _, _, run in trained if run.training], trained).cast(CURVES),
        )


def _curves(training: Path) -> pa.Table:
    """The training metrics in long form."""
    lines = [json.loads(line) for line in (training / "metrics.jsonl").read_text().splitlines()]
    rows = [(line["step"], name, value) for line in lines for name, value in line.items() if name != "step"]
    return pa.table(dict(zip(("step", "metric", "value"), map(list, zip(*rows, strict=True)), strict=True)))


def _keyed(tables: Sequence[pa.Table], runs: Sequence[tuple[str, int, Evaluated]]) -> pa.Table:
    """The tables below each other, with the columns arm and seed in front."""
    return pa.concat_tables(
        table.add_column(0, "seed", pa.array([seed] * len(table), pa.int32())).add_column(
            0, "arm", pa.array([arm] * len(table), pa.string())
        )
        for table, (arm, seed, _) in zip(tables, runs, strict=True)
    )


def _interval(estimate: Estimate | Difference) -> Interval:
    return Interval(value=estimate.value, low=estimate.low, high=estimate.high)
