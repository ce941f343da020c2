"""What is known about each library row: whom it shows, what it says, its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from affect_rl.evidence import Evidence, Exclusion, Support, render_evidence
from affect_rl.sample import AffectSample
from retrieval_service.merge import Candidate
from retrieval_service.perceptual import MODALITIES, PerceptualModality

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("clip", pa.string()),
        ("dialogue", pa.string()),
        ("speaker", pa.string()),
        ("text", pa.string()),
        ("labels", pa.list_(pa.string())),
        *((modality, pa.large_list(pa.float32())) for modality in MODALITIES),
    ]
)


def write_library(samples: Sequence[AffectSample], path: Path) -> None:
    """Write the rows to Parquet; the frames of a modality ``[T, d]`` lie flat in one list."""
    columns: dict[str, list[Any]] = {
        name: [getattr(s, name) for s in samples] for name in ("id", "clip", "dialogue", "speaker")
    }
    columns["text"] = [render_evidence(s) for s in samples]
    columns["labels"] = [list(s.labels) for s in samples]
    for modality in MODALITIES:
        frames = (getattr(s, modality) for s in samples)
        columns[modality] = [None if x is None else np.asarray(x, np.float32).ravel() for x in frames]
    pq.write_table(pa.table(columns, schema=_SCHEMA), path)


class Library:
    """The rows of a library file.

    Args:
        path: a file by `write_library`.
        dims: features per frame of each modality that the library has.
    """

    def __init__(self, path: Path, dims: Mapping[PerceptualModality, int]) -> None:
        self._table = pq.read_table(path, schema=_SCHEMA).combine_chunks()
        self._dims = dims
        self._codes = {name: _Codes(self._table[name]) for name in ("id", "clip", "dialogue", "speaker", "text")}

    def __len__(self) -> int:
        return len(self._table)

    def candidates(
        self, scores: np.ndarray, rows: np.ndarray, exclusion: Exclusion, unique: Literal["id", "text"]
    ) -> list[Candidate]:
        """The hits ``[n]`` that may be shown to a sample, in order; rows that agree in `unique` share a key."""
        allowed = np.ones(len(rows), bool)
        for name in ("id", "clip", "dialogue", "speaker"):
            if value := getattr(exclusion, name):
                allowed &= self._codes[name].differs(rows, value)
        rows, scores = rows[allowed], scores[allowed]
        keys = self._codes[unique].of(rows)
        return [Candidate(*c) for c in zip(scores.tolist(), rows.tolist(), keys.tolist(), strict=True)]

    def evidence(self, candidate: Candidate) -> Evidence:
        """A chosen candidate as it enters a prompt."""
        row = candidate.row
        text, labels = self._table["text"][row].as_py(), self._table["labels"][row].as_py()
        return Evidence(self._id(row), text, tuple(labels), candidate.score)

    def support(self, chosen: Sequence[Candidate], degraded: bool) -> Support:
        """Chosen neighbours with their frames, nearest first."""
        rows = [candidate.row for candidate in chosen]
        return Support(
            ids=tuple(self._id(row) for row in rows),
            labels=tuple(tuple(self._table["labels"][row].as_py()) for row in rows),
            audio=self._frames("audio", rows),
            video=self._frames("video", rows),
            degraded=degraded,
        )

    def _id(self, row: int) -> str:
        return self._table["id"][row].as_py()

    def _frames(self, modality: PerceptualModality, rows: Sequence[int]) -> np.ndarray | None:
        cells = [self._table[modality][row] for row in rows]
        frames = [cell.values.to_numpy().reshape(-1, self._dims[modality]) for cell in cells if cell.is_valid]
        return np.concatenate(frames) if frames else None


class _Codes:
    """A string column as integers, for comparing many rows with one value."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        encoded = column.combine_chunks().dictionary_encode()
        self._codes = encoded.indices.fill_null(-1).to_numpy()
        self._code_of = {value: code for code, value in enumerate(encoded.dictionary.to_pylist())}

    def of(self, rows: np.ndarray) -> np.ndarray:
        return self._codes[rows]

    def differs(self, rows: np.ndarray, value: str) -> np.ndarray:
        code = self._code_of.get(value)
        return np.ones(len(rows), bool) if code is None else self._codes[rows] != code
