"""The properties that the synthetic world promises, each measured on the data itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from affect_rl.data.synth import (
    CARRIERS,
    EARNEST,
    JEST,
    LABELS,
    PLAIN,
    WORDS,
    SynthSettings,
    synthesise,
)
from affect_rl.data.validation import problems
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample
from affect_rl.scoring.emotions import clusters, normalise

SETTINGS = SynthSettings()


@pytest.fixture(scope="module")
def world() -> dict[str, list[AffectSample]]:
    splits: dict[str, list[AffectSample]] = defaultdict(list)
    for sample in synthesise(SETTINGS):
        splits[sample.split].append(sample)
    return splits


def _figurative(samples: list[AffectSample]) -> list[AffectSample]:
    return [s for s in samples if s.description not in PLAIN]


def _earnest(library: list[AffectSample]) -> dict[str, str]:
    """What the library says each expression means."""
    meaning = {}
    for s in library:
        if s.description.endswith(EARNEST):
            words = s.text.split()
            meaning[" ".join(words[-2:])] = s.labels[0]
    return meaning


def test_samples_are_sound_and_splits_share_no_person_or_clip(world: dict) -> None:
    everyone = [s for samples in world.values() for s in samples]
    assert not [p for s in everyone for p in problems(s)]
    for field in ("speaker", "clip"):
        owners = defaultdict(set)
        for s in everyone:
            owners[getattr(s, field)].add(s.split)
        assert all(len(splits) == 1 for splits in owners.values())


def test_only_the_library_tells_what_test_expressions_mean(world: dict) -> None:
    seen = {s.description for s in _figurative(world["train"])}
    test = _figurative(world["test"])
    assert not seen & {s.description for s in test}
    assert {w for s in test for w in s.description.split()} <= {w for p in seen for w in p.split()}
    meaning = _earnest(world["library"])
    assert all(meaning[s.description] == s.labels[0] for s in test)


def test_without_retrieval_the_ceiling_is_well_below(world: dict) -> None:
    """A classifier on everything but the library: words, voice, face."""
    words = sorted({w for samples in world.values() for s in samples for w in s.text.split()})
    place = {w: i for i, w in enumerate(words)}

    def features(samples: list[AffectSample]) -> np.ndarray:
        rows = np.zeros((len(samples), len(words)))
        for row, s in enumerate(samples):
            rows[row, [place[w] for w in s.text.split()]] = 1
        audio = [np.zeros(12) if s.audio is None else s.audio.mean(0) for s in samples]
        video = [np.zeros(16) if s.video is None else s.video.mean(0) for s in samples]
        return np.hstack([rows, audio, video])

    model = LogisticRegression(max_iter=300).fit(features(world["train"]), [s.labels[0] for s in world["train"]])
    test = world["test"]
    accuracy = model.score(features(test), [s.labels[0] for s in test])
    assert 0.4 < accuracy < 0.75
    meaning = _earnest(world["library"])
    with_library = np.mean([meaning.get(s.description, s.labels[0]) == s.labels[0] for s in test])
    assert with_library == 1


def test_each_carrier_goes_with_all_emotions(world: dict) -> None:
    counts: dict[str, Counter] = defaultdict(Counter)
    for s in world["library"]:
        counts[" ".join(s.text.split()[:-2])][s.labels[0]] += 1
    assert len(counts) == len(CARRIERS)
    assert all(max(c.values()) / sum(c.values()) < 0.35 and len(c) == len(LABELS) for c in counts.values())


def test_what_is_said_in_jest_always_misleads(world: dict) -> None:
    meaning = _earnest(world["library"])
    jests = [s for s in world["library"] if s.description.endswith(JEST)]
    assert len(jests) == SETTINGS.expressions
    assert all(meaning[" ".join(s.text.split()[-2:])] != s.labels[0] for s in jests)


def test_modalities_differ_in_reliability_and_sometimes_contradict(world: dict) -> None:
    samples = [s for s in world["test"] if s.audio is not None and s.video is not None]
    strength = {m: np.array([np.linalg.norm(getattr(s, m).mean(0)) for s in samples]) for m in ("audio", "video")}
    for values in strength.values():
        assert 0.2 < (values > 0.7).mean() < 0.8
    agree = np.corrcoef(strength["audio"] > 0.7, strength["video"] > 0.7)[0, 1]
    assert abs(agree) < 0.5
    library = (
        np.stack([s.audio.mean(0) for s in world["library"]]),
        np.stack([s.video.mean(0) for s in world["library"]]),
    )
    labels = np.array([s.labels[0] for s in world["library"]])
    nearest = [
        labels[(lib @ np.stack([getattr(s, m).mean(0) for s in samples]).T).argmax(0)]
        for lib, m in zip(library, ("audio", "video"), strict=True)
    ]
    contradict = (nearest[0] != nearest[1]).mean()
    assert 0.2 < contradict < 0.8


def test_a_missing_modality_is_partly_told_by_neighbours_in_the_other(world: dict) -> None:
    library = world["library"]
    audio = np.stack([s.audio.mean(0) for s in library])
    video = np.stack([s.video.mean(0) for s in library])
    strong = [s for s in world["test"] if s.audio is not None and s.video is not None]
    strong = [s for s in strong if min(np.linalg.norm(s.audio.mean(0)), np.linalg.norm(s.video.mean(0))) > 0.7]
    chance = np.random.default_rng(0)
    told, guessed = [], []
    for s in strong:
        near = np.argsort(-(audio @ s.audio.mean(0)))[:3]
        told.append(_cosine(video[near].mean(0), s.video.mean(0)))
        guessed.append(_cosine(video[chance.integers(len(library), size=3)].mean(0), s.video.mean(0)))
    assert np.mean(told) > np.mean(guessed) + 0.4


def test_open_labels_change_the_words_for_emotions_and_nothing_else(world: dict) -> None:
    for closed, opened in zip(chain(*world.values()), synthesise(replace(SETTINGS, open_labels=True)), strict=True):
        assert (opened.id, opened.text, opened.label_kind, opened.candidates) == (closed.id, closed.text, "open", ())
        assert len(set(opened.labels)) == 2 and clusters(opened.labels) == clusters(closed.labels)
        assert set(opened.labels) <= set(WORDS[closed.labels[0]])
    assert all(normalise(word) == word for words in WORDS.values() for word in words)


def test_the_seed_decides_everything() -> None:
    small = replace(SETTINGS, train=20, dev=5, test=5, expressions=30)
    a, b, c = synthesise(small), synthesise(small), synthesise(replace(small, seed=1))
    assert [s.text for s in a] == [s.text for s in b] != [s.text for s in c]
    assert all(np.array_equal(x.audio, y.audio) for x, y in zip(a, b, strict=True) if x.audio is not None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expressions": 5}, "expressions=5 is not between 10 and"),
        ({"figurative": 1.2}, "figurative=1.2 is not a share"),
        ({"train": 0}, "train=0 leaves the world empty"),
        ({"noise": -1.0}, "must not be negative"),
    ],
)
def test_wrong_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(AffectError, match=message):
        synthesise(replace(SETTINGS, **changes))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
