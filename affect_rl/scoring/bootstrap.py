"""Bootstrap intervals (Efron and Tibshirani, 1993, chapter 13: percentile interval), paired where two are compared.

A statistic of n samples is computed for the samples as they are and for resamples drawn with replacement. What
is drawn is how often each sample, or each distinct outcome, occurs: a multinomial draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_AT_ONCE = 2**25
"""Most numbers in a block of resamples, 256 MB."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """B minus A on the same samples, its bootstrap interval, and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p: float


def mean_interval(
    values: Sequence[float] | np.ndarray, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean of per-sample values ``[n]`` (a score, tokens) with its bootstrap interval.

    Raises:
        ValueError: no values.
    """
    values = _some(values)
    return estimate(values.mean(), _resampled_means(values, resamples, seed), confidence)


def resampled(counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How often each distinct outcome ``[K]`` occurs in each bootstrap resample ``[R, K]``."""
    total = int(counts.sum())
    return np.random.default_rng(seed).multinomial(total, counts / total, size=resamples)


def drawn_samples(n: int, resamples: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """How often each of n samples occurs ``[1 + R, n]``: once in the first row, as drawn in the others."""
    return np.vstack(list(drawn_blocks(n, resamples, seed)))


def drawn_blocks(n: int, resamples: int, seed: int | tuple[int, ...]) -> Iterator[np.ndarray]:
    """The rows of `drawn_samples` in blocks: of a million samples they are 16 GB."""
    rng, left, first = np.random.default_rng(seed), resamples, np.ones((1, n), np.int64)
    while True:
        rows = min(left, max(1, _AT_ONCE // n))
        yield np.vstack([first, rng.multinomial(n, np.full(n, 1 / n), rows)])
        left, first = left - rows, first[:0]
        if not left:
            return


def estimate(value: float, drawn: np.ndarray, confidence: float) -> Estimate:
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def difference(value: float, drawn: np.ndarray, confidence: float) -> Difference:
    """The p-value is twice the smaller share of resamples on either side of 0, one added to each count."""
    interval = estimate(value, drawn, confidence)
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (float(beyond) + 1) / (len(drawn) + 1))
    return Difference(interval.value, interval.low, interval.high, p)


def _some(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"values have shape {array.shape}; expected [n] with n at least 1")
    return array


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of bootstrap resamples ``[R]``; one at a time, because most values are distinct."""
    rng, n = np.random.default_rng(seed), len(values)
    return np.array([values[rng.integers(n, size=n)].mean() for _ in range(resamples)])
