"""Descriptions in words of what was measured: how a voice sounds, what a face shows, compared with the speaker's usual.

Only features whose names are known can be put into words: those of `affect_rl.data.prosody`, and posteriors of a face
network that are called after emotions (`affect_rl.data.ravdess`). Labels are not looked at.

Compared with the speaker: a quantity is how many deviations it lies above the mean over the speaker's own samples, or
over the train split's if the speaker is unknown or has too few. A face network finds some faces sad whatever they show,
so its log posteriors are taken relative to the same mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from affect_rl.data.dataset import Dataset, Manifest
from affect_rl.data.relative import known_speakers
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample

NOTABLE, STRONG = 0.6, 1.5
"""Deviations from the usual that are worth a word, and a ``very``."""
SHOWN = {
    "angry": "angry",
    "disgust": "disgusted",
    "fearful": "fearful",
    "happy": "happy",
    "sad": "sad",
    "surprised": "surprised",
    "neutral": "neutral",
}
"""Names of posteriors, and how a face is said to look."""
_EDGE = 4
"""The beginning and the end of a clip are a quarter each."""


@dataclass(frozen=True, slots=True)
class _Quality:
    """Something about a voice that is worth words.

    Attributes:
        low: said of less than is usual; empty: not worth a word.
        high: said of more.
        measure: from the rows ``[segments, d]`` of a sample and the columns by name to the quantity.
    """

    low: str
    high: str
    measure: Callable[[np.ndarray, dict[str, int]], float]


def _mean(name: str) -> Callable[[np.ndarray, dict[str, int]], float]:
    return lambda rows, columns: float(rows[:, columns[name]].mean())


def _movement(rows: np.ndarray, columns: dict[str, int]) -> float:
    """How far the pitch moves, within windows and between them."""
    within, between = rows[:, columns["pitch, deviation"]], rows[:, columns["pitch"]]
    return float(np.sqrt((within**2).mean() + between.var()))


def _course(rows: np.ndarray, columns: dict[str, int]) -> float:
    """How much higher the voice is at the end than at the beginning."""
    edge = max(1, len(rows) // _EDGE)
    pitch = rows[:, columns["pitch"]]
    return float(pitch[-edge:].mean() - pitch[:edge].mean())


QUALITIES = (
    _Quality("quiet", "loud", _mean("level")),
    _Quality("low", "high", _mean("pitch")),
    _Quality("slow", "fast", _mean("nuclei")),
    _Quality("monotonous", "lively", _movement),
    _Quality("dark", "bright", _mean("brightness")),
    _Quality("falling", "rising", _course),
    _Quality("", "halting", _mean("pause")),
)
"""What is said of a voice, in this order."""


def describe(dataset: Dataset) -> list[AffectSample]:
    """All samples of a dataset, with what voice and face say put behind the description that they have.

    Raises:
        AffectError: no feature has a name that can be put into words.
    """
    samples = [sample for split in dataset.counts for sample in dataset.samples(split)]
    described = Describer(dataset.manifest, samples).describe(samples)
    if all(was is now for was, now in zip(samples, described, strict=True)):
        raise AffectError(
            f"{dataset.directory}: has no features that can be put into words; extract them with --speech-encoder "
            "prosody, or import a table of faces"
        )
    return described


class Describer:
    """Puts features into words.

    Args:
        manifest: of the dataset, which says what the features are.
        samples: of the dataset; those of its train split say what is usual, or all of them if none is in it.
    """

    def __init__(self, manifest: Manifest, samples: Sequence[AffectSample]) -> None:
        voice = {name: place for place, name in enumerate(manifest.audio_names)}
        face = {name: place for place, name in enumerate(manifest.video_names) if name in SHOWN}
        self._voice = _Voice(voice, samples) if voice else None
        self._face = _Face(face, samples) if face else None

    def describe(self, samples: Sequence[AffectSample]) -> list[AffectSample]:
        """The samples, with what voice and face say put behind the description that they have.

        A speaker of whom there are enough `samples` is compared with these, any other with what is usual.
        """
        words: dict[str, list[str]] = defaultdict(list)
        for what, modality in (("voice", self._voice), ("face", self._face)):
            for sample, said in modality.say(samples) if modality else ():
                words[sample.id].append(f"{what} {said}")
        return [
            replace(s, description="; ".join(filter(None, [s.description, *words[s.id]]))) if s.id in words else s
            for s in samples
        ]


class _Voice:
    """What is said of a voice; `columns` are the places of its measures by name."""

    def __init__(self, columns: dict[str, int], samples: Sequence[AffectSample]) -> None:
        self._columns = columns
        self._usual = _Usual(self._measure(_train([s for s in samples if s.audio is not None])))

    def say(self, samples: Sequence[AffectSample]) -> Iterator[tuple[AffectSample, str]]:
        heard = [sample for sample in samples if sample.audio is not None]
        if not heard:
            return
        values = self._measure(heard)
        mean, deviation = self._usual.of(heard, values)
        for sample, deviations in zip(heard, (values - mean) / np.maximum(deviation, 1e-6), strict=True):
            yield sample, ", ".join(filter(None, map(_word, QUALITIES, deviations))) or "as usual"

    def _measure(self, samples: Sequence[AffectSample]) -> np.ndarray:
        rows = [[q.measure(s.audio, self._columns) for q in QUALITIES] for s in samples if s.audio is not None]
        return np.array(rows).reshape(-1, len(QUALITIES))


class _Face:
    """What is said of a face; `columns` are the places of the emotions' posteriors by name."""

    def __init__(self, columns: dict[str, int], samples: Sequence[AffectSample]) -> None:
        self._names, self._places = list(columns), list(columns.values())
        seen = _train([sample for sample in samples if sample.video is not None])
        self._usual = _Usual(self._means([self._logs(s.video) for s in seen if s.video is not None]))

    def say(self, samples: Sequence[AffectSample]) -> Iterator[tuple[AffectSample, str]]:
        seen = [sample for sample in samples if sample.video is not None]
        if not seen:
            return
        logs = [self._logs(s.video) for s in seen if s.video is not None]
        usual, _ = self._usual.of(seen, self._means(logs))
        for sample, rows, own in zip(seen, logs, usual, strict=True):
            shares = np.exp(rows - own)
            yield sample, _look(shares / shares.sum(axis=1, keepdims=True), self._names)

    def _logs(self, video: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(video[:, self._places], 1e-4))

    def _means(self, logs: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([rows.mean(axis=0) for rows in logs]).reshape(-1, len(self._names))


def _train(samples: list[AffectSample]) -> list[AffectSample]:
    return [sample for sample in samples if sample.split == "train"] or samples


class _Usual:
    """Mean and deviation of quantities ``[n, d]`` of the samples that say what is usual."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def of(self, samples: Sequence[AffectSample], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation that each sample's ``values [n, d]`` are compared with, ``[n, d]`` each."""
        common = self._values if len(self._values) else values
        mean, deviation = (np.tile(x, (len(values), 1)) for x in (common.mean(axis=0), common.std(axis=0)))
        for own in known_speakers(samples):
            mean[own], deviation[own] = values[own].mean(axis=0), values[own].std(axis=0)
        return mean, deviation


def _word(quality: _Quality, deviations: float) -> str:
    word = quality.high if deviations > 0 else quality.low
    if not word or abs(deviations) < NOTABLE:
        return ""
    return f"very {word}" if abs(deviations) >= STRONG else word


def _look(shares: np.ndarray, names: Sequence[str]) -> str:
    """A face in words, for example ``mostly angry, at the end surprised``; shares ``[segments, emotions]`` add to 1."""
    whole, edge = shares.mean(axis=0), max(1, len(shares) // _EDGE)
    order = np.argsort(-whole, kind="stable")
    first = int(order[0])
    degree = "clearly" if whole[first] >= 0.6 else "mostly" if whole[first] >= 0.4 else "partly"
    said = [f"{degree} {SHOWN[names[first]]}"]
    if whole[order[1]] >= 0.25:
        said.append(f"some {SHOWN[names[int(order[1])]]}")
    for where, part in (("at first", shares[:edge]), ("at the end", shares[-edge:])):
        top = int(part.mean(axis=0).argmax())
        if top not in order[: len(said)] and part.mean(axis=0)[top] >= 0.4:
            said.append(f"{where} {SHOWN[names[top]]}")
    return ", ".join(said)
