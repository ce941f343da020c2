"""``affect-rl metrics``: score the predictions of any system. Everything heavy is imported inside the functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affect_rl.errors import AffectError

if TYPE_CHECKING:
    from affect_rl.bootstrap import Estimate
    from affect_rl.predictions import Predictions
    from affect_rl.wheels import Wheels

OWN = "own"


class Metric(StrEnum):
    """What to compute; ``all``: whatever the labels allow."""

    HIT = "hit"
    FS = "fs"
    WAF = "waf"
    CLOSED = "closed"
    ALL = "all"


class WheelMapping(StrEnum):
    """Releases of the published wheels, see `affect_rl.wheels`."""

    UNIBENCH = "unibench"
    MER2026 = "mer2026"


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
"""What a section's table shows, and what it calls that. Systems are picked by the first."""


@dataclass(frozen=True, slots=True)
class Section:
    """One kind of metrics of all systems.

    Attributes:
        kind: which metrics.
        title: what was counted, and how.
        scores: the metrics of each system, an object with the names in `_COLUMNS`.
    """

    kind: Metric
    title: str
    scores: Mapping[str, Any]

    def markdown(self) -> str:
        """The title and a table with a row a system."""
        columns = _COLUMNS[self.kind]
        rows = [["system", *columns.values()], ["---"] * (1 + len(columns))]
        for system, scores in self.scores.items():
            rows.append([system.replace("|", "\\|"), *(_cell(name, getattr(scores, name)) for name in columns)])
        return "\n".join([self.title, "", *(f"| {' | '.join(row)} |" for row in rows)])


def metrics(
    labels: Annotated[Path, typer.Option(help="True labels: .jsonl, .csv, .parquet or .npz.")],
    predictions: Annotated[list[Path], typer.Option(help="Answers by the same names; may be given several times.")],
    wheel: Annotated[str, typer.Option(help="Directory of the published wheels, or `own`: the project's.")] = OWN,
    mapping: Annotated[WheelMapping, typer.Option(help="Which release that directory holds.")] = WheelMapping.UNIBENCH,
    metric: Annotated[Metric, typer.Option(help="What to compute; `all`: whatever the labels allow.")] = Metric.ALL,
    label_column: Annotated[str, typer.Option(help="Column of the true labels.")] = "label",
    select: Annotated[
        Select | None, typer.Option(help="Pick the best system; test_oracle: on the samples it is scored on.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of Markdown.")] = False,
) -> None:
    """Score predictions of any system: HIT with F_s, WAF, and the metrics of closed label sets."""
    from affect_rl.predictions import read_predictions
    from affect_rl.wheels import own_wheel, read_wheels

    wheels = own_wheel() if wheel == OWN else read_wheels(Path(wheel), mapping.value)
    found = read_predictions(labels, predictions, label_column)
    try:
        sections = [_section(kind, found, wheels, resamples, seed) for kind in _kinds(found, metric)]
    except ValueError as error:
        raise AffectError(f"{labels}: {error}") from None
    if as_json:
        settings = {"wheel": wheels.name, "resamples": resamples, "seed": seed, "confidence": 0.95}
        typer.echo(json.dumps({"samples": len(found.names)} | settings | _report(sections, select), indent=1))
    else:
        typer.echo(_page(sections, select))


def _kinds(found: Predictions, metric: Metric) -> list[Metric]:
    """The sections that a metric asks for; `ValueError` if the labels do not allow them."""
    words, values = found.labels is not None, found.values is not None
    single = all(len(truth) == 1 for truth in found.labels or ())
    if metric is Metric.ALL:
        allowed = {
            Metric.HIT: single and not values,
            Metric.FS: not single and not values,
            Metric.WAF: values,
            Metric.CLOSED: single and words,
        }
        return [kind for kind, does in allowed.items() if does]
    if metric is Metric.WAF and not values:
        raise ValueError("the labels are words; WAF needs numbers, or negative, neutral and positive")
    if metric is not Metric.WAF and not words:
        raise ValueError(f"the labels are numbers; {metric.value} needs words, so choose --metric waf")
    if metric is Metric.HIT and not single:
        raise ValueError("a sample has several true labels; HIT needs one, so choose --metric fs")
    return [metric]


def _section(kind: Metric, found: Predictions, wheels: Wheels, resamples: int, seed: int) -> Section:
    """One kind of metrics of all systems."""
    from affect_rl.benchmark_metrics import score_open_labels, score_sentiment
    from affect_rl.metrics import evaluate

    labels, values, total = found.labels or (), found.values or (), len(found.names)
    classes = sorted({label for truth in labels for label in truth})
    scorers: dict[Metric, Callable[..., Any]] = {
        Metric.HIT: partial(score_open_labels, true=labels, wheels=wheels),
        Metric.FS: partial(score_open_labels, true=labels, wheels=wheels),
        Metric.WAF: partial(score_sentiment, values=values),
        Metric.CLOSED: partial(evaluate, true=labels, candidates=classes),
    }
    scores = {name: scorers[kind](answers, resamples=resamples, seed=seed) for name, answers in found.systems.items()}
    first = next(iter(scores.values()))
    match kind:
        case Metric.HIT | Metric.FS:
            by_wheel = " / ".join(f"{part.used:,}" for part in first.by_wheel)
            what, used = f"Open labels, wheel `{wheels.name}` (samples per wheel: {by_wheel})", first.used
        case Metric.WAF:
            what, used = "Sentiment, values other than 0", first.used
        case _:
            what, used = f"Closed set of {len(classes)}, the first label of an answer", total
    return Section(kind, f"{what}: {used:,} of {total:,} samples used", scores)


def _page(sections: list[Section], select: Select | None) -> str:
    """The tables, with what was picked under each."""
    parts = ["Percent with bootstrap 95 % intervals."]
    for section in sections:
        parts.append(section.markdown())
        if select:
            parts.append(_picked(section)["note"])
    return "\n\n".join(parts)


def _report(sections: list[Section], select: Select | None) -> dict[str, Any]:
    """The same by kind of metrics, with everything that was computed; shares lie in [0, 1]."""
    return {
        section.kind.value: {
            "title": section.title,
            "scores": {system: asdict(scores) for system, scores in section.scores.items()},
        }
        | ({"selected": _picked(section)} if select else {})
        for section in sections
    }


def _picked(section: Section) -> dict[str, str]:
    """The best system of a section on the samples that it is scored on, and what to think of that."""
    metric, header = next(iter(_COLUMNS[section.kind].items()))
    best = max(section.scores, key=lambda system: getattr(section.scores[system], metric).value)
    note = (
        f"test_oracle: `{best}` is the best of {len(section.scores)} by {header}. It was picked on "
        "the test set that it is scored on, so its value is too high; to report a system, pick it on dev."
    )
    return {"rule": Select.TEST_ORACLE.value, "system": best, "metric": metric, "note": note}


def _cell(name: str, value: Estimate | float) -> str:
    scale = 1 if name == "labels_per_answer" else 100
    if isinstance(value, float):
        return f"{scale * value:.2f}"
    return f"{scale * value.value:.2f} [{scale * value.low:.2f}, {scale * value.high:.2f}]"
