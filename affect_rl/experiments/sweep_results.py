"""What a sweep leaves behind: its trials' settings and scores, beside their runs.

``sweep.json``  trials, and the best one's metrics (`SweepResults`)
``curves.parquet``  the metrics of every training step (`affect_rl.experiments.results.CURVES`, a trial an arm)
``report.html``  both as a page
``runs/``  one run directory a trial, and the warm starts that they share
``tune/``  what Ray Tune goes on from
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from affect_rl.experiments.results import CURVES, CURVES_FILE, Interval, Part, read_part
from affect_rl.files import whole_file
from affect_rl.scoring.tables import header, in_unit, markdown_table

SWEEP, PAGE = "sweep.json", "report.html"


class Trial(Part):
    """One trial.

    Attributes:
        name: of its run.
        settings: those that were searched; with PBT, those that it ended with.
        steps: how many it was trained.
        best_step: the step of its best policy.
        score: that policy's score on dev.
        state: whether it ran to its end, or was ended because others were better.
    """

    name: str
    settings: dict[str, Any]
    steps: int
    best_step: int
    score: float
    state: Literal["finished", "ended early"]


class SweepResults(Part):
    """A sweep.

    Attributes:
        name: its name.
        title: what it asks.
        metric: what trials are compared by, on dev.
        command: what was run.
        trials: the best first.
        best: by split, the best trial's metrics with bootstrap intervals.
    """

    name: str
    title: str
    metric: str
    command: str
    trials: list[Trial]
    best: dict[str, dict[str, Interval]]

    @classmethod
    def read(cls, directory: Path) -> SweepResults:
        """Read ``sweep.json``.

        Raises:
            AffectError: it is absent or not one.
        """
        return read_part(cls, directory / SWEEP, "a sweep")

    @property
    def keys(self) -> list[str]:
        """The settings that were searched."""
        return list(self.trials[0].settings)

    @property
    def table(self) -> list[list[str]]:
        """A row a trial, below a header."""
        rows = [["trial", *self.keys, f"{header(self.metric)} on dev", "at step", "steps", ""]]
        for t in self.trials:
            values = [shown(t.settings[key]) for key in self.keys]
            rows.append([t.name, *values, f"{100 * t.score:.1f}", str(t.best_step), str(t.steps), t.state])
        return rows

    @property
    def best_said(self) -> list[str]:
        """A sentence a split about the best trial."""
        name = self.trials[0].name
        said = [f"{name} on {split}: {header(self.metric)} {in_unit(self.metric, found[self.metric])}"
                for split, found in self.best.items()]  # fmt: skip
        return [*said, "It was chosen on dev, so its score there is too high."]

    def markdown(self) -> str:
        """The trials as a table, and the best one with its intervals."""
        best = "".join(f"- {line}\n" for line in self.best_said)
        return f"# {self.name}\n\n{self.title}\n\n{markdown_table(self.table)}\n{best}\n`{self.command}`\n"


def shown(value: Any) -> str:
    """A setting's value in a table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_sweep(directory: Path, results: SweepResults, curves: Sequence[dict[str, Any]]) -> None:
    """Write ``sweep.json`` and ``curves.parquet``, each whole or not at all."""
    with whole_file(directory / CURVES_FILE) as partial:
        pq.write_table(pa.Table.from_pylist(list(curves), schema=CURVES), partial)
    with whole_file(directory / SWEEP) as partial:
        partial.write_text(results.model_dump_json(indent=1) + "\n", encoding="utf8")


def read_curves(directory: Path) -> pa.Table:
    """The trials' curves."""
    return pq.read_table(directory / CURVES_FILE, schema=CURVES)
