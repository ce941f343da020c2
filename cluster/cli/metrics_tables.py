"""What ``affect-rl metrics`` prints: a table for each kind of metrics, and what made the labels in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from affect_rl.scoring.tables import markdown_table

if TYPE_CHECKING:
    from affect_rl.scoring.bootstrap import Difference, Estimate


class Metric(StrEnum):
    """What to compute; ``all``: whatever the labels allow."""

    HIT = "hit"
    FS = "fs"
    WAF = "waf"
    CLOSED = "closed"
    ALL = "all"


class Select(StrEnum):
    """How to pick one system."""

    TEST_ORACLE = "test_oracle"


_OPEN = {"f_s": "F_s", "labels_per_answer": "labels per answer", "precision": "precision", "recall": "recall"}
_COLUMNS = {
    Metric.HIT: {"hit": "HIT"} | _OPEN,
    Metric.FS: _OPEN,
    Metric.WAF: {"waf": "WAF", "accuracy": "accuracy", "unreadable": "unreadable"},
    Metric.CLOSED: {
        "weighted_f1": "weighted F1",
        "accuracy": "accuracy",
        "uar": "UAR",
        "macro_f1": "macro F1",
        "invalid_rate": "invalid",
    },
}
"""What a table shows, and what it calls that. Systems are picked by the first."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How labels came out of free text.

    Attributes:
        reader: name of the reader that made all of them.
        settings: everything that they depend on beside the text.
        answers: how many answers each system has.
        without_label: in how many of them the reader found no label, by system.
        malformed: how many answers of the reader's own model could not be read; None if it has no model.
    """

    reader: str
    settings: Mapping[str, str | int | float]
    answers: int
    without_label: Mapping[str, int]
    malformed: int | None

    @property
    def title(self) -> str:
        """The reader with its settings."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"labels read from free text by `{self.reader}` ({settings})"

    @property
    def note(self) -> str:
        """What was not found."""
        counts = ", ".join(f"`{system}` {count:,}" for system, count in self.without_label.items())
        malformed = "" if self.malformed is None else f" Malformed answers of the model: {self.malformed:,}."
        return f"Answers without a label, of {self.answers:,} each: {counts}.{malformed}"


@dataclass(frozen=True, slots=True)
class MetricsTable:
    """One kind of metrics of all systems.

    Attributes:
        kind: which metrics.
        title: what was counted, and how.
        scores: the metrics of each system, an object with the names in `_COLUMNS`.
        reference: the system that the others are compared with.
        differences: metrics of each other system minus those of the reference, paired.
    """

    kind: Metric
    title: str
    scores: Mapping[str, Any]
    reference: str
    differences: Mapping[str, Mapping[str, Difference]]

    def markdown(self) -> str:
        """The title, a table with a row a system, and one of differences if there are several."""
        columns = _COLUMNS[self.kind]
        rows = {
            system: [_cell(name, getattr(scores, name)) for name in columns] for system, scores in self.scores.items()
        }
        parts = [self.title, _table(list(columns.values()), rows)]
        if self.differences:
            parts += [f"Minus `{self.reference}`, on the same samples", self._difference_table()]
        return "\n\n".join(parts)

    def _difference_table(self) -> str:
        first, *_ = shown = [name for name in _COLUMNS[self.kind] if name in next(iter(self.differences.values()))]
        headers = [f"Δ {_COLUMNS[self.kind][name]}" for name in shown] + [f"p, {_COLUMNS[self.kind][first]}"]
        rows = {
            system: [*(_cell(name, found[name], "+") for name in shown), f"{found[first].p:.3f}"]
            for system, found in self.differences.items()
        }
        return _table(headers, rows)

    def report(self) -> dict[str, Any]:
        """The same with everything that was computed; shares lie in [0, 1]."""
        found = {"title": self.title, "scores": {system: asdict(scores) for system, scores in self.scores.items()}}
        if not self.differences:
            return found
        differences = {
            system: {name: asdict(gain) for name, gain in gains.items()} for system, gains in self.differences.items()
        }
        return found | {"reference": self.reference, "differences": differences}

    def picked(self) -> dict[str, str]:
        """The best system on the samples that it is scored on, and what to think of that."""
        metric, header = next(iter(_COLUMNS[self.kind].items()))
        best = max(self.scores, key=lambda system: getattr(self.scores[system], metric).value)
        note = (
            f"test_oracle: `{best}` is the best of {len(self.scores)} by {header}. It was picked on "
            "the test set that it is scored on, so its value is too high; to report a system, pick it on dev."
        )
        return {"rule": Select.TEST_ORACLE.value, "system": best, "metric": metric, "note": note}


def page(tables: Sequence[MetricsTable], select: Select | None, reading: Reading | None) -> str:
    """The tables, with what was picked under each."""
    parts = ["Percent with bootstrap 95 % intervals."]
    if reading:
        parts.append(reading.note)
    for table in tables:
        parts.append(table.markdown())
        if select:
            parts.append(table.picked()["note"])
    return "\n\n".join(parts)


def report(tables: Sequence[MetricsTable], select: Select | None, reading: Reading | None) -> dict[str, Any]:
    """The same by kind of metrics, for JSON."""
    found = {table.kind.value: table.report() | ({"selected": table.picked()} if select else {}) for table in tables}
    return ({"reading": asdict(reading)} if reading else {}) | found


def _table(headers: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table with a row a system."""
    named = [[system, *cells] for system, cells in rows.items()]
    return markdown_table([["system", *headers], *named]).rstrip("\n")


def _cell(name: str, value: Estimate | Difference | float, sign: str = "") -> str:
    scale = 1 if name == "labels_per_answer" else 100
    if isinstance(value, float):
        return f"{scale * value:.2f}"
    middle, low, high = (f"{scale * number:{sign}.2f}" for number in (value.value, value.low, value.high))
    return f"{middle} [{low}, {high}]"
