"""Numbers that the page shows of an experiment's tables: learning curves, confusion matrices, measures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from affect_rl.bootstrap import Estimate, mean_interval
from affect_rl.emotions import normalise
from affect_rl.errors import AffectError

MOST_POINTS = 200
"""A curve of more steps is averaged over neighbouring ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A metric of one arm over training.

    Attributes:
        arm: its name.
        steps: training steps ``[P]``; means of neighbouring ones in a long run.
        seeds: the value of each seed ``[S, P]``, nan where it has none.
    """

    arm: str
    steps: np.ndarray
    seeds: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean over seeds ``[P]``; nan where a seed has no value, since a mean of others would jump there."""
        return self.seeds.mean(axis=0)


@dataclass(frozen=True, slots=True)
class Measure:
    """A value of the details, by arm and name: mean over samples, of each sample's mean over seeds.

    Attributes:
        arm: its name.
        name: for example ``gain/conflicting``.
        samples: how many samples have it.
        estimate: mean with a bootstrap interval over the samples.
    """

    arm: str
    name: str
    samples: int
    estimate: Estimate


def curves(table: pa.Table, metric: str, arms: Sequence[str]) -> list[Curve]:
    """The curves of a metric, in the order of `arms`; arms without finite values are left out."""
    rows = table.filter((pc.field("metric") == metric) & pc.is_finite(pc.field("value")))
    parts = {arm: rows.filter(pc.field("arm") == arm) for arm in arms}
    return [_curve(arm, part) for arm, part in parts.items() if len(part)]


def distinct_trainings(table: pa.Table, arms: Sequence[str]) -> dict[str, list[str]]:
    """Arms with curves, and for each the later arms that have the same: they share its training."""
    first: dict[str, tuple[pa.Table, list[str]]] = {}
    for arm in arms:
        rows = table.filter(pc.field("arm") == arm).drop_columns("arm")
        if len(rows):
            same = next((others for known, others in first.values() if known.equals(rows)), None)
            if same is None:
                first[arm] = (rows, [])
            else:
                same.append(arm)
    return {arm: others for arm, (_, others) in first.items()}


def _curve(arm: str, rows: pa.Table) -> Curve:
    steps, place = np.unique(rows["step"].to_numpy(), return_inverse=True)
    seeds, seed = np.unique(rows["seed"].to_numpy(), return_inverse=True)
    width = -(-len(steps) // MOST_POINTS)
    starts = range(0, len(steps), width)
    total, count = np.zeros((len(seeds), len(starts))), np.zeros((len(seeds), len(starts)))
    np.add.at(total, (seed, place // width), rows["value"].to_numpy())
    np.add.at(count, (seed, place // width), 1)
    points = np.array([steps[start : start + width].mean() for start in starts])
    return Curve(arm, points, np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))


def confusion(table: pa.Table, arm: str, labels: Sequence[str]) -> np.ndarray | None:
    """How often each truth was given each answer ``[C, C + 1]``, mean over seeds; the last column: no valid answer.

    Ties count as in `affect_rl.metrics`: an answer among the true labels is right, otherwise the first is the truth.

    Returns:
        None if the arm has no predictions.

    Raises:
        AffectError: a true label is not among `labels`.
    """
    rows = table.filter(pc.field("arm") == arm)
    if not len(rows):
        return None
    index = {normalise(label): i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1))
    for truth, answer in zip(rows["labels"].to_pylist(), rows["predicted"].to_pylist(), strict=True):
        true = [index.get(normalise(label)) for label in truth]
        if not true or None in true:
            raise AffectError(f"predictions of arm {arm!r}: true labels {truth!r} are not all among {list(labels)!r}")
        given = index.get(normalise(answer[0]), len(labels)) if answer else len(labels)
        counts[given if given in true else true[0], given] += 1
    return counts / pc.count_distinct(rows["seed"]).as_py()


def measures(table: pa.Table) -> list[Measure]:
    """All measures of the details, in the order of their first rows."""
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    finite = table.filter(pc.is_finite(pc.field("value")))
    columns = (finite[name].to_pylist() for name in ("arm", "name", "sample_id", "value"))
    for arm, name, sample, value in zip(*columns, strict=True):
        values[arm, name][sample].append(value)
    return [
        Measure(arm, name, len(samples), mean_interval([float(np.mean(v)) for v in samples.values()]))
        for (arm, name), samples in values.items()
    ]
