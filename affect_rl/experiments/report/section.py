"""All that the page shows of one experiment, ready for the templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from affect_rl.experiments.report import figures, wording
from affect_rl.experiments.report.episodes import Played, episodes_by_sample
from affect_rl.experiments.report.experiment import Experiment
from affect_rl.experiments.report.figures import Compared, Figure, FigureGroup
from affect_rl.experiments.report.summaries import confusion, distinct_trainings
from affect_rl.experiments.results import Measure, Results


@dataclass(frozen=True, slots=True)
class Confusion:
    """An arm's confusion matrix ``[C, C + 1]``; the last column has the answers that were not valid.

    Attributes:
        arm: its name.
        counts: mean over seeds.
        shares: of each truth's answers.
    """

    arm: str
    counts: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True, slots=True)
class ReportSection:
    """An experiment as the templates take it; parts that it has no file for are empty.

    Attributes:
        key: starts its anchors.
        results: what was run and found.
        metrics: columns of the main table.
        references: arms that others are compared with.
        series: number of each arm, which decides its colour and dashes.
        overview: the arms' main metric.
        compared: comparisons by metric and reference.
        hacking: the learning curves that tell of it, of ``rewards``.
        learning: the other learning curves.
        timelines: who did what when in the last steps, one an arm.
        trainings: arms with a training of their own, and for each the arms that share it.
        confusions: one an arm.
        fusion: routing weights and gains, if there are any.
        experts: what the colours of the routing weights stand for.
        measures: what was measured beyond the metrics, by name and arm.
        samples: episodes to read, by sample.
        episodes_in_all: how many the file has.
    """

    key: str
    results: Results
    metrics: Sequence[str]
    references: frozenset[str]
    series: Mapping[str, int]
    overview: Figure
    compared: Sequence[Compared]
    hacking: Sequence[FigureGroup]
    learning: Sequence[FigureGroup]
    timelines: Sequence[Figure]
    trainings: Mapping[str, Sequence[str]]
    confusions: Sequence[Confusion]
    fusion: Sequence[FigureGroup]
    experts: Sequence[str]
    measures: Mapping[str, Mapping[str, Measure]]
    samples: Sequence[Played]
    episodes_in_all: int

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Anchor and title of each part that is there, for the table of contents."""
        parts = [
            ("results", "Results", self.metrics),
            ("comparisons", "Comparisons", self.compared),
            ("fusion", "Fusion", self.fusion),
            ("measures", "Measures", self.measures and not self.fusion),
            ("hacking", "Reward hacking", self.hacking),
            ("curves", "Learning curves", self.learning),
            ("timelines", "Timeline of a step", self.timelines),
            ("confusions", "Confusion matrices", self.confusions),
            ("episodes", "Episodes", self.samples),
        ]
        return [(anchor, title) for anchor, title, there in parts if there]

    @property
    def measured_arms(self) -> list[str]:
        """Arms with measures, in the order of the tables."""
        return [arm for arm in self.results.arms if any(arm in found for found in self.measures.values())]


def section(experiment: Experiment, key: str, most_episodes: int) -> ReportSection:
    """Summarise and plot an experiment.

    Args:
        experiment: what was read.
        key: starts the section's anchors and the ids of its plots; every experiment on a page has its own.
        most_episodes: how many to show.

    Raises:
        AffectError: its files contradict each other.
    """
    results, curves = experiment.results, experiment.curves
    metrics = wording.metrics(results)
    series = {arm: number for number, arm in enumerate(results.arms)}
    trainings = distinct_trainings(curves, list(results.arms)) if curves is not None else {}
    trained = {arm: series[arm] for arm in trainings}
    groups = figures.learning(curves, trained, key) if curves is not None else []
    signs = figures.SIGNS_OF_HACKING if results.experiment == "rewards" else frozenset()
    experts = list(dict.fromkeys(filter(None, map(figures.expert_of, results.measures))))
    played = experiment.episodes
    return ReportSection(
        key=key,
        results=results,
        metrics=metrics,
        references=frozenset(c.reference for c in results.comparisons),
        series=series,
        overview=figures.overview(results, metrics[0], series, key),
        compared=figures.compared(results, metrics, key),
        hacking=[group for group in groups if group.title in signs],
        learning=[group for group in groups if group.title not in signs],
        timelines=figures.timelines(experiment.timeline, key) if experiment.timeline is not None else (),
        trainings=trainings,
        confusions=_confusions(experiment),
        fusion=figures.fusion(results.measures, experts, series, key),
        experts=experts,
        measures=_by_name(results.measures),
        samples=episodes_by_sample(played, most_episodes) if played is not None else (),
        episodes_in_all=len(played) if played is not None else 0,
    )


def _confusions(experiment: Experiment) -> list[Confusion]:
    """Those of arms with predictions, if the label set is closed."""
    labels, table = experiment.results.labels, experiment.predictions
    if table is None or not labels:
        return []
    counts = {arm: confusion(table, arm, labels) for arm in experiment.results.arms}
    return [
        Confusion(arm, c, c / np.maximum(c.sum(axis=1, keepdims=True), 1e-9))
        for arm, c in counts.items()
        if c is not None
    ]


def _by_name(found: Sequence[Measure]) -> dict[str, dict[str, Measure]]:
    names: dict[str, dict[str, Measure]] = {}
    for measure in found:
        names.setdefault(measure.name, {})[measure.arm] = measure
    return names
