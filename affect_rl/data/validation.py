"""What makes a sample sound, and a dataset free of leaks between its splits."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, get_args

import numpy as np

from affect_rl.sample import AffectSample, LabelKind, Split
from affect_rl.scoring.emotions import normalise

SPLITS: tuple[Split, ...] = get_args(Split)
LABEL_KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
SENTIMENT_RANGE = 3.0
"""Sentiment values lie in [-3, 3]."""


def near(name: str, known: Collection[str]) -> str:
    """A hint for a name that is not known: the nearest known one, or all of them."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {matches[0]!r}?" if matches else f"known: {', '.join(map(repr, known))}"


def problems(sample: AffectSample) -> list[str]:
    """Everything that is wrong with a sample, each as ``what is wrong; fix``; empty if it is sound."""
    found = [
        f"{name} is empty; every sample needs one" for name in ("id", "dataset", "clip") if not getattr(sample, name)
    ]
    if not sample.text.strip():
        found.append("text is empty; leave the utterance out, or transcribe it")
    if sample.split not in SPLITS:
        found.append(f"split {sample.split!r} is unknown; {near(sample.split, SPLITS)}")
    if sample.dialogue == "":
        found.append("dialogue is an empty string; use None where there is none")
    if not (len(sample.language) in (2, 3) and sample.language.isascii() and sample.language.islower()):
        found.append(f"language {sample.language!r} is not an ISO 639-1 code; write for example 'en'")
    found += _label_problems(sample)
    for modality in ("audio", "video"):
        found += _feature_problems(modality, getattr(sample, modality))
    if sample.value is not None:
        if sample.label_kind != "sentiment":
            found.append(
                f"value {sample.value} on a {sample.label_kind!r} label; only label_kind 'sentiment' has values"
            )
        elif not (math.isfinite(sample.value) and abs(sample.value) <= SENTIMENT_RANGE):
            found.append(f"value {sample.value} is outside [-{SENTIMENT_RANGE:g}, {SENTIMENT_RANGE:g}]; rescale it")
    return found


def _label_problems(sample: AffectSample) -> list[str]:
    if sample.label_kind not in LABEL_KINDS:
        return [f"label_kind {sample.label_kind!r} is unknown; {near(sample.label_kind, LABEL_KINDS)}"]
    found = []
    if not sample.labels or not all(label.strip() for label in sample.labels):
        found.append(f"labels {sample.labels!r} hold no label or an empty one; give at least one true label")
    if len(set(sample.labels)) < len(sample.labels):
        found.append(f"labels {sample.labels!r} repeat one; list each once")
    if sample.label_kind == "open":
        return found + (
            ["candidates on an open label; use label_kind 'closed', or leave them empty"] if sample.candidates else []
        )
    if len(sample.candidates) < 2:
        found.append(
            f"candidates {sample.candidates!r} leave no choice; a {sample.label_kind!r} label needs at least two"
        )
    if len({normalise(label) for label in sample.candidates}) < len(sample.candidates):
        found.append(f"candidates {sample.candidates!r} hold two forms of one label; keep one of them")
    found += [
        f"label {label!r} is not among the candidates; {near(label, sample.candidates)}"
        for label in sample.labels
        if sample.candidates and label not in sample.candidates
    ]
    return found


def _feature_problems(modality: str, features: np.ndarray | None) -> list[str]:
    if features is None:
        return []
    if features.ndim != 2 or 0 in features.shape:
        return [f"{modality} has shape {features.shape}; expected [T, d] with T and d at least 1, or None if absent"]
    if features.dtype != np.float32:
        return [f"{modality} is {features.dtype}; convert it to float32"]
    if not np.isfinite(features).all():
        frame, dim = np.argwhere(~np.isfinite(features))[0]
        return [f"{modality} is not finite at frame {frame}, feature {dim}; mend the value, or set {modality} to None"]
    return []


class Profile(NamedTuple):
    """What all samples of a dataset have in common; a width of 0 means that no sample has the modality."""

    label_kind: LabelKind
    candidates: tuple[str, ...]
    audio_dim: int
    video_dim: int


def profile(samples: Iterable[AffectSample]) -> Profile:
    """The common profile of samples.

    Raises:
        ValueError: two samples disagree; the message names both.
    """
    first: dict[str, tuple[object, str]] = {}
    for sample in samples:
        facts: dict[str, object] = {"label_kind": sample.label_kind, "candidates": sample.candidates}
        facts |= {f"{m}_dim": x.shape[1] for m in ("audio", "video") if (x := getattr(sample, m)) is not None}
        for name, fact in facts.items():
            known, where = first.setdefault(name, (fact, sample.id))
            if fact != known:
                raise ValueError(
                    f"{name} is {fact!r} in sample {sample.id!r} but {known!r} in sample {where!r}; "
                    "a dataset has one; write two datasets, or make them agree"
                )
    facts = {name: fact for name, (fact, _) in first.items()}
    return Profile(**{"audio_dim": 0, "video_dim": 0} | facts)  # type: ignore[arg-type]


class Key(NamedTuple):
    """What tells samples apart."""

    id: str
    clip: str
    dialogue: str | None


def leak(keys: Mapping[Split, Iterable[Key]]) -> str | None:
    """The first id that occurs twice, or clip or dialogue that lies in two of train, dev and test; None if none does.

    Rows are counted from 0, as data frames count. The library may share clips and dialogues with other
    splits: retrieval excludes a sample's own.
    """
    ids: dict[str, str] = {}
    owners: dict[tuple[str, str], tuple[Split, str]] = {}
    for split in SPLITS:
        for row, key in enumerate(keys.get(split, ())):
            here = f"{split}.parquet: row {row}"
            if key.id in ids:
                return f"{here}: id {key.id!r} is also in {ids[key.id]}; ids are unique across splits"
            ids[key.id] = here
            if split == "library":
                continue
            for name, value in (("clip", key.clip), ("dialogue", key.dialogue)):
                if value is None:
                    continue
                owner, there = owners.setdefault((name, value), (split, here))
                if owner != split:
                    return f"{here}: {name} {value!r} is also in {there}; move all of a {name} into one split"
    return None
