"""How tables show metrics: their names, their units, and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

COUNTS = ("labels_per_answer",)
"""Metrics that are no shares."""

_HEADERS = {
    "weighted_f1": "weighted F1",
    "uar": "UAR",
    "macro_f1": "macro F1",
    "invalid_rate": "invalid",
    "hit": "HIT",
    "f_s": "F_s",
    "waf": "WAF",
}


class HasInterval(Protocol):
    """An estimate or a difference, in whatever record it stands."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def header(metric: str) -> str:
    """What a table calls a metric."""
    return _HEADERS.get(metric, metric.replace("_", " ").replace("/", " "))


def in_unit(metric: str, of: HasInterval, sign: str = "") -> str:
    """A metric with its interval, in percent unless it is a count; ``sign="+"`` writes the sign of differences."""
    scale, form = (1, f"{sign}.2f") if metric in COUNTS else (100, f"{sign}.1f")
    return f"{scale * of.value:{form}} [{scale * of.low:{form}}, {scale * of.high:{form}}]"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the header first, as Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in [cells[0], ["---"] * len(cells[0]), *cells[1:]])
