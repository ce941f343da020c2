"""True labels and predictions of any system, read from files and matched by name.

A file has one record a sample; `affect_rl.data.records` lists the kinds of file. The sample's name stands under
``name``, ``id`` or ``sample_id``. True labels stand in one column. Predictions stand in an object ``predictions`` with
one entry a system, or in columns: the named ones, or all that are neither name nor label. An entry is text such as
``[happy, excited]`` or a list of texts; a true label may also be a number, a sentiment. Answers may also be free text:
then the columns that hold it are named, and a reader (`affect_rl.scoring.free_text`) makes labels of them. Of an
experiment's table (`affect_rl.experiments.results.PREDICTIONS`) each arm and seed is a system.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from affect_rl.data.npz import load_npz
from affect_rl.data.records import Record, read_records
from affect_rl.data.validation import SENTIMENT_RANGE, near
from affect_rl.errors import AffectError
from affect_rl.scoring.benchmark_metrics import SIGN_VALUES
from affect_rl.scoring.free_text import TextReader
from affect_rl.scoring.wheels import parse_labels

NAME_COLUMNS = ("name", "id", "sample_id")
REASONS = "name2reason"
"""The column of a published ``.npz`` of free text."""
SINGLE_COLUMNS = ("prediction", "predictions", "fileitems", REASONS)
"""A lone column of predictions called so is a system that goes by the file's name."""

_Rows = dict[str, tuple[str, Mapping[str, Any]]]
"""Where the record of a sample stands, and its entries by system; by the sample's name."""
_INDEX = "__index_level_"
"""Columns in which pandas keeps an index without a name begin so."""
_LISTED = 3
"""Names that an error message lists before it only counts."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """The truth and the answers of systems, in the same order.

    Attributes:
        names: of the samples.
        labels: true labels of each sample; None if the file holds numbers.
        values: true sentiment of each sample; None if the file holds words other than negative, neutral and positive.
        systems: labels of each answer, by system. Before `read_free_text`, an answer in free text is one label, the
            whole text.
    """

    names: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...] | None
    values: tuple[float, ...] | None
    systems: Mapping[str, tuple[tuple[str, ...], ...]]


def read_predictions(
    labels: Path,
    predictions: Sequence[Path],
    label_column: str = "label",
    columns: Collection[str] = (),
    free_text: bool = False,
) -> Predictions:
    """Read the truth and the answers; one file may hold both.

    Args:
        labels: file of the true labels.
        predictions: files of answers; each has an answer to every sample.
        label_column: the column of the true labels.
        columns: the columns of answers, other ones are passed over; none: all columns. If one is named and there are
            several files, the systems go by the files' names.
        free_text: whether those columns hold free text.

    Raises:
        AffectError: a file cannot be read, a column is missing, a name is missing, unknown or stands twice, a system
            stands twice, an entry is neither text nor a list of texts, or only some of the files hold free text.
    """
    truth = _by_name(_by_sample(read_records(labels)))
    for record in truth.values():
        if label_column not in record.values:
            raise AffectError(
                f"{record.place}: column {label_column!r} is missing; {near(label_column, record.values)} "
                "(--label-column names the column of the true labels)"
            )
    entries = [(record.place, record.values[label_column]) for record in truth.values()]
    words, values = None, _numbers(entries)
    if values is None:
        words = tuple(_true_labels(*entry) for entry in entries)
        values = _signs(words)
    tables = [(path, _rows(path, label_column, truth, free_text)) for path in predictions]
    if columns:
        tables = _only(tables, columns, free_text)
    systems: dict[str, tuple[tuple[str, ...], ...]] = {}
    for path, rows in tables:
        for system, answers in _systems(path, rows, tuple(truth), _free_text if free_text else _answer).items():
            name = path.stem if len(columns) == 1 < len(tables) else system
            if name in systems:
                raise AffectError(f"{path}: system {name!r} is also in another file; rename one")
            systems[name] = answers
    return Predictions(tuple(truth), words, values, systems)


def read_free_text(found: Predictions, reader: TextReader) -> Predictions:
    """The same predictions, with the labels that a reader finds in the free text of the answers."""
    labels = iter(reader.read([text for answers in found.systems.values() for (text,) in answers]))
    return replace(found, systems={system: tuple(islice(labels, len(found.names))) for system in found.systems})


def _by_name(records: Iterable[Record]) -> dict[str, Record]:
    """The records by the name of their sample."""
    found: dict[str, Record] = {}
    for record in records:
        column = next((column for column in NAME_COLUMNS if column in record.values), None)
        if column is None:
            raise AffectError(f"{record.place}: column 'name' is missing; {near('name', record.values)}")
        value = record.values[column]
        name = "" if value is None else str(value).strip()
        if not name:
            raise AffectError(f"{record.place}: {column} is empty; give every sample a name")
        if name in found:
            raise AffectError(f"{record.place}: {column} {name!r} is also in {found[name].place}; keep one of the two")
        found[name] = record
    return found


def _rows(path: Path, label_column: str, truth: Mapping[str, Record], free_text: bool) -> _Rows:
    """The entries of a file that has every sample."""
    records = _by_name(_text_records(path) if free_text else _by_sample(read_records(path)))
    _check_names(path, records, truth)
    return {name: (record.place, _row(record, label_column)) for name, record in records.items()}


def _by_sample(records: Sequence[Record]) -> Sequence[Record]:
    """The records of an experiment's table, which has a row a sample and run, by sample; other records as they are."""
    if not records[0].values.keys() >= {"arm", "seed", "sample_id", "predicted"}:
        return records
    found: dict[str, Record] = {}
    for place, row, line in records:
        first = Record(place, {"name": row["sample_id"], "labels": row.get("labels"), "predictions": {}}, line)
        systems = found.setdefault(row["sample_id"], first).values["predictions"]
        systems[f"{row['arm']}, seed {row['seed']}"] = row["predicted"]
    return list(found.values())


def _text_records(path: Path) -> list[Record]:
    """The records of a file that may also be a published ``.npz`` of free text: a dictionary from names to texts."""
    texts = load_npz(path).get(REASONS) if path.suffix == ".npz" else None
    if not isinstance(texts, dict):
        return read_records(path)
    return [
        Record(f"{path}: sample {name!r}", {"name": name, REASONS: text}, index)
        for index, (name, text) in enumerate(texts.items())
    ]


def _only(tables: Sequence[tuple[Path, _Rows]], columns: Collection[str], free_text: bool) -> list[tuple[Path, _Rows]]:
    """The tables without other columns. Each must have one: among free text, other answers would be labels already."""
    option, what = ("--free-text", "answers in free text") if free_text else ("--prediction-column", "answers")
    there = [{column for _, entries in rows.values() for column in entries} for _, rows in tables]
    for column in columns:
        if not any(column in known for known in there):
            raise AffectError(
                f"{tables[0][0]}: column {column!r} is missing; {near(column, sorted(set().union(*there)))} "
                f"({option} names the columns of {what})"
            )
    reading = [path for (path, _), known in zip(tables, there, strict=True) if not known.isdisjoint(columns)]
    for path, _ in tables:
        if path not in reading:
            named, others = ", ".join(map(repr, columns)), ", ".join(map(str, reading))
            mixed = f"has no free text in {named}, so its answers are labels already, while those of {others} are read"
            raise AffectError(
                f"{path}: {mixed} from free text; score the files apart"
                if free_text
                else f"{path}: has no column {named}, as {others} has; name one of its columns, too"
            )
    return [
        (path, {name: (place, {c: row[c] for c in row if c in columns}) for name, (place, row) in rows.items()})
        for path, rows in tables
    ]


def _systems(
    path: Path, rows: _Rows, names: Sequence[str], read: Callable[[str, str, Any], tuple[str, ...]]
) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The answers of each system in a file, in the order of the names."""
    systems = next(iter(rows.values()))[1].keys()
    for place, row in rows.values():
        if not systems:
            raise AffectError(f"{path}: has no column of predictions; add one beside 'name'")
        if lacking := sorted(systems - row.keys()):
            raise AffectError(f"{place}: has no prediction of {lacking[0]!r}; {near(lacking[0], row)}")
        if unknown := sorted(row.keys() - systems):
            raise AffectError(f"{place}: {unknown[0]!r} is new here; {near(unknown[0], systems)}")
    answers = {
        system: tuple(read(rows[name][0], system, rows[name][1][system]) for name in names) for system in systems
    }
    lone = next(iter(answers))
    return {path.stem: answers[lone]} if len(answers) == 1 and lone in SINGLE_COLUMNS else answers


def _row(record: Record, label_column: str) -> Mapping[str, Any]:
    """The entries of a record by system."""
    if isinstance(entries := record.values.get("predictions"), Mapping):
        return entries
    known = {*NAME_COLUMNS, "label", "labels", label_column}
    entries = {
        column: entry
        for column, entry in record.values.items()
        if column not in known and not column.startswith(_INDEX)
    }
    for column, entry in entries.items():
        if isinstance(entry, Mapping):
            raise AffectError(f"{record.place}: {column} is an object; {near(column, ('predictions',))}")
    return entries


def _check_names(path: Path, records: Mapping[str, Record], truth: Mapping[str, Record]) -> None:
    missing = [name for name in truth if name not in records]
    unknown = [name for name in records if name not in truth]
    if not missing and not unknown:
        return
    found = []
    if missing:
        found.append(f"{len(missing)} of {len(truth)} samples have no prediction ({_listing(missing)})")
    if unknown:
        hint = near(unknown[0], missing) if missing else "leave them out, or add their labels"
        found.append(f"{len(unknown)} predictions have no label ({_listing(unknown)}; {hint})")
    raise AffectError(f"{path}: names do not match the labels: {' and '.join(found)}")


def _listing(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_LISTED])) + (", ..." if len(names) > _LISTED else "")


def _answer(place: str, system: str, entry: Any) -> tuple[str, ...]:
    entry = entry.tolist() if isinstance(entry, np.ndarray) else entry
    if not _is_text(entry) and entry is not None:
        raise AffectError(
            f"{place}: the prediction of {system!r} is {entry!r}; expected text or a list of texts "
            "(--prediction-column names the columns of answers)"
        )
    return parse_labels(entry)


def _free_text(place: str, system: str, entry: Any) -> tuple[str, ...]:
    """The whole text as one label; no answer is an empty text."""
    if not isinstance(entry, str) and entry is not None:
        raise AffectError(f"{place}: the free text of {system!r} is {entry!r}; expected text")
    return (entry or "",)


def _true_labels(place: str, entry: Any) -> tuple[str, ...]:
    if not _is_text(entry):
        raise AffectError(f"{place}: the label is {entry!r}; expected text, a list of texts, or a number everywhere")
    labels = tuple(dict.fromkeys(parse_labels(entry)))
    if not labels:
        raise AffectError(f"{place}: the label is empty; give every sample one, or leave the sample out")
    return labels


def _is_text(entry: Any) -> bool:
    return isinstance(entry, str) or (isinstance(entry, list | tuple) and all(isinstance(text, str) for text in entry))


def _numbers(entries: Sequence[tuple[str, Any]]) -> tuple[float, ...] | None:
    """The labels as sentiments, or None if none of them is a number."""
    numbers = [(place, entry, _number(entry)) for place, entry in entries]
    if all(number is None for _, _, number in numbers):
        return None
    for place, entry, number in numbers:
        if number is None:
            raise AffectError(f"{place}: the label is {entry!r} but others are numbers; make them all of one kind")
        if not abs(number) <= SENTIMENT_RANGE:
            raise AffectError(
                f"{place}: the label is {entry!r}; a sentiment lies in [-{SENTIMENT_RANGE:g}, {SENTIMENT_RANGE:g}]"
            )
    return tuple(number for _, _, number in numbers if number is not None)


def _number(entry: Any) -> float | None:
    """The entry as a number; not finite for what is one only by type."""
    if isinstance(entry, int | float) and not isinstance(entry, bool):
        return float(entry)
    try:
        number = float(entry) if isinstance(entry, str) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _signs(labels: Sequence[Sequence[str]]) -> tuple[float, ...] | None:
    """Words of sentiment as values; None if any label is another word."""
    signs = [SIGN_VALUES.get(truth[0]) if len(truth) == 1 else None for truth in labels]
    return None if None in signs else tuple(sign for sign in signs if sign is not None)
