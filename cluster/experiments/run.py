"""Runs an experiment: every arm with every seed (`cluster.experiments.stages`), then the tables."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from affect_rl.config.load import Config, dump_config
from affect_rl.data.dataset import Dataset
from affect_rl.experiments.averages import averages
from affect_rl.experiments.measures import measures
from affect_rl.experiments.results import (
    CURVES,
    CURVES_FILE,
    DETAILS_FILE,
    EPISODES_FILE,
    PREDICTIONS,
    PREDICTIONS_FILE,
    TIMELINE,
    TIMELINE_FILE,
    Arm,
    Comparison,
    Interval,
    Results,
    check_replaceable,
    write_results,
)
from affect_rl.experiments.spec import ExperimentSpec
from affect_rl.sample import AffectSample
from affect_rl.scoring.scoring import Scoring, wheels_of
from affect_rl.timeline import read_timeline
from cluster.evaluate import scoring_for
from cluster.experiments.baselines import baseline_answers
from cluster.experiments.fusion_details import fusion_details
from cluster.experiments.stages import Evaluated, lock_of, run_arm, shared_out
from cluster.runtime.services import Services
from cluster.runtime.session import ray_session
from cluster.watching.trackers import logged

logger = logging.getLogger(__name__)

FEWEST_SEEDS = 3
"""Results of fewer seeds carry a note."""

STEPS_SHOWN = 2
"""Training steps in the report's timeline, the last ones."""

_ANSWERS = pa.schema([PREDICTIONS.field(name) for name in ("sample_id", "labels", "predicted")])


def run_experiment(spec: ExperimentSpec, out: Path, overrides: tuple[str, ...], command: str) -> Results:
    """Run what is not there yet, and write the result directory `out`. Several processes may do so at once.

    Raises:
        AffectError: `out` holds something else, an override would undo what tells arms apart, or the wheels cannot be
            read or do not fit the samples.
    """
    check_replaceable(out)
    base = spec.check(overrides)
    wheels_of(base.evaluate.wheels, base.evaluate.mapping)  # read first: nothing is begun with wrong ones
    dataset = Dataset.of(base.data)
    samples = dataset.samples(base.evaluate.split, base.data.limit(base.evaluate.split))
    scoring = scoring_for(base, samples)
    with ray_session(base), closing(Services()) as services:

        @cache  # said once
        def announce(arm: str, seed: int) -> None:
            logger.info("%s: %s, seed %d", spec.name, arm, seed)

        def run(job: tuple[int, str]) -> Evaluated:
            seed, arm = job
            announce(arm, seed)
            return run_arm(spec, arm, seed, overrides, dataset, samples, services)

        made = shared_out(product(range(spec.seeds), spec.arms), run, rest=services.close)
    found = {arm: [made[seed, arm] for seed in range(spec.seeds)] for arm in spec.arms}
    results = _summarise(spec, base, samples, scoring, dataset, found, command)
    tables, measured = dict(_tables(samples, found)), []
    if spec.fusion_details:
        arms = {arm: [(run.answers(), run.fusion()) for run in runs] for arm, runs in found.items()}
        tables[DETAILS_FILE] = fusion_details(spec.reference, dataset, samples, arms)
        measured += measures(tables[DETAILS_FILE])
    if CURVES_FILE in tables:
        measured += averages(tables[CURVES_FILE], spec.averages, spec.reference)
    results = results.model_copy(update={"measures": measured})
    with lock_of(Path(base.runs_dir), f"results-{hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:12]}"):
        write_results(out, results, dump_config(base), tables)
    return results


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
            metrics={name: Interval.of(mean[name]) for name in scoring.names},
            per_seed=scoring.per_run(answers[arm]),
            **{name: sum(cost[name] for cost in costs) / len(costs) for name in costs[0]},
        )
    comparisons = []
    for one, other in spec.pairs:
        gains = scoring.compare(answers[other], answers[one], resamples=resamples)
        comparisons += [
            Comparison(reference=one, other=other, metric=m, difference=Interval.of(gains[m]), p=gains[m].p)
            for m in scoring.names
        ]
    baselines = {}
    for title, said in baseline_answers(dataset, samples, config) if spec.baseline and dataset.candidates else ():
        mean = scoring.evaluate([said], resamples=resamples)
        baselines[title] = {name: Interval.of(mean[name]) for name in scoring.names}
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
        timelines = [(arm, seed, run) for arm, seed, run in trained if seed == 0]
        yield TIMELINE_FILE, _keyed([_timeline(run.training) for *_, run in timelines if run.training], timelines)


def _timeline(training: Path) -> pa.Table:
    """The spans of the last training steps; ``begun`` counts from the first of them."""
    spans = read_timeline(training / "timeline.json")
    begins = [span.begun for span in spans.get("loop", ()) if span.what == "rollout"][-STEPS_SHOWN:]
    rows = [
        {"who": who, "what": span.what, "begun": span.begun - begins[0], "seconds": span.seconds}
        for who, own in spans.items()
        for span in own
        if begins and span.begun >= begins[0]
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(list(TIMELINE)[2:]))


def _curves(training: Path) -> pa.Table:
    """The training metrics in long form."""
    lines = logged(training / "metrics.jsonl")
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
