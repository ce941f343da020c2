"""A synthetic affect world in which every mechanism of the method has work to do.

What is true of it, each shown by a test:

1. Most texts carry an *expression* ("glass harbour") whose emotion only the library tells.
   Expressions of the test and dev splits never occur in training, though their words do, so a policy
   without retrieval has nothing but voice and face to go by.
2. *Carriers* ("the dentist showed us a ...") are shared by expressions of all emotions: a query with the whole
   utterance fetches near-duplicates in wording that felt something else.
3. An expression is also in the library as said *not in earnest*, with another emotion: among the best
   candidates of a good query some mislead, and their manner tells which.
4. Voice and face differ in reliability from sample to sample: a strong modality shows the emotion,
   a weak one shows a random one faintly, so the two sometimes contradict each other.
5. Within a person's *style*, voice and face go together: what a missing modality would have looked
   like is partly told by neighbours in the other one.

With `open_labels` the truth is a set of two words for the emotion, as two annotators would choose them from `WORDS`:
which ones nobody can know, so that exact comparison pays by chance and the wheel by merit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample, Split

LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise")

ADJECTIVES = (
    "amber brass copper crimson dusty empty faded frozen gentle glass golden hollow iron ivory lonely marble "
    "misty narrow paper pearl purple quiet rusty salty scarlet shallow silver sleepy stone sunken velvet wooden"
).split()
NOUNS = (
    "anchor basket bridge button candle carpet chimney compass drawer engine feather garden hammer harbour island "
    "kettle ladder lantern mirror needle orchard parcel piano pillow river saddle shutter spoon staircase tunnel "
    "violin window"
).split()
PLAIN = "bus letter lunch meeting shop street table week".split()
CARRIERS = (
    "at the wedding there was a {}",
    "the dentist showed us a {}",
    "football needs a {}",
    "in prison they speak of a {}",
    "the rocket carried a {}",
    "grandmother cooked a {}",
    "the judge asked for a {}",
    "on the beach lay a {}",
    "the hospital lost its {}",
    "school began with a {}",
    "the orchestra played a {}",
    "the tax office sent a {}",
)
EARNEST, JEST = "in earnest", "in jest"
WORDS = {
    "anger": ("anger", "furious", "annoyed", "irritated"),
    "disgust": ("disgust", "revolted", "contempt", "sickened"),
    "fear": ("fear", "scared", "anxious", "worried"),
    "joy": ("joy", "happy", "delighted", "cheerful"),
    "sadness": ("sad", "sorrow", "miserable", "gloomy"),
    "surprise": ("surprise", "amazed", "astonished", "startled"),
}
"""Words for each emotion, of one cluster of the wheel each."""


@dataclass(frozen=True, slots=True)
class SynthSettings:
    """Size and difficulty of the world.

    Attributes:
        train, dev, test: samples per split.
        expressions: how many expressions there are; 60 % are for training, 20 % each for dev and test.
        earnest: library entries per expression that show what it means.
        jest: library entries per expression that mislead.
        figurative: share of samples whose text carries an expression.
        reliable: chance of each modality to be strong in a figurative sample.
        weak: strength of a weak modality relative to a strong one.
        noise: standard deviation of the noise on each feature (a prototype has norm 1).
        absent: chance of each modality to be missing.
        speakers: speakers per split.
        open_labels: name emotions in free words.
        seed: seed of everything.
    """

    train: int = 3000
    dev: int = 200
    test: int = 400
    expressions: int = 1000
    earnest: int = 1
    jest: int = 1
    figurative: float = 0.75
    reliable: float = 0.3
    weak: float = 0.3
    noise: float = 0.15
    absent: float = 0.05
    speakers: int = 20
    open_labels: bool = False
    seed: int = 0


AUDIO_DIM, VIDEO_DIM, FRAMES, STYLES = 12, 16, 3, 4


class _World:
    """What is fixed for all samples: the meaning of expressions and the look and sound of emotions."""

    def __init__(self, settings: SynthSettings) -> None:
        self.settings = settings
        self.rng = np.random.default_rng(settings.seed)
        self.annotators = np.random.default_rng((settings.seed, 1))
        pairs = [" ".join(pair) for pair in product(ADJECTIVES, NOUNS)]
        if not 10 <= settings.expressions <= len(pairs):
            raise AffectError(
                f"expressions={settings.expressions} is not between 10 and {len(pairs)}; choose a number in between"
            )
        self.rng.shuffle(pairs)
        expressions = pairs[: settings.expressions]
        # Meanings are dealt, not drawn, so that no emotion is rare.
        dealt = np.resize(np.arange(len(LABELS)), len(expressions))
        self.meaning = dict(zip(expressions, (int(i) for i in self.rng.permutation(dealt)), strict=True))
        cuts = [round(0.6 * len(expressions)), round(0.8 * len(expressions))]
        self.expressions: dict[Split, list[str]] = {
            "train": expressions[: cuts[0]],
            "dev": expressions[cuts[0] : cuts[1]],
            "test": expressions[cuts[1] :],
        }
        self.audio = _unit(self.rng.normal(size=(len(LABELS), STYLES, AUDIO_DIM)))
        self.video = _unit(self.rng.normal(size=(len(LABELS), STYLES, VIDEO_DIM)))

    def other(self, label: int) -> int:
        """A label that is not `label`."""
        return int((label + 1 + self.rng.integers(len(LABELS) - 1)) % len(LABELS))

    def named(self, label: int) -> tuple[str, ...]:
        """What annotators call an emotion."""
        if not self.settings.open_labels:
            return (LABELS[label],)
        return tuple(str(word) for word in self.annotators.choice(WORDS[LABELS[label]], 2, replace=False))

    def kind(self) -> dict[str, Any]:
        """Fields of a sample that say what labels there are."""
        return {"label_kind": "open"} if self.settings.open_labels else {"label_kind": "closed", "candidates": LABELS}

    def frames(self, prototype: np.ndarray, strength: float) -> np.ndarray:
        noise = self.rng.normal(scale=self.settings.noise, size=(FRAMES, prototype.shape[0]))
        return (strength * prototype + noise).astype(np.float32)

    def features(self, label: int, style: int, strong: tuple[bool, bool]) -> tuple[np.ndarray, np.ndarray]:
        """Audio and video of someone who feels `label`; a weak modality faintly shows anything."""
        shown = [label if s else int(self.rng.integers(len(LABELS))) for s in strong]
        strength = [1.0 if s else self.settings.weak for s in strong]
        audio = self.frames(self.audio[shown[0], style], strength[0])
        return audio, self.frames(self.video[shown[1], style], strength[1])


def synthesise(settings: SynthSettings) -> list[AffectSample]:
    """All samples of a world: train, dev, test and library.

    Raises:
        AffectError: a setting is out of range.
    """
    _check(settings)
    world = _World(settings)
    samples: list[AffectSample] = []
    for split, count in (("train", settings.train), ("dev", settings.dev), ("test", settings.test)):
        samples += [_utterance(world, split, index) for index in range(count)]  # type: ignore[arg-type]
    return samples + _library(world)


def _check(settings: SynthSettings) -> None:
    for name in ("figurative", "reliable", "weak", "absent"):
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise AffectError(f"{name}={value} is not a share; choose a number from 0 to 1")
    for name in ("train", "dev", "test", "earnest", "speakers"):
        if getattr(settings, name) < 1:
            raise AffectError(f"{name}={getattr(settings, name)} leaves the world empty; choose at least 1")
    if settings.jest < 0 or settings.noise < 0:
        raise AffectError("jest and noise must not be negative; 0 switches them off")


def _utterance(world: _World, split: Split, index: int) -> AffectSample:
    rng, settings = world.rng, world.settings
    carrier = CARRIERS[rng.integers(len(CARRIERS))]
    if rng.random() < settings.figurative:
        phrase = world.expressions[split][rng.integers(len(world.expressions[split]))]
        label = world.meaning[phrase]
        strong = (bool(rng.random() < settings.reliable), bool(rng.random() < settings.reliable))
    else:  # nothing in the words, so something must show
        phrase = PLAIN[rng.integers(len(PLAIN))]
        label = int(rng.integers(len(LABELS)))
        strong = ((True, True), (True, False), (False, True))[rng.integers(3)]
    style = int(rng.integers(STYLES))
    audio, video = world.features(label, style, strong)
    missing = rng.random(2) < settings.absent
    return AffectSample(
        id=f"{split}-{index:05d}",
        dataset="synth",
        split=split,
        clip=f"{split}-clip-{index:05d}",
        speaker=f"{split}-speaker-{rng.integers(settings.speakers):02d}",
        text=carrier.format(phrase),
        labels=world.named(label),
        **world.kind(),
        audio=None if missing[0] else audio,
        video=None if missing[1] else video,
        description=phrase,
    )


def _library(world: _World) -> list[AffectSample]:
    settings = world.settings
    entries: list[AffectSample] = []
    for phrase, meaning in world.meaning.items():
        labels = [meaning] * settings.earnest + [world.other(meaning) for _ in range(settings.jest)]
        carriers = _draw(world.rng, CARRIERS, len(labels))
        for place, (label, carrier) in enumerate(zip(labels, carriers, strict=True)):
            manner = EARNEST if place < settings.earnest else JEST
            entries.append(_entry(world, len(entries), phrase, label, carrier, manner))
    return entries


def _entry(world: _World, index: int, phrase: str, label: int, carrier: str, manner: str) -> AffectSample:
    text = carrier.format(phrase)
    audio, video = world.features(label, int(world.rng.integers(STYLES)), (True, True))
    return AffectSample(
        id=f"library-{index:05d}",
        dataset="synth",
        split="library",
        clip=f"library-clip-{index:05d}",
        speaker=f"library-speaker-{world.rng.integers(world.settings.speakers):02d}",
        text=text,
        labels=world.named(label),
        **world.kind(),
        audio=audio,
        video=video,
        description=f"{text}, {manner}",
    )


def _draw(rng: np.random.Generator, items: Sequence[str], count: int) -> list[str]:
    """`count` items, each used once before any is used again."""
    rounds = -(-count // len(items))
    return [str(item) for _ in range(rounds) for item in rng.permutation(list(items))][:count]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
