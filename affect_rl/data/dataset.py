"""Datasets on disk: one Parquet file per split and a manifest, ``dataset.json``.

Features are stored as ``list<list<float>>`` (frames of numbers), so that any Parquet reader shows them
as they are; they come back as views on one flat buffer per column, not through Python lists.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from affect_rl.config.job import DataConfig
from affect_rl.data.extraction import Extraction
from affect_rl.data.relative import SpeakerScale
from affect_rl.data.validation import SPLITS, Key, leak, near, problems, profile
from affect_rl.errors import AffectError
from affect_rl.files import sha256, whole_directory
from affect_rl.sample import AffectSample, LabelKind, Split

MANIFEST = "dataset.json"
MEDIA = "media.parquet"
"""Where the media of the samples are, for ``affect-rl data extract``; lies in the directory, is no part of the data."""
MOST_NUMBERS = 2**31 - 1
"""Numbers that a modality's features in one split may have: the lists of their file count in 32 bits."""
_FEATURES = pa.list_(pa.list_(pa.float32()))
_LABELS = pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("clip", pa.string(), nullable=False),
        pa.field("dialogue", pa.string()),
        pa.field("speaker", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("labels", _LABELS, nullable=False),
        pa.field("label_kind", pa.string(), nullable=False),
        pa.field("candidates", _LABELS, nullable=False),
        pa.field("description", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("audio", _FEATURES),
        pa.field("video", _FEATURES),
    ]
)
"""Columns of a split's Parquet file, in order; they are the fields of `AffectSample`."""


class SplitManifest(BaseModel):
    """One split's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(ge=0)
    sha256: str


class Manifest(BaseModel):
    """What ``dataset.json`` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    name: str = Field(min_length=1)
    label_kind: LabelKind
    candidates: tuple[str, ...]
    audio_dim: int = Field(ge=0)
    video_dim: int = Field(ge=0)
    audio_names: tuple[str, ...] = ()
    """What the features of an audio frame are, where that is known."""
    video_names: tuple[str, ...] = ()
    """Likewise of a video frame."""
    extraction: Extraction | None = None
    """How the features were made of media, if ``affect-rl data extract`` made them."""
    described: bool = False
    """``affect-rl data describe`` put the features into words."""
    note: str = ""
    splits: dict[Split, SplitManifest]


class Dataset:
    """A dataset directory whose manifest, hashes, schema and separation of splits have been checked.

    Splits are read on first use and kept.

    Attributes:
        per_speaker: features are given relative to what is usual for their speaker (`affect_rl.data.relative`).
    """

    def __init__(self, directory: Path, manifest: Manifest, *, per_speaker: bool = False) -> None:
        self.directory = directory
        self.manifest = manifest
        self.per_speaker = per_speaker
        self._samples: dict[Split, list[AffectSample]] = {}

    @classmethod
    def load(cls, directory: Path | str, *, per_speaker: bool = False) -> Dataset:
        """Open a directory written by `write_dataset`; `per_speaker` as in `Dataset`.

        Raises:
            AffectError: it is no dataset, a file does not match the manifest or the schema, an id occurs
                twice, or a clip or dialogue lies in two of train, dev and test.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        for split, expected in manifest.splits.items():
            _check_file(directory / f"{split}.parquet", expected)
        known = {MEDIA, *(f"{split}.parquet" for split in manifest.splits)}
        if strays := {path.name for path in directory.glob("*.parquet")} - known:
            raise AffectError(
                f"{directory / min(strays)}: is not in {MANIFEST}; remove the file, or write the dataset again"
            )
        columns = list(Key._fields)
        tables = {split: pq.read_table(directory / f"{split}.parquet", columns=columns) for split in manifest.splits}
        if found := leak({split: _keys(table) for split, table in tables.items()}):
            raise AffectError(f"{directory}/{found}")
        return cls(directory, manifest, per_speaker=per_speaker)

    @classmethod
    def of(cls, settings: DataConfig) -> Dataset:
        """The dataset that a job is to work on; raises as `load` does."""
        return cls.load(settings.dir, per_speaker=settings.per_speaker)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def label_kind(self) -> LabelKind:
        return self.manifest.label_kind

    @property
    def candidates(self) -> tuple[str, ...]:
        return self.manifest.candidates

    @property
    def audio_dim(self) -> int:
        """Width of an audio frame; 0 if no sample has audio."""
        return self.manifest.audio_dim

    @property
    def video_dim(self) -> int:
        """Width of a video frame; 0 if no sample has video."""
        return self.manifest.video_dim

    @property
    def counts(self) -> dict[Split, int]:
        """Samples per split, for the splits there are."""
        return {split: self.manifest.splits[split].rows for split in SPLITS if split in self.manifest.splits}

    def samples(self, split: Split, limit: int = 0) -> list[AffectSample]:
        """The samples of a split in file order; if `limit` is above 0, at most so many, the same ones every time.

        They are drawn at random: files are often sorted by speaker, so the first ones would be no fair sample.

        A dataset without a library has an empty one; any other split must be there.

        Raises:
            AffectError: the dataset has no such split, or a row is not sound.
        """
        if split not in self.manifest.splits:
            if split == "library":
                return []
            raise AffectError(f"{self.directory}: has no split {split!r}; it has {', '.join(self.counts)}")
        if split not in self._samples:
            self._samples[split] = self.scale.relate(self.measured(split)) if self.per_speaker else self.measured(split)
        samples = self._samples[split]
        if not 0 < limit < len(samples):
            return samples
        return [samples[i] for i in sorted(random.Random(split).sample(range(len(samples)), limit))]

    @cached_property
    def scale(self) -> SpeakerScale:
        """Takes features relative to their speaker, as `samples` does with `per_speaker`.

        The train split says what is usual; that of evidence, in a dataset that is nothing else.
        """
        there: list[Split] = [split for split in ("train", "library") if split in self.manifest.splits]
        return SpeakerScale(self.measured(there[0]) if there else ())

    def measured(self, split: Split) -> list[AffectSample]:
        """The samples of a split with their features as they were stored.

        Raises:
            AffectError: a row is not sound.
        """
        path = self.directory / f"{split}.parquet"
        table = pq.read_table(path)
        features = {name: _read_features(path, table[name]) for name in ("audio", "video")}
        samples = []
        for row, record in enumerate(table.drop_columns(["audio", "video"]).to_pylist()):
            absent = [name for name, value in record.items() if value is None and not SCHEMA.field(name).nullable]
            if absent:
                raise AffectError(f"{path}: row {row}: {absent[0]} is null; give every row a value")
            record |= {name: tuple(record[name]) for name in ("labels", "candidates")}
            sample = AffectSample(**record, audio=features["audio"][row], video=features["video"][row])
            if found := problems(sample) + self._disagreements(sample, split):
                raise AffectError(f"{path}: row {row}: {found[0]}")
            samples.append(sample)
        return samples

    def _disagreements(self, sample: AffectSample, split: Split) -> list[str]:
        """How a sample differs from what the manifest says of all."""
        pairs: dict[str, tuple[object, object]] = {
            "split": (sample.split, split),
            "label_kind": (sample.label_kind, self.label_kind),
            "candidates": (sample.candidates, self.candidates),
        }
        for name, features, width in (("audio", sample.audio, self.audio_dim), ("video", sample.video, self.video_dim)):
            if features is not None:
                pairs[f"{name}_dim"] = (features.shape[1], width)
        return [
            f"{name} is {found!r} but {MANIFEST} says {expected!r}; make them agree"
            for name, (found, expected) in pairs.items()
            if found != expected
        ]


def write_dataset(
    directory: Path | str,
    samples: Iterable[AffectSample],
    *,
    name: str,
    note: str = "",
    media: pa.Table | None = None,
    audio_names: Sequence[str] = (),
    video_names: Sequence[str] = (),
    extraction: Extraction | None = None,
    described: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a dataset directory, whole or not at all.

    Args:
        directory: where to; must not exist or be empty, unless `overwrite` replaces the dataset in it.
        samples: all samples of all splits; order within a split is kept.
        name: name of the dataset.
        note: source and licence, and what a user must know.
        media: the content of `MEDIA`; without it there is no such file.
        audio_names: what the features of an audio frame are, where that is known.
        video_names: likewise of a video frame.
        extraction: how the features were made of media, where they were.
        described: the features have been put into words.
        overwrite: replace an existing dataset; a directory that is none is never replaced.

    Raises:
        AffectError: there is something at `directory`, or the samples are not sound; nothing is written.
    """
    directory = Path(directory)
    check_free(directory, overwrite=overwrite)
    samples = list(samples)
    if not samples:
        raise AffectError(f"{directory}: no samples to write")
    for number, sample in enumerate(samples):
        if found := problems(sample):
            raise AffectError(f"{directory}: sample {number} ({sample.id!r}): {found[0]}")
    try:
        common = profile(samples)
    except ValueError as error:
        raise AffectError(f"{directory}: {error}") from None
    for modality, names, width in (
        ("audio", audio_names, common.audio_dim),
        ("video", video_names, common.video_dim),
    ):
        if names and width and len(names) != width:
            raise AffectError(f"{directory}: {len(names)} names for {width} {modality} features; name each, or none")
    manifest = Manifest(
        name=name,
        note=note,
        splits={},
        audio_names=tuple(audio_names),
        video_names=tuple(video_names),
        extraction=extraction,
        described=described,
        **common._asdict(),
    )
    by_split = {split: [sample for sample in samples if sample.split == split] for split in SPLITS}
    for split, chosen in by_split.items():
        for modality in ("audio", "video"):
            count = sum(x.size for s in chosen if (x := getattr(s, modality)) is not None)
            check_numbers(count, modality, f"{directory}/{split}.parquet")
    tables = {split: _table(chosen) for split, chosen in by_split.items() if chosen}
    if found_leak := leak({split: _keys(table) for split, table in tables.items()}):
        raise AffectError(f"{directory}/{found_leak}")
    with whole_directory(directory, replace=True) as partial:
        _write(partial, tables, manifest)
        if media is not None:
            pq.write_table(media, partial / MEDIA)
    return directory


def copy_dataset(
    dataset: Dataset,
    directory: Path | str,
    samples: Iterable[AffectSample],
    *,
    note: str = "",
    described: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a dataset anew with other `samples` of the same kind, `described` from now on or as before.

    Names, media and notes are kept; `note` is added.

    Raises:
        AffectError: as in `write_dataset`, or `directory` is the dataset's own.
    """
    directory, manifest = Path(directory), dataset.manifest
    if directory.resolve() == dataset.directory.resolve():
        raise AffectError(f"{directory}: is where the dataset is read from; choose another directory to write")
    media = dataset.directory / MEDIA
    return write_dataset(
        directory,
        samples,
        name=manifest.name,
        note="\n".join(filter(None, [manifest.note, note])),
        media=pq.read_table(media) if media.is_file() else None,
        audio_names=manifest.audio_names,
        video_names=manifest.video_names,
        extraction=manifest.extraction,
        described=manifest.described or described,
        overwrite=overwrite,
    )


def check_free(directory: Path, *, overwrite: bool) -> None:
    """Raise `AffectError` unless a dataset may be written to `directory`."""
    if directory.resolve().is_mount():
        raise AffectError(f"{directory}: is a mount point, which nothing can replace; choose a directory in it")
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not overwrite:
        raise AffectError(f"{directory}: exists; choose another directory, or allow overwriting")
    if not (directory / MANIFEST).is_file():
        raise AffectError(
            f"{directory}: exists and is not a dataset, so it is not overwritten; choose another directory"
        )


def check_numbers(count: int, modality: str, place: str) -> None:
    """Raise `AffectError` if a split's features of a modality are more than `MOST_NUMBERS`."""
    if count > MOST_NUMBERS:
        raise AffectError(
            f"{place}: {modality} features are {count:,} numbers, a file holds {MOST_NUMBERS:,}; make fewer rows "
            "of them (--segments, --frames), or several datasets"
        )


def _write(partial: Path, tables: Mapping[Split, pa.Table], manifest: Manifest) -> None:
    splits = {}
    for split, table in tables.items():
        path = partial / f"{split}.parquet"
        pq.write_table(table, path, compression="zstd")
        splits[split] = SplitManifest(rows=table.num_rows, sha256=sha256(path))
    manifest = manifest.model_copy(update={"splits": splits})
    (partial / MANIFEST).write_text(
        json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n", "utf8"
    )


def read_manifest(directory: Path) -> Manifest:
    """What a dataset says of itself, without a look at its files.

    Raises:
        AffectError: the directory holds no dataset, or one of another format.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise AffectError(f"{directory}: no {MANIFEST}, so this is not a dataset; make one with `affect-rl data`")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        hint = f"; {near(where, Manifest.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise AffectError(
            f"{path}: {f'{where}: ' if where else ''}{first['msg']}{hint}; write the dataset again"
        ) from None


def _check_file(path: Path, expected: SplitManifest) -> None:
    """Raise `AffectError` unless the file is the one the manifest describes, with the columns of `SCHEMA`."""
    if not path.is_file():
        raise AffectError(f"{path}: is missing but listed in {MANIFEST}; copy the dataset again, whole")
    if sha256(path) != expected.sha256:
        raise AffectError(f"{path}: content does not match {MANIFEST}; copy or write the dataset again")
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise AffectError(f"{path}: is not a Parquet file: {error}") from None
    with file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    if rows != expected.rows:
        raise AffectError(f"{path}: has {rows} rows but {MANIFEST} says {expected.rows}; write the dataset again")
    for name in SCHEMA.names:
        if name not in schema.names:
            raise AffectError(f"{path}: column {name!r} is missing; {near(name, schema.names)}")
        if schema.field(name).type != SCHEMA.field(name).type:
            raise AffectError(
                f"{path}: column {name!r} is {schema.field(name).type}; write it as {SCHEMA.field(name).type}"
            )
    if unknown := sorted(set(schema.names) - set(SCHEMA.names)):
        raise AffectError(f"{path}: column {unknown[0]!r} is unknown; {near(unknown[0], SCHEMA.names)}")


def _keys(table: pa.Table) -> Iterable[Key]:
    return map(Key, *(table[name].to_pylist() for name in Key._fields))


def _table(samples: list[AffectSample]) -> pa.Table:
    columns: dict[str, Any] = {}
    for field in SCHEMA:
        values = [getattr(sample, field.name) for sample in samples]
        columns[field.name] = _feature_column(values) if field.type == _FEATURES else pa.array(values, field.type)
    return pa.table(columns, schema=SCHEMA)


def _feature_column(arrays: list[np.ndarray | None]) -> pa.ListArray:
    """``[T, d]`` arrays as one column, their numbers copied once."""
    present = [array for array in arrays if array is not None]
    frames = np.cumsum([0] + [0 if array is None else array.shape[0] for array in arrays])
    width = present[0].shape[1] if present else 0
    numbers = np.concatenate([array.ravel() for array in present]) if present else np.empty(0, np.float32)
    inner = pa.ListArray.from_arrays(pa.array(np.arange(frames[-1] + 1) * width, pa.int32()), pa.array(numbers))
    mask = pa.array([array is None for array in arrays])
    return pa.ListArray.from_arrays(pa.array(frames, pa.int32()), inner, type=_FEATURES, mask=mask)


def _read_features(path: Path, column: pa.ChunkedArray) -> list[np.ndarray | None]:
    """The column as ``[T, d]`` arrays, views on one writable buffer."""
    outer = column.combine_chunks()
    frames, starts = outer.values, outer.offsets.to_numpy()
    if frames.null_count or frames.values.null_count:
        raise AffectError(f"{path}: a feature is null; use numbers, or null for a whole modality that is absent")
    edges, numbers = frames.offsets.to_numpy(), np.array(frames.values.to_numpy())
    arrays: list[np.ndarray | None] = []
    for row, present in enumerate(outer.is_valid().to_pylist()):
        if not present:
            arrays.append(None)
            continue
        bounds = edges[starts[row] : starts[row + 1] + 1]
        widths = np.diff(bounds)
        if len(set(widths.tolist())) > 1:
            raise AffectError(
                f"{path}: row {row}: frames have {widths.min()} to {widths.max()} features; use one width"
            )
        width = int(widths[0]) if len(widths) else 0
        arrays.append(numbers[bounds[0] : bounds[-1]].reshape(len(widths), width))
    return arrays
