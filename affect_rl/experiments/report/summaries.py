"""Numbers that the page shows of an experiment's tables: learning curves and confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from affect_rl.errors import AffectError
from affect_rl.scoring.metrics import confusion_counts

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

    Returns:
        None if the arm has no predictions.

    Raises:
        AffectError: a true label is not among `labels`.
    """
    rows = table.filter(pc.field("arm") == arm)
    if not len(rows):
        return None
    try:
        counts = confusion_counts(rows["predicted"].to_pylist(), rows["labels"].to_pylist(), labels)
    except ValueError as error:
        raise AffectError(f"predictions of arm {arm!r}: {error}") from None
    return counts / pc.count_distinct(rows["seed"]).as_py()
