"""The frame that importers share: tables in, sound samples and a list of bad rows out, all or nothing."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from affect_rl.data.dataset import check_free, write_dataset
from affect_rl.data.records import read_records
from affect_rl.data.validation import SPLITS, near, problems
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample, Split

_LISTED = 20
"""Bad rows that an error message lists before it only counts."""


LIST = "|"
"""Stands between the entries of a cell that holds several."""


class RowError(ValueError):
    """A row cannot be used: what is wrong with it, and the fix."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        file: the table, relative to the root.
        line: the line it ends on, counted from 1, as editors show it.
        index: how many rows come before it, the header not counted.
        values: its text by column.
    """

    file: str
    line: int
    index: int
    values: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def text(self, column: str) -> str:
        """The text of a column without surrounding space; `RowError` if there is none."""
        text = self.values[column].strip()
        if not text:
            raise RowError(f"{column} is empty; fill it in, or remove the row")
        return text

    def integer(self, column: str) -> int:
        """A whole number of at least 0."""
        text = self.values[column].strip()
        if not (text.isascii() and text.isdigit()):
            raise RowError(f"{column} is {text!r}; expected a whole number of at least 0")
        return int(text)

    def number(self, column: str) -> float:
        """A finite number."""
        text = self.values[column].strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise RowError(f"{column} is {text!r}; expected a finite number")
        return value

    def choice(self, column: str, choices: Collection[str]) -> str:
        """One of `choices`, in any case."""
        text = self.values[column].strip()
        if text.lower() not in choices:
            raise RowError(f"{column} {text!r} is unknown; {near(text.lower(), choices)}")
        return text.lower()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    file: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.problem}"


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import wrote.

    Attributes:
        directory: the dataset directory.
        counts: samples written, per split.
        skipped: samples left out because of bad rows; 0 unless the import was told to skip them.
        bad_rows: the rows at fault; several may concern one sample.
        notes: what the user should know about this import.
    """

    directory: Path
    counts: dict[Split, int]
    skipped: int
    bad_rows: tuple[BadRow, ...]
    notes: tuple[str, ...] = ()


class Importer:
    """Collects the samples and the bad rows of one import, then writes all or nothing.

    Args:
        root: directory of the tables.
        out: dataset directory to write.
        skip_bad: write the sound samples even if there are bad rows.
        overwrite: replace a dataset at `out`.

    Raises:
        AffectError: `root` is no directory, or `out` is taken.
    """

    def __init__(self, root: Path | str, out: Path | str, *, skip_bad: bool, overwrite: bool) -> None:
        self.root = Path(root)
        self.out = Path(out)
        self.skip_bad = skip_bad
        self.overwrite = overwrite
        self.samples: list[AffectSample] = []
        self.bad_rows: list[BadRow] = []
        self.row_counts: dict[str, int] = {}
        """Rows of each table read so far, bad ones included."""
        self._ids: dict[str, Row] = {}
        self._splits: dict[tuple[str, str], tuple[Split, Row]] = {}
        """Where a clip or dialogue, as ``("clip", name)``, was first: its split and the row."""
        if not self.root.is_dir():
            raise AffectError(f"{self.root}: is not a directory; give the one that holds the tables as the root")
        check_free(self.out, overwrite=overwrite)

    def rows(
        self,
        file: str,
        columns: Sequence[str],
        *,
        header: bool = True,
        encoding: str = "utf-8-sig",
        names: Collection[str] | None = None,
    ) -> Iterator[Row]:
        """The rows of a CSV file below the root; rows with too few or too many cells go to the bad rows.

        Without a header the cells are `columns`, in order; with one, `columns` are those that must be there. With
        `names` a row whose ``name`` is none of them is passed over, whatever is wrong with it, and so is an empty line.

        Raises:
            AffectError: the file is missing, cannot be decoded, or lacks a column or has it twice.
        """
        path = self.root / file
        text = self._text(path, encoding)
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)  # what ends a line is CSV's to say
        filled = (cells for cells in reader if cells)
        try:
            header_row = next(filled, []) if header else list(columns)
            for column in columns:
                if column not in header_row:
                    raise AffectError(f"{path}: column {column!r} is missing; {near(column, header_row)}")
                if header_row.count(column) > 1:
                    raise AffectError(f"{path}: column {column!r} stands twice; rename one")
            self.row_counts[file] = 0
            for index, cells in enumerate(filled):
                self.row_counts[file] = index + 1
                row = Row(file, reader.line_num, index, dict(zip(header_row, cells, strict=False)))
                if names is not None and row.values.get("name", "").strip() not in names:
                    continue
                if len(cells) == len(header_row):
                    yield row
                else:
                    self.reject(
                        row, f"has {len(cells)} cells where {len(header_row)} are expected; check its quotes and commas"
                    )
        except csv.Error as error:
            raise AffectError(f"{path}:{reader.line_num}: is not CSV: {error}; check the quotes") from None

    def records(self, file: str, columns: Sequence[str]) -> Iterator[Row]:
        """The rows of a table of any kind below the root, with `columns` only.

        A cell without a value is an empty text, a list is its entries behind each other (`LIST`). Of a Parquet file a
        row's line is its number, counted from 0.

        Raises:
            AffectError: the file is missing, is not what its suffix says, or lacks a column.
        """
        if file.endswith(".csv"):
            yield from self.rows(file, columns)
            return
        path = self.root / file
        records = read_records(path)
        known = list(dict.fromkeys(name for record in records for name in record.values))
        for column in columns:
            if column not in known:
                raise AffectError(f"{path}: column {column!r} is missing; {near(column, known)}")
        self.row_counts[file] = len(records)
        for index, record in enumerate(records):
            cells = {column: _cell(record.values.get(column)) for column in columns}
            yield Row(file, record.line, index, cells)

    def _text(self, path: Path, encoding: str) -> str:
        if not path.is_file():
            # Only beside it: media lie below the root, too, hundreds of thousands of files.
            there = sorted(str(p.relative_to(self.root)) for p in path.parent.glob("*.csv"))
            hint = near(str(path.relative_to(self.root)), there) if there else f"there is no table in {path.parent}"
            raise AffectError(f"{path}: is missing; {hint}")
        content = path.read_bytes()
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise AffectError(f"{path}:{line}: is not {encoding.removesuffix('-sig')} text; convert the file") from None

    @contextmanager
    def judging(self, row: Row) -> Iterator[None]:
        """A block whose `RowError` puts `row` among the bad rows and ends there."""
        try:
            yield
        except RowError as error:
            self.reject(row, str(error))

    def reject(self, row: Row, problem: str) -> None:
        """Put a row among the bad ones."""
        self.bad_rows.append(BadRow(row.file, row.line, problem))

    def add(self, sample: AffectSample, row: Row) -> None:
        """Keep a sample made of `row`.

        Raises:
            RowError: it is not sound, its id is taken, or its clip or dialogue is in another split.
        """
        if found := problems(sample):
            raise RowError("; ".join(found))
        if first := self._ids.get(sample.id):
            raise RowError(f"{sample.id} is also in {first.file}:{first.line}; keep one of the rows")
        belongs = [(kind, name) for kind, name in (("clip", sample.clip), ("dialogue", sample.dialogue)) if name]
        for kind, name in belongs:
            split, first = self._splits.get((kind, name), (sample.split, row))
            if split != sample.split:
                raise RowError(
                    f"{kind} {name!r} is {sample.split} here and {split} in {first.file}:{first.line}; keep all of a "
                    f"{kind} in one split"
                )
        self._ids[sample.id] = row
        for key in belongs:
            self._splits.setdefault(key, (sample.split, row))
        self.samples.append(sample)

    def require_sound(self) -> None:
        """Raise `AffectError` if there are bad rows and they are not to be skipped, or if nothing sound is left."""
        self.bad_rows.sort(key=lambda bad: (bad.file, bad.line))
        if self.bad_rows and not self.skip_bad:
            raise AffectError(
                f"{self.root}: {len(self.bad_rows)} bad row(s), so nothing was written; "
                "mend them, or skip them (--skip-bad)\n" + listing(self.bad_rows)
            )
        if not self.samples:
            raise AffectError(
                f"{self.root}: no sound sample, so nothing was written\n{listing(self.bad_rows)}".rstrip()
            )

    def finish(
        self,
        *,
        name: str,
        note: str,
        tables: Collection[str],
        notes: tuple[str, ...] = (),
        media: pa.Table | None = None,
        video_names: Sequence[str] = (),
    ) -> ImportReport:
        """Write the dataset.

        Args:
            name: name of the dataset.
            note: source and licence, for ``dataset.json``.
            tables: the tables with one row a sample, to count what was left out.
            notes: for the report.
            media: where the samples' media are.
            video_names: what the features of a video frame are, where that is known.

        Raises:
            AffectError: as in `require_sound`; nothing is written.
        """
        self.require_sound()
        write_dataset(
            self.out,
            self.samples,
            name=name,
            note=note,
            media=media,
            video_names=video_names,
            overwrite=self.overwrite,
        )
        counts = {split: sum(sample.split == split for sample in self.samples) for split in SPLITS}
        counts = {split: count for split, count in counts.items() if count}
        skipped = sum(self.row_counts[table] for table in tables) - len(self.samples)
        return ImportReport(self.out, counts, skipped, tuple(self.bad_rows), notes)


def media_table(columns: Mapping[str, Sequence[str]], root: Path) -> pa.Table:
    """The content of `MEDIA`: ``sample_id`` and paths by kind, relative to `root`, empty where there is no file."""
    schema = pa.schema([(name, pa.string()) for name in columns], metadata={"root": str(root.resolve())})
    return pa.table(dict(columns), schema=schema)


def split_groups(
    groups: Collection[str], what: str, seed: int, dev_share: float, test_share: float
) -> dict[str, Split]:
    """Draw each group's split, so that none is in two: dev and test have at least one if their share is above 0.

    Args:
        groups: names of speakers, videos or whatever belongs together.
        what: what they are, for the error.
        seed: decides which fall where.
        dev_share: share of the groups in dev.
        test_share: share of the groups in test.

    Raises:
        AffectError: no group is left for train.
    """
    order = np.random.default_rng(seed).permutation(sorted(set(groups))).tolist()
    test, dev = (max(1, round(share * len(order))) if share else 0 for share in (test_share, dev_share))
    if test + dev >= len(order):
        raise AffectError(
            f"dev_share={dev_share:g} and test_share={test_share:g} leave none of {len(order)} {what} for train; "
            "lower them"
        )
    return {group: "test" if i < test else "dev" if i < test + dev else "train" for i, group in enumerate(order)}


def listing(bad_rows: Sequence[BadRow]) -> str:
    """The first bad rows, one a line, and how many more there are."""
    lines = [f"  {bad}" for bad in bad_rows[:_LISTED]]
    if len(bad_rows) > _LISTED:
        lines.append(f"  and {len(bad_rows) - _LISTED} more")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """A value of a table as text."""
    if isinstance(value, list | tuple):
        return LIST.join(map(_cell, value))
    return "" if value is None else str(value)
