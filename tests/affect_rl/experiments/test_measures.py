"""Measures against plain loops over drawn seeds and samples."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from affect_rl.experiments.measures import measures
from affect_rl.experiments.results import DETAILS


def _details(values: np.ndarray, name: str = "gain/x") -> pa.Table:
    """Values by seed and sample ``[S, n]``; nan is written as it is."""
    rows = [
        {"arm": "a", "seed": seed, "sample_id": f"s{n}", "name": name, "value": float(value)}
        for seed, of_seed in enumerate(values)
        for n, value in enumerate(of_seed)
    ]
    return pa.Table.from_pylist(rows, DETAILS)


def test_a_measure_is_the_mean_over_seeds_of_means_over_samples() -> None:
    (found,) = measures(_details(np.array([[0.0, 0.2, np.nan], [1.0, np.nan, np.nan]])))
    assert (found.arm, found.name, found.samples) == ("a", "gain/x", 2)
    assert found.mean.value == pytest.approx((0.1 + 1.0) / 2)
    assert found.mean.low < found.mean.value < found.mean.high


def test_an_interval_draws_seeds_and_samples() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 60)) + np.array([[0.0], [0.5], [1.0]])
    values[1, 40:] = np.nan  # a seed may lack some
    (found,) = measures(_details(values), resamples=4000)
    drawn = []
    for _ in range(4000):
        samples = rng.integers(60, size=60)
        drawn.append(np.mean([np.nanmean(values[seed, samples]) for seed in rng.integers(3, size=3)]))
    assert (found.mean.low, found.mean.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.04)


def test_one_value_a_seed_varies_as_seeds_do() -> None:
    (found,) = measures(_details(np.array([[0.2], [0.4], [0.9]]), "load_entropy"))
    assert (found.mean.value, found.mean.low, found.mean.high) == pytest.approx((0.5, 0.2, 0.9))
