"""Means of what an experiment measures beyond the metrics (``details.parquet``), with bootstrap intervals."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from affect_rl.experiments.results import Interval, Measure
from affect_rl.scoring.bootstrap import Estimate, drawn_samples, estimate


def measures(details: pa.Table, *, resamples: int = 2000, seed: int = 0) -> list[Measure]:
    """All measures in a table `affect_rl.experiments.results.DETAILS`, in the order of their first rows.

    As for metrics (`affect_rl.scoring.scoring`), a resample draws seeds and samples; values that are not finite are
    left out.
    """
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    finite = details.filter(pc.is_finite(pc.field("value")))
    columns = (finite[name].to_pylist() for name in ("arm", "name", "seed", "sample_id", "value"))
    for arm, name, run, sample, value in zip(*columns, strict=True):
        found[arm, name][run][sample] = value
    return [_measure(arm, name, list(by_seed.values()), resamples, seed) for (arm, name), by_seed in found.items()]


def _measure(arm: str, name: str, runs: list[dict[str, float]], resamples: int, seed: int) -> Measure:
    samples = list(dict.fromkeys(sample for run in runs for sample in run))
    values = np.array([[run.get(sample, np.nan) for sample in samples] for run in runs])
    mean = _mean(values, resamples, seed)
    return Measure(
        arm=arm, name=name, samples=len(samples), mean=Interval(value=mean.value, low=mean.low, high=mean.high)
    )


def _mean(values: np.ndarray, resamples: int, seed: int) -> Estimate:
    """Mean over seeds of each seed's mean over its samples ``[S, n]``, nan where it has no value."""
    there = np.isfinite(values)
    seeds, n = values.shape
    draws = drawn_samples(n, resamples, seed)
    with np.errstate(invalid="ignore"):  # a draw may miss all samples of a seed; it is left out of the interval
        of_seeds = (draws @ np.where(there, values, 0.0).T) / (draws @ there.T)
    weights = drawn_samples(seeds, resamples, (seed, 1)) / seeds
    drawn = np.where(weights > 0, weights * of_seeds, 0.0).sum(axis=1)
    return estimate(drawn[0], drawn[1:], 0.95)
