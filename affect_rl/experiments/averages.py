"""Means over training: how fast an arm learns is the area under its learning curve, divided by its length.

A training gives one number for each seed, so intervals are Student's over seeds, and differences are paired by seed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from affect_rl.experiments.results import Interval, Measure
from affect_rl.experiments.spec import Average

logger = logging.getLogger(__name__)


def averages(curves: pa.Table, wanted: Sequence[Average], reference: str) -> list[Measure]:
    """Means over steps and seeds, then the reference's minus each other arm's.

    Args:
        curves: `affect_rl.experiments.results.CURVES`; arms that lack a metric are left out.
        wanted: metrics of the curves.
        reference: the arm that others are compared with.
    """
    found = []
    for average in wanted:
        measures = list(_average(curves, average, reference))
        if not measures:
            logger.warning("averages: no training has a metric %s; see docs/metrics.md", average.metric)
        found += measures
    return found


def _average(curves: pa.Table, average: Average, reference: str) -> Iterator[Measure]:
    wanted = (pc.field("metric") == average.metric) & (pc.field("step") >= average.first)
    steps = curves.filter(wanted & pc.field("value").is_valid())
    means = steps.group_by(["arm", "seed"], use_threads=False).aggregate([("value", "mean")]).to_pylist()
    found: dict[str, dict[int, float]] = {}
    for row in means:
        found.setdefault(row["arm"], {})[row["seed"]] = row["value_mean"]
    name = f"{average.metric}, mean from step {average.first}"
    for arm, by_seed in found.items():
        yield Measure(arm=arm, name=name, samples=0, mean=student_interval(list(by_seed.values())))
    ours = found.pop(reference, {})
    for arm, by_seed in found.items():
        if gains := [ours[seed] - value for seed, value in by_seed.items() if seed in ours]:
            yield Measure(arm=arm, name=f"{name}: {reference} minus", samples=0, mean=student_interval(gains))


def student_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of independent values ``[n]`` with Student's interval; of a single one it has no width."""
    n, mean = len(values), float(np.mean(values))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * stats.sem(values)) if n > 1 else 0.0
    return Interval(value=mean, low=mean - half, high=mean + half)
