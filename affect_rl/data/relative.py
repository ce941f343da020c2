"""Features relative to what is usual for their speaker.

Voices and faces differ more from person to person than from feeling to feeling. So a feature is taken as how many
deviations it lies above the mean over all frames of that speaker; over all frames of the train split if the speaker is
unknown or has too few samples. Labels are not looked at, but who else was recorded is: a speaker who is always sad
would seem to be as usual.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from sklearn.preprocessing import StandardScaler

from affect_rl.sample import AffectSample

FEWEST = 8
"""Samples of a speaker from which what is usual for them can be told."""
_MODALITIES: tuple[Literal["audio", "video"], ...] = ("audio", "video")


def known_speakers(samples: Sequence[AffectSample]) -> Iterator[list[int]]:
    """Places of the samples of each speaker of whom there are enough."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        places[sample.speaker].append(place)
    return (own for speaker, own in places.items() if speaker and len(own) >= FEWEST)


class SpeakerScale:
    """Takes features relative to their speaker.

    Args:
        train: samples that say what is usual for somebody of whom there are too few.
    """

    def __init__(self, train: Sequence[AffectSample]) -> None:
        there = {modality: [s for s in train if _has(s, modality)] for modality in _MODALITIES}
        self._common = {modality: _usual(modality, found) for modality, found in there.items() if found}

    def relate(self, samples: Sequence[AffectSample]) -> list[AffectSample]:
        """The samples with relative features; those of one speaker are compared with each other, if there are enough.

        Text and labels stay; a modality that the train split lacks stays as it is, unless the speaker has enough.
        """
        related = list(samples)
        for modality in _MODALITIES:
            there = [place for place, sample in enumerate(samples) if _has(sample, modality)]
            usual = dict.fromkeys(there, self._common.get(modality))
            for known in known_speakers([samples[place] for place in there]):
                own = [there[number] for number in known]
                usual |= dict.fromkeys(own, _usual(modality, [samples[place] for place in own]))
            for place, scaler in usual.items():
                if scaler:
                    frames = scaler.transform(getattr(samples[place], modality)).astype(np.float32)
                    related[place] = replace(related[place], **{modality: frames})  # type: ignore[arg-type]
        return related


def _has(sample: AffectSample, modality: str) -> bool:
    frames = getattr(sample, modality)
    return frames is not None and len(frames) > 0


def _usual(modality: str, samples: Sequence[AffectSample]) -> StandardScaler:
    """Mean and deviation over all frames of samples."""
    return StandardScaler().fit(np.concatenate([getattr(sample, modality) for sample in samples]))
