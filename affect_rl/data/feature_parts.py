"""Features on their way into a dataset: parts, Parquet files that an extraction leaves as it goes.

A part's file is named by a hash of everything that its content depends on (samples, their files, encoders,
settings, the code), so whoever wants the same features finds them, and nobody else does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import transformers

from affect_rl.data.extraction import Extraction
from affect_rl.errors import AffectError

_FORMAT = 1
"""Version of decoding and pooling; raise it whenever a change to them changes a feature."""
_NUMBERS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("audio", _NUMBERS),  # [segments, d], row after row; null where absent
        ("video", _NUMBERS),  # [frames, d]
        ("problems", pa.list_(pa.string())),
    ]
)
"""Columns of a part's file."""


@dataclass(frozen=True, slots=True)
class MediaFiles:
    """A sample's files; None where it has none, or none is wanted."""

    sample_id: str
    audio: Path | None
    video: Path | None


@dataclass(frozen=True, slots=True)
class Features:
    """What a sample's files gave.

    Attributes:
        sample_id: the sample.
        audio: ``[segments, d]`` float32; None if there is no file, or it cannot be used.
        video: ``[frames, d]`` float32; likewise.
        problems: files that cannot be used, each as ``path: stream: reason; fix``.
    """

    sample_id: str
    audio: np.ndarray | None
    video: np.ndarray | None
    problems: tuple[str, ...]


def part_name(extraction: Extraction, media: Sequence[MediaFiles]) -> str:
    """The file name of the part with the features of `media`."""
    files = [[item.sample_id, _identity(item.audio), _identity(item.video)] for item in media]
    code = [_FORMAT, av.__version__, transformers.__version__]
    content = json.dumps([code, asdict(extraction), files], sort_keys=True)
    return f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.parquet"


def _identity(path: Path | None) -> list[str | int]:
    """A file's path, size and time: one that was mended is another file."""
    if path is None:
        return []
    try:
        status = path.stat()
    except OSError:  # the worker will say what is wrong with it
        return [str(path)]
    return [str(path), status.st_size, status.st_mtime_ns]


def write_part(path: Path, features: Sequence[Features]) -> None:
    """Write one file, whole or not at all, even if another process writes the same one."""
    columns = {
        "sample_id": [f.sample_id for f in features],
        "audio": [None if f.audio is None else f.audio.ravel() for f in features],
        "video": [None if f.video is None else f.video.ravel() for f in features],
        "problems": [f.problems for f in features],
    }
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        pq.write_table(pa.table(columns, schema=SCHEMA), partial, compression="zstd")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def is_finished(path: Path, *, skip_bad: bool) -> bool:
    """Whether a part need not be made again.

    One that holds problems needs it unless they are skipped: what was wrong may have been no fault of the files, such
    as a permission, or a mount that one machine lacked.

    Raises:
        AffectError: it is damaged.
    """
    return path.is_file() and (skip_bad or not any(_read(path, ["problems"])["problems"].to_pylist()))


def read_part(path: Path, extraction: Extraction) -> Iterator[Features]:
    """Read the file that `write_part` wrote for `extraction`.

    Raises:
        AffectError: it is damaged.
    """
    table = _read(path, SCHEMA.names)
    audio, video = _unpack(table["audio"], extraction.segments), _unpack(table["video"], extraction.frames)
    problems = map(tuple, table["problems"].to_pylist())
    return map(Features, table["sample_id"].to_pylist(), audio, video, problems)


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, schema=SCHEMA, columns=columns)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise AffectError(f"{path}: is damaged ({error}); delete it and run the extraction again") from None


def _unpack(column: pa.ChunkedArray, rows: int) -> list[np.ndarray | None]:
    """The column as ``[rows, d]`` arrays, views on one writable buffer."""
    lists = column.combine_chunks()
    present = lists.is_valid().to_pylist()
    arrays = iter(np.array(lists.flatten()).reshape(sum(present), rows, -1) if any(present) else ())
    return [next(arrays) if there else None for there in present]
