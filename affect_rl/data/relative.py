"""Features relative to what is usual for their speaker.

Voices and faces differ more from person to person than from feeling to feeling. So a feature is taken as how many
deviations it lies above the mean over all frames of that speaker; over all frames of the train split if the speaker is
unknown or has too few samples. Labels are not looked at, but who else was recorded is: a speaker who is always sad
would seem to be as usual.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from affect_rl.sample import AffectSample

FEWEST = 8
"""Samples of a speaker from which what is usual for them can be told."""
_MODALITIES: tuple[Literal["audio", "video"], ...] = ("audio", "video")


class _Usual(NamedTuple):
    """Mean and deviation ``[d]``."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, frames: Iterable[np.ndarray]) -> _Usual:
        """Of arrays ``[T, d]``."""
        together = np.concatenate(list(frames)).astype(np.float64)
        return cls(together.mean(axis=0), np.maximum(together.std(axis=0), 1e-6))

    def relate(self, frames: np.ndarray) -> np.ndarray:
        return ((frames - self.mean) / self.deviation).astype(np.float32)


class SpeakerScale:
    """Takes features relative to their speaker.

    Args:
        train: samples that say what is usual for somebody of whom there are too few.
    """

    def __init__(self, train: Sequence[AffectSample]) -> None:
        frames = {modality: _frames(train, modality) for modality in _MODALITIES}
        self._common = {modality: _Usual.of(found) for modality, found in frames.items() if found}

    def relate(self, samples: Sequence[AffectSample]) -> list[AffectSample]:
        """The samples with relative features; those of one speaker are compared with each other, if there are enough.

        Text and labels stay; a modality that the train split lacks stays as it is, unless the speaker has enough.
        """
        by_speaker: dict[str, list[AffectSample]] = defaultdict(list)
        for sample in samples:
            by_speaker[sample.speaker].append(sample)
        usual = {speaker: self._usual(own if speaker else ()) for speaker, own in by_speaker.items()}
        return [_related(sample, usual[sample.speaker]) for sample in samples]

    def _usual(self, samples: Sequence[AffectSample]) -> dict[str, _Usual]:
        own = {modality: _frames(samples, modality) for modality in _MODALITIES}
        return self._common | {modality: _Usual.of(found) for modality, found in own.items() if len(found) >= FEWEST}


def _frames(samples: Sequence[AffectSample], modality: str) -> list[np.ndarray]:
    return [frames for sample in samples if (frames := getattr(sample, modality)) is not None and len(frames)]


def _related(sample: AffectSample, usual: dict[str, _Usual]) -> AffectSample:
    changes: dict[str, Any] = {
        modality: usual[modality].relate(frames)
        for modality in _MODALITIES
        if modality in usual and (frames := getattr(sample, modality)) is not None
    }
    return replace(sample, **changes)
