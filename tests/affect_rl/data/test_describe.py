"""Descriptions in words of what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.describe import describe
from affect_rl.data.prosody import NAMES
from affect_rl.data.ravdess import FACE_NAMES
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample

RNG = np.random.default_rng(0)


def voice(**changes: float | tuple[float, float]) -> np.ndarray:
    """Eight windows of a voice as usual; a pair of numbers is a course from the first window to the last."""
    rows = RNG.normal(size=(8, len(NAMES)), scale=0.1)
    for name, change in changes.items():
        course = np.linspace(*change, 8) if isinstance(change, tuple) else change
        rows[:, NAMES.index(name)] += course
    return rows.astype(np.float32)


def face(*looks: str) -> np.ndarray:
    """A face that looks one way after the other, for equally long."""
    rows = np.full((8, len(FACE_NAMES)), 0.02)
    for look, part in zip(looks, np.array_split(np.arange(8), len(looks)), strict=True):
        rows[part, FACE_NAMES.index(look)] = 0.88
    return rows.astype(np.float32)


def described(
    directory: Path, sample: AffectSample, voices: list[np.ndarray | None], faces: list[np.ndarray | None], **more: str
) -> list[str]:
    """Descriptions of one speaker's samples."""
    samples = [
        replace(sample, id=f"u{i}", clip=f"c{i}", audio=audio, video=video, **more)
        for i, (audio, video) in enumerate(zip(voices, faces, strict=True))
    ]
    names = {"audio_names": NAMES if any(v is not None for v in voices) else ()}
    write_dataset(directory, samples, name="made-up", video_names=FACE_NAMES, **names, overwrite=True)
    return [s.description for s in describe(Dataset.load(directory))]


@pytest.fixture
def plain(sample: Callable[..., AffectSample]) -> AffectSample:
    return sample(description="")


def test_a_voice_is_compared_with_the_speakers_usual(plain: AffectSample, tmp_path: Path) -> None:
    voices = [voice() for _ in range(20)] + [
        voice(level=6, pitch=5, nuclei=3),
        voice(level=-6, pitch=(2, -2)),
    ]
    said = described(tmp_path / "d", plain, voices, [None] * len(voices))
    assert said[-2].startswith("voice very loud, very high, very fast")
    assert "very quiet" in said[-1] and "very falling" in said[-1] and "loud" not in said[-1]
    assert sum("very" in text for text in said[:20]) <= 4, "the others are as usual, or a little off"


def test_a_face_and_its_course(plain: AffectSample, tmp_path: Path) -> None:
    looks = ["angry", "disgust", "fearful", "happy", "sad", "surprised", "neutral"]
    faces = [face(look) for look in looks] + [face("happy", "happy", "happy", "surprised"), face("sad", "angry")]
    said = described(tmp_path / "d", plain, [None] * len(faces), faces)
    assert said[:3] == ["face clearly angry", "face clearly disgusted", "face clearly fearful"]
    assert said[-2] == "face clearly happy, at the end surprised"
    assert said[-1] in ("face mostly sad, some angry", "face mostly angry, some sad")


def test_a_face_that_always_looks_sad_to_the_network(plain: AffectSample, tmp_path: Path) -> None:
    faces = [face("sad") for _ in range(12)]
    for rows in faces[-3:]:
        rows[:, FACE_NAMES.index("happy")] += 0.3
    said = described(tmp_path / "d", plain, [None] * 12, faces)
    assert all("happy" in text for text in said[-3:]) and not any("happy" in text for text in said[:9])


def test_what_is_there_already_stays_and_labels_are_not_looked_at(plain: AffectSample, tmp_path: Path) -> None:
    voices, faces = [voice(level=i) for i in range(10)], [face("angry") for _ in range(10)]
    one = described(tmp_path / "d", plain, voices, faces, description="Ann says: go")
    other = described(tmp_path / "d", replace(plain, labels=("anger",)), voices, faces, description="Ann says: go")
    assert one == other and all(text.startswith("Ann says: go; voice ") and "; face " in text for text in one)


def test_features_without_names_cannot_be_put_into_words(samples: list[AffectSample], tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", samples, name="made-up")
    with pytest.raises(AffectError, match="no features that can be put into words; extract them with --speech-enc"):
        describe(Dataset.load(tmp_path / "d"))


def test_names_must_fit_the_features(samples: list[AffectSample], tmp_path: Path) -> None:
    with pytest.raises(AffectError, match="2 names for 3 audio features; name each, or none"):
        write_dataset(tmp_path / "d", samples, name="made-up", audio_names=["a", "b"])
    assert not (tmp_path / "d").exists()
