"""Small made-up datasets: samples, and copies of the published layouts."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affect_rl.sample import AffectSample

CREMA_COLUMNS = ["", *"ADFHNS", "fileName", "numResponses"] + [
    f"mean{name}Resp" for name in ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad")
]
MELD_COLUMNS = ["Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID"]


def write_csv(path: Path, rows: Iterable[Sequence[Any]], encoding: str = "utf8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def sample() -> Callable[..., AffectSample]:
    """Makes a sound sample; keyword arguments change it."""
    first = AffectSample(
        id="u1",
        dataset="made-up",
        split="train",
        clip="c1",
        speaker="s1",
        text="well, there it is",
        labels=("joy",),
        label_kind="closed",
        candidates=("anger", "joy"),
        audio=np.arange(6, dtype=np.float32).reshape(2, 3),
        description="a bright voice",
    )
    return lambda **changes: replace(first, **changes)


@pytest.fixture
def samples(sample: Callable[..., AffectSample]) -> list[AffectSample]:
    """Four sound samples in train, dev and test; one has no audio and one both modalities."""
    return [
        sample(),
        sample(id="u2", clip="c2", audio=None, dialogue="d2", labels=("joy", "anger")),
        sample(id="u3", clip="c3", split="dev", video=np.ones((1, 4), np.float32)),
        sample(id="u4", clip="c4", split="test", speaker=""),
    ]


def crema_votes(row_id: str, clip: str, counts: Sequence[int], intensity: float = 60) -> list[Any]:
    """A row of ``tabulatedVotes.csv``."""
    return [row_id, *counts, clip, sum(counts), *(intensity if count else -1 for count in counts)]


@pytest.fixture
def crema_d(tmp_path: Path) -> Path:
    """Ten actors who say one sentence each, with votes on all channels."""
    root = tmp_path / "crema_d"
    clips = [f"{actor}_IEO_ANG_HI" for actor in range(1001, 1011)]
    write_csv(root / "SentenceFilenames.csv", [["Stimulus_Number", "Filename"], *enumerate(clips, 1)])
    votes = [CREMA_COLUMNS]
    for number, clip in enumerate(clips, 1):
        votes.append(crema_votes(f"1{number:05}", clip, [1, 0, 0, 0, 6, 3]))
        votes.append(crema_votes(f"2{number:05}", clip, [0, 0, 0, 10, 0, 0], 80))
        votes.append(crema_votes(f"3{number:05}", clip, [4, 4, 0, 1, 0, 0] if number == 1 else [9, 1, 0, 0, 0, 0]))
    write_csv(root / "tabulatedVotes.csv", votes)
    return root


@pytest.fixture
def meld(tmp_path: Path) -> Path:
    """Two dialogues a split; the first one's rows are out of order."""
    root = tmp_path / "meld"
    rows = [
        [1, "Oh, I don’t know.", "Ross", "neutral", "neutral", 0, 1],
        [2, "Are you coming?", "Rachel", "surprise", "positive", 0, 0],
        [3, "Great!", "Joey", "joy", "positive", 1, 0],
    ]
    for split in ("train", "dev", "test"):
        write_csv(root / f"{split}_sent_emo.csv", [MELD_COLUMNS, *rows])
    return root


@pytest.fixture
def mosi(tmp_path: Path) -> Path:
    """Four videos of three segments each, three of them in train."""
    root = tmp_path / "mosi"
    rng = np.random.default_rng(0)
    names = [f"vid_{video}_{segment}" for video in range(4) for segment in range(3)]
    labels = [number % 2 for number in range(12)]
    transcripts = [[name, f"FINE FILM {i}", i // 3, labels[i]] for i, name in enumerate(names)]
    write_csv(root / "transcripts.csv", transcripts, "latin-1")
    for split, numbers in (("train", range(9)), ("test", range(9, 12))):
        write_csv(root / f"text_{split}.csv", [[n, *rng.normal(size=100)] for n in numbers])
        write_csv(root / f"audio/audio_{split}0.csv", [[*rng.normal(5, 3, size=73), labels[n]] for n in numbers])
        write_csv(root / f"video/video_{split}0.csv", [[*rng.normal(size=100), labels[n]] for n in numbers])
    return root


@pytest.fixture
def edit() -> Callable[[Path, str, str], None]:
    """Replaces a piece of text in a file; the text must be there."""

    def replace_text(path: Path, old: str, new: str) -> None:
        text = path.read_text("latin-1")
        assert old in text
        path.write_text(text.replace(old, new), "latin-1")

    return replace_text
