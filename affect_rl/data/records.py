"""Records from tables of any common kind: JSONL, CSV, Excel, Parquet, and the published ``.npz`` layouts."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from affect_rl.data.npz import load_npz
from affect_rl.data.validation import near
from affect_rl.errors import AffectError

MAX_UNPACKED = 2**30
"""Largest workbook that is read, in bytes. It is a ZIP archive, and a small one may unpack to any size."""

csv.field_size_limit(MAX_UNPACKED)  # by default a long cell would end the reading of all the others


class Record(NamedTuple):
    """A row of a table: where it stands (``file:line``, lines counted from 1), its values by column, and the line.

    In files that have no lines the line is the number of the row, counted from 0.
    """

    place: str
    values: Mapping[str, Any]
    line: int


def read_records(path: Path | str, required: Collection[str] = ()) -> list[Record]:
    """The records of a table; the file's suffix says of which kind it is.

    Args:
        path: the file. Of a workbook the first sheet is read; of a Parquet file all columns but features.
        required: columns that every record must have.

    Raises:
        AffectError: the file is missing, is not what its suffix says, holds no record, or lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        there = sorted(other.name for other in path.parent.glob(f"*{path.suffix}"))
        raise AffectError(f"{path}: is missing; {near(path.name, there) if there else f'no {path.suffix} beside it'}")
    if path.suffix not in _READERS:
        raise AffectError(f"{path}: kind {path.suffix!r} is unknown; {near(path.suffix, _READERS)}")
    try:
        records = list(_READERS[path.suffix](path))
    except UnicodeDecodeError:
        raise AffectError(f"{path}:{_undecodable_line(path)}: is not UTF-8 text; convert the file") from None
    if not records:
        raise AffectError(f"{path}: holds no rows; give one a sample")
    for record in records:
        for column in required:
            if column not in record.values:
                raise AffectError(f"{record.place}: column {column!r} is missing; {near(column, record.values)}")
    return records


def _undecodable_line(path: Path) -> int:
    """The first line that is not UTF-8; an error while reading tells only its place in a buffer."""
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return content[: error.start].count(b"\n") + 1
    return 1


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:  # the latter: a thousand brackets in one another
                raise AffectError(f"{path}:{number}: is not JSON: {error}; write one object a line") from None
            if not isinstance(values, dict):
                raise AffectError(f"{path}:{number}: is not a JSON object; write one object a line")
            yield Record(f"{path}:{number}", values, number)


def _csv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            yield from _under_header(path, ((reader.line_num, row) for row in reader if row))
        except csv.Error as error:
            raise AffectError(f"{path}:{reader.line_num}: is not CSV: {error}; check the quotes") from None


def _xlsx(path: Path) -> Iterator[Record]:
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > MAX_UNPACKED:
                raise AffectError(f"{path}: unpacks to {unpacked:,} bytes, more than {MAX_UNPACKED:,}; save it as CSV")
        with closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as workbook:
            rows = list(workbook.worksheets[0].iter_rows(values_only=True))
    except AffectError:
        raise
    except (zipfile.BadZipFile, InvalidFileException, ElementTree.ParseError, KeyError, IndexError, ValueError):
        raise AffectError(f"{path}: is not an Excel workbook, or damaged; fetch it again") from None
    width = max(map(len, rows), default=0)
    filled = ((number, row) for number, row in enumerate(rows, 1) if any(cell is not None for cell in row))
    yield from _under_header(path, ((number, [*row, *[None] * (width - len(row))]) for number, row in filled))


def _under_header(path: Path, rows: Iterable[tuple[int, Sequence[Any]]]) -> Iterator[Record]:
    """The records of numbered rows whose first one names the columns; a column without a name is passed over."""
    names: list[str] | None = None
    for number, cells in rows:
        if names is None:
            names = [str(cell or "").strip() for cell in cells]
            if repeated := {name for name in names if name and names.count(name) > 1}:
                raise AffectError(f"{path}:{number}: column {min(repeated)!r} stands twice; rename one")
        elif len(cells) != len(names):
            raise AffectError(
                f"{path}:{number}: has {len(cells)} cells where {len(names)} are expected; check its quotes and commas"
            )
        else:
            values = dict(zip(names, cells, strict=True))
            values.pop("", None)
            yield Record(f"{path}:{number}", values, number)


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        plain = [field.name for field in schema if not _is_features(field.type)]
        rows = pq.read_table(path, columns=plain).to_pylist()
    except (pa.ArrowException, OSError):
        raise AffectError(f"{path}: is not a Parquet file, or damaged; write it again") from None
    for index, values in enumerate(rows):
        yield Record(f"{path}: row {index}", values, index)


def _is_features(kind: Any) -> bool:
    """Whether a column holds frames of numbers, which no reader of records wants."""
    import pyarrow as pa

    return pa.types.is_list(kind) and pa.types.is_list(kind.value_type)


def _npz(path: Path) -> Iterator[Record]:
    """``filenames`` beside ``fileitems`` (answers), or the test corpus of a label file: a dictionary a sample."""
    arrays = load_npz(path)
    corpus = next((arrays[name] for name in ("test_corpus", "test1_corpus") if name in arrays), None)
    if {"filenames", "fileitems"} <= arrays.keys():
        names, items = (arrays[name].tolist() for name in ("filenames", "fileitems"))
        if len(names) != len(items):
            raise AffectError(f"{path}: has {len(names)} filenames for {len(items)} fileitems; write it again")
        for index, (name, item) in enumerate(zip(names, items, strict=True)):
            yield Record(f"{path}: item {index}", {"name": name, "fileitems": item}, index)
    elif isinstance(corpus, dict):
        for index, (name, values) in enumerate(corpus.items()):
            if not isinstance(values, dict):
                raise AffectError(f"{path}: sample {name!r} is {values!r}; expected a dictionary")
            yield Record(f"{path}: sample {name!r}", {"name": name, **values}, index)
    elif "name2reason" in arrays:
        raise AffectError(
            f"{path}: holds free text (name2reason); have it read with --free-text name2reason, or give the labels "
            "read from it, the -openset.npz"
        )
    else:
        raise AffectError(
            f"{path}: holds {', '.join(map(repr, arrays)) or 'nothing'}; expected 'filenames' and 'fileitems', or a "
            "test corpus"
        )


_READERS = {".jsonl": _jsonl, ".csv": _csv, ".xlsx": _xlsx, ".parquet": _parquet, ".npz": _npz}
