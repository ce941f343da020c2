"""One utterance to be understood: the record that every part of the system shares."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np

LabelKind = Literal["closed", "open", "sentiment"]
Split = Literal["train", "dev", "test", "library"]
Modality = Literal["text", "audio", "video"]

_QUOTE = "\0"
"""Stands for a sample's text; no text has it."""


@dataclass(frozen=True, slots=True, eq=False)
class AffectSample:
    """An utterance with what is seen, heard and said in it.

    Attributes:
        id: unique within the dataset.
        dataset: name of the dataset, for example ``crema-d``.
        split: ``train``, ``dev``, ``test`` or ``library`` (evidence only).
        clip: the recording the utterance was cut from; retrieval excludes it.
        dialogue: the conversation it belongs to, if any; retrieval excludes it.
        speaker: who speaks; retrieval excludes this person (empty: unknown, excludes nobody).
        text: the transcript.
        language: ISO 639-1 code of the transcript.
        audio: acoustic features ``[T_a, d_a]`` float32, or None if the modality is absent.
        video: visual features ``[T_v, d_v]`` float32, or None if the modality is absent.
        labels: the true labels; more than one where raters tie or the label is a set.
        label_kind: ``closed`` (one of `candidates`), ``open`` (any words) or ``sentiment``.
        candidates: the labels an answer may use; empty for open labels.
        description: what an attentive listener would note, in words, without naming the label. Parts stand between
            semicolons; one about the voice or the face begins with that word.
        value: the sentiment value where the dataset gives one.
    """

    id: str
    dataset: str
    split: Split
    clip: str
    speaker: str
    text: str
    labels: tuple[str, ...]
    label_kind: LabelKind
    candidates: tuple[str, ...] = ()
    dialogue: str | None = None
    language: str = "en"
    audio: np.ndarray | None = None
    video: np.ndarray | None = None
    description: str = ""
    value: float | None = None

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What there is of it."""
        there = {"text": bool(self.text), "audio": self.audio is not None, "video": self.video is not None}
        return tuple(name for name in get_args(Modality) if there[name])

    def with_dropout(self, chance: float, seed: int) -> Self:
        """The sample, or by chance without its audio or its video; one of them always stays."""
        draw = random.Random(seed)
        if self.audio is None or self.video is None or draw.random() >= chance:
            return self
        return self.without([draw.choice(["audio", "video"])])

    def without(self, modalities: Collection[Modality], *, zeros: bool = False) -> Self:
        """The sample as one sees it who lacks some modalities: no words, no features, nothing noted about them.

        With `zeros` the features of a missing modality are zeros instead, and nothing tells that it is missing.
        """
        changes: dict[str, Any] = {"text": ""} if "text" in modalities else {}
        if modalities and self.description:
            changes["description"] = "; ".join(p for p in self._parts() if self._told_by(p) not in modalities)
        for name in ("audio", "video"):
            features = getattr(self, name)
            if name in modalities and features is not None:
                changes[name] = np.zeros_like(features) if zeros else None
        return replace(self, **changes)

    def _parts(self) -> list[str]:
        """The description's parts. A text that is quoted in one may have semicolons of its own."""
        if not self.text:
            return self.description.split("; ")
        parts = self.description.replace(self.text, _QUOTE).split("; ")
        return [part.replace(_QUOTE, self.text) for part in parts]

    def _told_by(self, part: str) -> Modality | None:
        """Which modality tells what a part of the description says."""
        if part.startswith("voice "):
            return "audio"
        if part.startswith("face "):
            return "video"
        return "text" if self.text and self.text in part else None
