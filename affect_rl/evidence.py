"""What the retrieval service answers with, and what must never be retrieved for a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from affect_rl.sample import AffectSample

Group = Literal["supportive", "confusing", "countering"]
GROUPS: tuple[Group, ...] = ("supportive", "confusing", "countering")


def render_evidence(sample: AffectSample) -> str:
    """A sample as evidence, on one line: what it is like and what it was, ``glass harbour, soft voice: sadness``.

    The transcript stands in quotes where there is no description.
    """
    content = sample.description or f'"{sample.text}"'
    return f"{' '.join(content.split())}: {', '.join(sample.labels)}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One retrieved example.

    Attributes:
        id: id of the library sample.
        text: its description as it enters a prompt.
        labels: its true labels.
        score: cosine similarity to the query that fetched it.
    """

    id: str
    text: str
    labels: tuple[str, ...]
    score: float

    def agrees(self, sample: AffectSample) -> bool:
        """Whether it shares a label with the truth."""
        return bool(set(self.labels) & set(sample.labels))


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Library rows that must not be retrieved: a sample's own id, clip, dialogue and speaker."""

    id: str
    clip: str
    dialogue: str | None
    speaker: str

    @classmethod
    def of(cls, sample: AffectSample) -> Exclusion:
        return cls(sample.id, sample.clip, sample.dialogue, sample.speaker)


@dataclass(frozen=True, slots=True)
class CognitiveResult:
    """Answer of the cognitive path: candidates per group, best first, no id in two groups.

    Attributes:
        groups: `k` candidates or fewer for each group.
        degraded: a shard did not answer in time; the candidates are those of the others.
    """

    groups: Mapping[Group, tuple[Evidence, ...]]
    degraded: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Support:
    """Answer of the perceptual path: the features of perceptual neighbours.

    Attributes:
        ids: the neighbours, nearest first.
        labels: their labels, in the same order.
        audio: their acoustic features, one after the other, ``[S_a, d_a]``; None if none has any.
        video: their visual features, one after the other, ``[S_v, d_v]``; None if none has any.
        degraded: a shard did not answer in time.
    """

    ids: tuple[str, ...] = ()
    labels: tuple[tuple[str, ...], ...] = field(default=())
    audio: np.ndarray | None = None
    video: np.ndarray | None = None
    degraded: bool = False


class Retrieve(Protocol):
    """What an episode needs of a retrieval service."""

    async def cognitive(self, queries: Mapping[Group, str], k: int, exclusion: Exclusion) -> CognitiveResult:
        """Search the text index with one query a group, for up to `k` pieces of evidence each."""
        ...

    async def perceptual(self, audio: np.ndarray | None, video: np.ndarray | None, exclusion: Exclusion) -> Support:
        """Search the feature index with a sample's own features ``[T, d]``."""
        ...
