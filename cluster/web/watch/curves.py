"""Metrics files as columns, read on as they grow, and curves thin enough to draw."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """A metric over steps, in at most as many points as were asked for.

    Attributes:
        steps: the last step of each point.
        mean, low, high: of the values behind a point.
    """

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


class Column(NamedTuple):
    """The finite values of a metric, and at which steps they were."""

    steps: array[int]
    values: array[float]

    def thinned(self, most: int) -> Curve:
        """At most `most` points, each of as many values as the others or one more."""
        steps, values = np.frombuffer(self.steps, np.int64), np.frombuffer(self.values, np.float64)
        points = min(most, len(values))
        edges = np.linspace(0, len(values), points + 1).astype(int)
        begins, sizes = edges[:-1], np.diff(edges)
        mean = np.add.reduceat(values, begins) / sizes
        low, high = np.minimum.reduceat(values, begins), np.maximum.reduceat(values, begins)
        return Curve(steps[edges[1:] - 1].tolist(), *map(_short, (mean, low, high)))


def _short(values: np.ndarray) -> list[float]:
    """With six digits, which is more than a plot shows."""
    return [float(f"{value:.6g}") for value in values.tolist()]


class MetricsLog:
    """A file by `JsonlTracker`, whose new lines are read when asked.

    Attributes:
        last: the newest line; empty: there is none.
        columns: by metric, in the order in which they came up.
        reading: grows with every line, and when the file was written anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.reading = 0
        self._forget()

    def _forget(self) -> None:
        self._file, self._offset = 0, 0
        self.last: dict[str, float] = {}
        self.columns: dict[str, Column] = {}

    def refresh(self) -> None:
        """Read what has been added; a line without its end is left for the next time.

        A run that is resumed writes the file anew, and it may be deleted.
        """
        try:
            with self._path.open("rb") as file:
                found = self._path.stat()
                if found.st_ino != self._file or found.st_size < self._offset:
                    self._forget()
                    self._file = found.st_ino
                    self.reading += 1
                file.seek(self._offset)
                whole, _, _ = file.read().rpartition(b"\n")
        except OSError:
            self.reading += bool(self.columns)
            self._forget()
            return
        if whole:
            self._offset += len(whole) + 1
            for line in whole.split(b"\n"):
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            metrics = json.loads(line)
            step = int(metrics["step"])
        except (ValueError, TypeError, KeyError):
            return  # a disk that was full may have left it
        self.reading += 1
        self.last = metrics
        for name, value in metrics.items():
            if isinstance(value, int | float) and math.isfinite(value) and name != "step":
                column = self.columns.setdefault(name, Column(array("q"), array("d")))
                column.steps.append(step)
                column.values.append(value)

    def curves(self, names: list[str], most: int) -> Mapping[str, Curve]:
        """Those of the metrics that are there."""
        return {name: self.columns[name].thinned(most) for name in names if name in self.columns}

    def step_s(self, of: int = 20) -> float | None:
        """Seconds that a step takes, the median of the last; None: too few have been made."""
        times = np.diff(np.array(self.columns["time"].values[-of - 1 :])) if "time" in self.columns else np.array([])
        times = times[times > 0]  # a run that is resumed counts from 0 again
        return float(np.median(times)) if len(times) else None
