"""``affect-rl metrics``: score the predictions of any system. Everything heavy is imported inside the functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from affect_rl.errors import AffectError
from cluster.cli.metrics_tables import Metric, MetricsTable, Reading, Select, page, report

if TYPE_CHECKING:
    from affect_rl.scoring.free_text import TextReader
    from affect_rl.scoring.predictions import Predictions
    from affect_rl.scoring.wheels import Level, Wheels

OWN = "own"
WheelMapping = Literal["unibench", "mer2026"]  # `affect_rl.scoring.wheels` has the same, but is not to be imported here


class Reader(StrEnum):
    """What makes labels of free text: `affect_rl.scoring.free_text`, or `rollout_workers.label_extractor`."""

    WORDS = "words"
    LLM = "llm"


def metrics(
    labels: Annotated[Path, typer.Option(help="True labels: .jsonl, .csv, .parquet or .npz.")],
    predictions: Annotated[list[Path], typer.Option(help="Answers by the same names; may be given several times.")],
    prediction_column: Annotated[
        list[str] | None,
        typer.Option(help="Column of answers; may be given several times. Default: all but name and label."),
    ] = None,
    free_text: Annotated[
        list[str] | None,
        typer.Option(help="Column of answers in free text; may be given several times. Other columns are passed over."),
    ] = None,
    reader: Annotated[
        Reader | None, typer.Option(help="What reads free text: `words`, a list (default), or `llm`, see --llm.")
    ] = None,
    llm: Annotated[str, typer.Option(help="Language model that reads free text: path or hub name.")] = "",
    llm_cache: Annotated[Path | None, typer.Option(help="File that keeps its answers; with --reader llm.")] = None,
    wheel: Annotated[str, typer.Option(help="Directory of the published wheels, or `own`: the project's.")] = OWN,
    mapping: Annotated[
        WheelMapping | None, typer.Option(help="Which release that directory holds; default: unibench.")
    ] = None,
    level: Annotated[int, typer.Option(min=1, max=2, help="Level of the published wheels' clusters.")] = 1,
    metric: Annotated[Metric, typer.Option(help="What to compute; `all`: whatever the labels allow.")] = Metric.ALL,
    label_column: Annotated[str, typer.Option(help="Column of the true labels.")] = "label",
    candidates: Annotated[
        str, typer.Option(help="Classes of a closed set, such as `joy, fear`; default: all true labels.")
    ] = "",
    reference: Annotated[
        str, typer.Option(help="System that the others are compared with; default: the first.", show_default=False)
    ] = "",
    select: Annotated[
        Select | None, typer.Option(help="Pick the best system; test_oracle: on the samples it is scored on.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of Markdown.")] = False,
) -> None:
    """Score predictions of any system: HIT with F_s, WAF, and the metrics of closed label sets."""
    from affect_rl.scoring.predictions import read_predictions
    from affect_rl.scoring.wheels import own_wheel, parse_labels, read_wheels

    _check_reader(bool(free_text), reader, llm, llm_cache)
    if free_text and prediction_column:
        raise AffectError("--free-text and --prediction-column: answers are free text or labels; give one of the two")
    if wheel == OWN and mapping:
        raise AffectError(f"--mapping {mapping}: is of the published wheels; give their directory with --wheel")
    wheels = own_wheel() if wheel == OWN else read_wheels(Path(wheel), mapping or "unibench")
    depth = cast("Level", level)
    wheels.group((), depth)  # raises if the wheels have no such level
    found = read_predictions(labels, predictions, label_column, free_text or prediction_column or (), bool(free_text))
    classes = parse_labels(candidates) or sorted({label for truth in found.labels or () for label in truth})
    first, reading, resampling = _reference(found, reference), None, {"resamples": resamples, "seed": seed}
    try:
        kinds = _kinds(found, metric, wheels, depth)
        if free_text:
            found, reading = _read(found, wheels, llm, llm_cache)
        tables = [_table(kind, found, wheels, depth, classes, first, reading, resampling) for kind in kinds]
    except AffectError:
        raise
    except ValueError as error:
        raise AffectError(f"{labels}: {error}") from None
    if as_json:
        settings = {"wheel": wheels.name, "level": level, **resampling, "confidence": 0.95}
        typer.echo(json.dumps({"samples": len(found.names)} | settings | report(tables, select, reading), indent=1))
    else:
        typer.echo(page(tables, select, reading))


def _check_reader(free_text: bool, reader: Reader | None, llm: str, llm_cache: Path | None) -> None:
    """The options of readers fit each other."""
    if not free_text and (reader or llm or llm_cache):
        given = "--reader" if reader else "--llm" if llm else "--llm-cache"
        raise AffectError(f"{given}: nothing is to be read; name the column of free text with --free-text")
    if reader is Reader.LLM and not (llm and llm_cache):
        lacking = "--llm MODEL" if not llm else "--llm-cache FILE"
        raise AffectError(f"--reader llm: needs a model and a file that keeps its answers; add {lacking}")
    if reader is not Reader.LLM and (llm or llm_cache):
        given = "--llm" if llm else "--llm-cache"
        raise AffectError(f"{given}: the reader is {Reader.WORDS.value!r}, which asks no model; add --reader llm")


def _read(found: Predictions, wheels: Wheels, llm: str, llm_cache: Path | None) -> tuple[Predictions, Reading]:
    """The predictions with labels of their free text, and how these came about."""
    from affect_rl.scoring.benchmark_metrics import SIGN_VALUES
    from affect_rl.scoring.free_text import WordReader
    from affect_rl.scoring.predictions import read_free_text

    if llm and llm_cache:
        from affect_rl.config.services import RolloutConfig
        from rollout_workers.label_extractor import LabelExtractor

        if found.values is not None:
            raise AffectError("--reader llm: reads emotions, but the true labels are sentiments; use --reader words")
        extractor = LabelExtractor(llm, llm_cache, config=RolloutConfig(threads=0))
        read = read_free_text(found, extractor)
        return read, _reading(read, extractor, extractor.malformed)
    signs = found.values is not None
    reader = WordReader.of_words("sentiments", SIGN_VALUES) if signs else WordReader.of_wheels(wheels)
    read = read_free_text(found, reader)
    return read, _reading(read, reader, None)


def _reading(read: Predictions, reader: TextReader, malformed: int | None) -> Reading:
    without = {system: sum(not labels for labels in answers) for system, answers in read.systems.items()}
    return Reading(reader.name, reader.settings, len(read.names), without, malformed)


def _reference(found: Predictions, name: str) -> str:
    """The system that the others are compared with; the first if none is named."""
    from affect_rl.data.validation import near

    if name and name not in found.systems:
        raise AffectError(f"--reference {name!r}: there is no such system; {near(name, found.systems)}")
    return name or next(iter(found.systems))


def _kinds(found: Predictions, metric: Metric, wheels: Wheels, level: Level) -> list[Metric]:
    """The sections that a metric asks for; `ValueError` if the labels do not allow them."""
    words, values = found.labels is not None, found.values is not None
    single = all(len(truth) == 1 for truth in found.labels or ())
    if metric is Metric.ALL:
        known = any(any(wheels.group(truth, level)) for truth in found.labels or ())
        allowed = {
            Metric.HIT: known and single and not values,
            Metric.FS: not values and not single,  # nothing else is left, so unknown labels are an error
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


def _table(
    kind: Metric,
    found: Predictions,
    wheels: Wheels,
    level: Level,
    classes: Sequence[str],
    reference: str,
    reading: Reading | None,
    resampling: Mapping[str, int],
) -> MetricsTable:
    """One kind of metrics of all systems."""
    from affect_rl.scoring.benchmark_metrics import (
        compare_open_labels,
        compare_sentiment,
        score_open_labels,
        score_sentiment,
    )
    from affect_rl.scoring.metrics import compare, evaluate

    labels, values, total = found.labels or (), found.values or (), len(found.names)
    grouped: dict[str, Any] = {"true": labels, "wheels": wheels, "level": level}
    functions: dict[Metric, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
        Metric.HIT: (score_open_labels, compare_open_labels, grouped),
        Metric.FS: (score_open_labels, compare_open_labels, grouped),
        Metric.WAF: (score_sentiment, compare_sentiment, {"values": values}),
        Metric.CLOSED: (evaluate, compare, {"true": labels, "candidates": classes}),
    }
    score, difference, truth = functions[kind]
    scores = {name: score(answers, **truth, **resampling) for name, answers in found.systems.items()}
    differences = {
        name: difference(found.systems[reference], answers, **truth, **resampling)
        for name, answers in found.systems.items()
        if name != reference
    }
    first = scores[reference]
    match kind:
        case Metric.HIT | Metric.FS:
            by_wheel = " / ".join(f"{part.used:,}" for part in first.by_wheel)
            depth = "" if level == 1 else f", level {level}"
            what, used = f"Open labels, wheel `{wheels.name}`{depth} (samples per wheel: {by_wheel})", first.used
        case Metric.WAF:
            what, used = "Sentiment, values other than 0", first.used
        case _:
            what, used = f"Closed set of {len(classes)}, the first label of an answer", total
    how = f"; {reading.title}" if reading else ""
    return MetricsTable(kind, f"{what}: {used:,} of {total:,} samples used{how}", scores, reference, differences)
