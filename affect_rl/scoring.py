"""What answers to a set of samples are scored by: classes where the label set is closed, the wheel where it is open.

Everything that compares policies (selection on dev, evaluation, experiments) asks a `Scoring` and does not look
at the kind of labels itself. A metric is a function of how often each sample counts, so that the samples as they
are and all bootstrap resamples of them are rows of one matrix of counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from affect_rl.benchmark_metrics import SIGNS, open_label_metrics, sentiment_signs
from affect_rl.bootstrap import Difference, Estimate, difference, drawn_samples, estimate
from affect_rl.metrics import METRICS, Answers, closed_set_metrics
from affect_rl.rewards import score
from affect_rl.sample import AffectSample
from affect_rl.wheels import own_wheel

COUNTS = ("labels_per_answer",)
"""Metrics that are no shares."""
SENTIMENT_METRICS = ("waf", *METRICS)
OPEN_METRICS = ("f_s", "precision", "recall", "exact", "labels_per_answer", "invalid_rate")


class HasInterval(Protocol):
    """An estimate or a difference, in whatever record it stands."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def in_unit(metric: str, of: HasInterval, sign: str = "") -> str:
    """A metric with its interval, in percent unless it is a count; ``sign="+"`` writes the sign of differences."""
    scale, form = (1, f"{sign}.2f") if metric in COUNTS else (100, f"{sign}.1f")
    return f"{scale * of.value:{form}} [{scale * of.low:{form}}, {scale * of.high:{form}}]"


@dataclass(frozen=True, slots=True)
class Scoring:
    """Metrics of answers to `count` samples.

    Attributes:
        names: of the metrics, those by class not included.
        main: the metric that policies are selected and compared by.
        count: how many samples.
        measure: metrics ``[D]`` of answers under D counts of the samples ``[D, count]``.
    """

    names: tuple[str, ...]
    main: str
    count: int
    measure: Callable[[Answers, np.ndarray], dict[str, np.ndarray]]

    def value(self, answers: Answers) -> float:
        """The main metric of one run."""
        return float(self.measure(answers, np.ones((1, self.count), np.int64))[self.main][0])

    def evaluate(
        self, runs: Sequence[Answers], *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
    ) -> dict[str, Estimate]:
        """Metrics of the runs of one policy or arm: their mean, with a bootstrap interval over runs and samples."""
        drawn = self._mean(runs, drawn_samples(self.count, resamples, seed), seed)
        return {name: estimate(values[0], values[1:], confidence) for name, values in drawn.items()}

    def compare(
        self,
        runs_a: Sequence[Answers],
        runs_b: Sequence[Answers],
        *,
        resamples: int = 2000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> dict[str, Difference]:
        """Metrics of B minus those of A, each the mean over its runs.

        Paired twice: a resample has the same samples for all runs, and run i of A where it has run i of B.
        """
        draws = drawn_samples(self.count, resamples, seed)
        a, b = self._mean(runs_a, draws, seed), self._mean(runs_b, draws, seed)
        gains = {name: b[name] - a[name] for name in self.names}
        return {name: difference(gain[0], gain[1:], confidence) for name, gain in gains.items()}

    def per_run(self, runs: Sequence[Answers]) -> list[dict[str, float]]:
        """The metrics of each run."""
        once = np.ones((1, self.count), np.int64)
        return [{name: float(found[name][0]) for name in self.names} for found in (self.measure(r, once) for r in runs)]

    def _mean(self, runs: Sequence[Answers], draws: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """Means ``[D]`` over the runs: all of them for the first row of `draws`, drawn ones for each other row."""
        found = [self.measure(answers, draws) for answers in runs]
        weights = drawn_samples(len(runs), len(draws) - 1, (seed, 1)).T / len(runs)
        return {name: (weights * [run[name] for run in found]).sum(axis=0) for name in found[0]}


def scoring_of(samples: Sequence[AffectSample]) -> Scoring:
    """The metrics for samples of one dataset: of their closed set, of sentiments, or of open labels by our wheel."""
    true = [s.labels for s in samples]
    if samples[0].label_kind != "open":
        candidates = samples[0].candidates

        def closed(answers: Answers, draws: np.ndarray) -> dict[str, np.ndarray]:
            found = closed_set_metrics(answers, true, candidates, draws)
            recall = found.pop("recall")
            present = [(i, label) for i, label in enumerate(candidates) if (label,) in true]  # not in ties alone
            return found | {f"recall/{label}": recall[:, i] for i, label in present}

        if samples[0].label_kind == "closed":
            return Scoring(METRICS, "weighted_f1", len(samples), closed)
        values = [s.value or 0.0 for s in samples]
        polar = np.array(values) != 0

        def sentiment(answers: Answers, draws: np.ndarray) -> dict[str, np.ndarray]:
            found = closed_set_metrics(*sentiment_signs(answers, values), SIGNS, draws[:, polar])
            return {"waf": found["weighted_f1"]} | closed(answers, draws)

        return Scoring(SENTIMENT_METRICS, "waf", len(samples), sentiment)

    wheels = own_wheel()

    def open_labels(answers: Answers, draws: np.ndarray) -> dict[str, np.ndarray]:
        exact = [score(tuple(answer), s, "exact") for answer, s in zip(answers, samples, strict=True)]
        by_sample = {"exact": np.array(exact), "invalid_rate": np.array([not len(answer) for answer in answers])}
        means = {name: draws @ values / draws.sum(axis=1) for name, values in by_sample.items()}
        return open_label_metrics(answers, true, wheels, draws) | means

    return Scoring(OPEN_METRICS, "f_s", len(samples), open_labels)
