"""Means over training, against scipy's own tests."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from affect_rl.experiments.averages import averages
from affect_rl.experiments.results import CURVES
from affect_rl.experiments.spec import Average

RNG = np.random.default_rng(0)
VALUES = {arm: RNG.normal(size=(4, 6)) for arm in ("ours", "other")}


def _curves() -> pa.Table:
    rows = [
        {"arm": arm, "seed": seed, "step": step, "metric": "score", "value": value}
        for arm, runs in VALUES.items()
        for seed, run in enumerate(runs)
        for step, value in enumerate(run, start=1)
    ]
    other = {"arm": "ours", "seed": 0, "step": 3, "metric": "loss", "value": 99.0}
    return pa.Table.from_pylist([*rows, other], schema=CURVES)


def test_means_over_steps_and_paired_differences_agree_with_scipy() -> None:
    found = {(m.name, m.arm): m.mean for m in averages(_curves(), [Average(metric="score", first=3)], "ours")}
    ours, other = VALUES["ours"][:, 2:].mean(1), VALUES["other"][:, 2:].mean(1)
    single = stats.ttest_1samp(ours, 0).confidence_interval()
    mean = found["score, mean from step 3", "ours"]
    assert (mean.value, mean.low, mean.high) == pytest.approx((ours.mean(), single.low, single.high))
    paired = stats.ttest_rel(ours, other).confidence_interval()
    gain = found["score, mean from step 3: ours minus", "other"]
    assert (gain.low, gain.high) == pytest.approx((paired.low, paired.high))


def test_arms_without_the_metric_are_left_out() -> None:
    found = averages(_curves(), [Average(metric="loss"), Average(metric="absent")], "ours")
    assert [(m.arm, m.mean.value, m.mean.low, m.mean.high) for m in found] == [("ours", 99.0, 99.0, 99.0)]
