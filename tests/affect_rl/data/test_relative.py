"""Features relative to their speaker, against means computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.relative import FEWEST, SpeakerScale
from affect_rl.sample import AffectSample


def make_samples(speaker: str, count: int, seed: int, split: str = "train", **given: object) -> list[AffectSample]:
    rng = np.random.default_rng(seed)
    plain = AffectSample("", "d", split, "", speaker, "go", ("joy",), "closed", ("joy", "anger"))  # type: ignore[arg-type]
    return [
        replace(
            plain, id=f"{speaker}{seed}-{n}", clip=f"{speaker}{seed}-{n}",
            audio=(rng.normal(size=(rng.integers(1, 4), 3)) * 2 + seed).astype(np.float32),
            video=rng.normal(size=(2, 2)).astype(np.float32), **given,
        )
        for n in range(count)
    ]  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(FEWEST, 20))
def test_a_known_speakers_features_have_mean_0_and_deviation_1(seed: int, count: int) -> None:
    samples = make_samples("ann", count, seed)
    related = SpeakerScale(make_samples("bob", 9, 5)).relate(samples)
    for modality in ("audio", "video"):
        frames = np.concatenate([getattr(s, modality) for s in related])
        before = np.concatenate([getattr(s, modality) for s in samples]).astype(float)
        np.testing.assert_allclose(frames, (before - before.mean(axis=0)) / before.std(axis=0), atol=1e-4)
    assert [replace(s, audio=None, video=None).id for s in related] == [s.id for s in samples]


def test_who_is_unknown_is_compared_with_the_train_split() -> None:
    train = make_samples("bob", 9, 1) + make_samples("cat", 9, 2)
    frames = np.concatenate([s.audio for s in train if s.audio is not None]).astype(float)
    scale = SpeakerScale(train)
    for samples in (make_samples("dan", FEWEST - 1, 3), make_samples("", 20, 3)):
        (first, *_) = scale.relate(samples)
        assert samples[0].audio is not None and first.audio is not None
        np.testing.assert_allclose(
            first.audio, (samples[0].audio - frames.mean(axis=0)) / frames.std(axis=0), rtol=1e-4, atol=1e-5
        )


def test_a_modality_that_is_missing_stays_so_and_a_constant_feature_is_no_infinity() -> None:
    silent = [replace(s, audio=None, video=np.ones((2, 2), np.float32)) for s in make_samples("ann", 9, 1)]
    for sample in SpeakerScale(silent).relate(silent):
        assert sample.audio is None and sample.video is not None and not sample.video.any()
    assert SpeakerScale([]).relate(make_samples("ann", 1, 1))[0].audio is not None, "nothing to compare it with"


def test_a_dataset_gives_both(tmp_path: Path) -> None:
    samples = [s for n, split in enumerate(("train", "dev", "test")) for s in make_samples(f"p{n}", 9, n, split)]
    directory = write_dataset(tmp_path / "d", samples, name="d")
    plain, relative = Dataset.load(directory), Dataset.load(directory, per_speaker=True)
    for split in ("train", "dev", "test"):
        for stored, measured in zip(plain.samples(split), relative.measured(split), strict=True):
            assert np.array_equal(stored.audio, measured.audio)
        frames = np.concatenate([s.audio for s in relative.samples(split)])
        assert frames.mean() == pytest.approx(0, abs=1e-5) and frames.std() == pytest.approx(1, abs=1e-4)
    assert relative.samples("test", limit=3) == [
        s for s in relative.samples("test") if s in relative.samples("test", 3)
    ]


def test_in_a_dataset_that_is_evidence_alone_the_evidence_says_what_is_usual(tmp_path: Path) -> None:
    samples = [replace(s, speaker="") for s in make_samples("p", 9, 1, "library")]
    directory = write_dataset(tmp_path / "d", samples, name="d")
    frames = np.concatenate([s.audio for s in Dataset.load(directory, per_speaker=True).samples("library")])
    assert frames.mean() == pytest.approx(0, abs=1e-5) and frames.std() == pytest.approx(1, abs=1e-4)
