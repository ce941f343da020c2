"""The actor of an extraction, without Ray: what it puts down to a file, what it stops for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affect_rl.data import dataset, media_encoder
from affect_rl.data.extraction import Checkpoint, Extraction
from affect_rl.data.feature_parts import Features, read_part
from affect_rl.data.media_encoder import MediaEncoder
from cluster.extract import _PartWriter

EXTRACTION = Extraction(Checkpoint("speech", "aa"), None, segments=2)


class Encoder:
    """Means of two halves."""

    sampling_rate, shortest = 16_000, 2

    def encode(self, sounds: list[np.ndarray]) -> list[np.ndarray]:
        return [sound.reshape(2, -1).mean(axis=1, keepdims=True) for sound in sounds]


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> _PartWriter:
    """Reads any file as four numbers, but fails on ``odd.aac`` as PyAV did on a change of channels."""

    def read(path: Path, sampling_rate: int) -> np.ndarray:
        if path.name == "odd.aac":
            raise ValueError("Frame does not match AudioResampler setup.")
        return np.ones(4, np.float32)

    monkeypatch.setattr(media_encoder, "read_audio", read)
    monkeypatch.setattr(MediaEncoder, "_speech", Encoder())
    return _PartWriter(EXTRACTION, "cpu", {"audio": 1000, "video": 0})


def make(writer: _PartWriter, folder: Path, *names: str) -> tuple[dict[str, Any], list[Features]]:
    """One part of sounds; what the actor answers and what it wrote."""
    path = folder / "p.parquet"
    item = {"path": str(path), "sample_id": list(names), "audio": list(names), "video": [""] * len(names)}
    answer = writer(item)
    return answer, list(read_part(path, EXTRACTION)) if path.exists() else []


def test_a_file_that_is_odd_in_a_new_way_is_named_and_ends_nothing(writer: _PartWriter, tmp_path: Path) -> None:
    answer, (first, second) = make(writer, tmp_path, "odd.aac", "fine.aac")
    assert answer == {"problems": 1, "error": ""}
    assert first.audio is None and second.audio is not None and not second.problems
    assert first.problems == (
        "odd.aac: audio: cannot be used (ValueError('Frame does not match AudioResampler setup.')); copy or export the "
        "file again",
    )


def test_an_encoder_that_cannot_be_loaded_is_no_fault_of_the_file(tmp_path: Path) -> None:
    writer = _PartWriter(Extraction(Checkpoint(str(tmp_path), "aa"), None), "cpu", {"audio": 1, "video": 0})
    answer, features = make(writer, tmp_path, "fine.aac")
    assert answer["error"].startswith(f"{tmp_path}: is no encoder that can be loaded here") and not features


def test_features_beyond_what_a_file_holds_are_refused_at_the_first_part(
    writer: _PartWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand sounds of two numbers each."""
    monkeypatch.setattr(dataset, "MOST_NUMBERS", 1999)
    answer, features = make(writer, tmp_path, "fine.aac")
    assert answer["error"].startswith("the largest split: audio features are 2,000 numbers, a file holds 1,999; make")
    assert not features
