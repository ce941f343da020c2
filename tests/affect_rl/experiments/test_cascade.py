"""System 1 and 2: what is asked, what the threshold is chosen by, and a page of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.errors import AffectError
from affect_rl.experiments.baselines import FeatureClassifier, Guess
from affect_rl.experiments.cascade import Answered, Cascade, make_cascade
from affect_rl.experiments.report.cascade import render_cascade
from affect_rl.files import sha256
from affect_rl.sample import AffectSample
from affect_rl.scoring.scoring import scoring_of

LABELS = ("anger", "joy")


def make_sample(number: int, label: str, **given: object) -> AffectSample:
    return replace(
        AffectSample(f"u{number}", "d", "test", f"c{number}", f"s{number % 7}", "go", (label,), "closed", LABELS),
        **given,  # type: ignore[arg-type]
    )


def split(count: int, seed: int, *, sure_when_right: bool, team: float) -> Answered:
    """A split whose classifier is right in half of the samples, and whose team is right with chance `team`."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=count)
    right = np.arange(count) % 2 == 0
    sure = rng.uniform(0.5, 0.7, count) + (0.3 if sure_when_right else 0.0) * right
    guesses = [Guess(LABELS[t if ok else 1 - t], s) for t, ok, s in zip(truth, right, sure, strict=True)]
    answers = [(LABELS[t if rng.random() < team else 1 - t],) for t in truth]
    samples = [make_sample(n, LABELS[t]) for n, t in enumerate(truth)]
    return Answered(scoring_of(samples), guesses, answers, rng.uniform(400, 600, count), 0.5, 20.0)


def cascade(cost: float, *, sure_when_right: bool = True, team: float = 0.9) -> Cascade:
    dev, test = (split(200, seed, sure_when_right=sure_when_right, team=team) for seed in (0, 1))
    return make_cascade("run", "p", "d", dev, test, cost, confidence=0.95, seed=0)


def test_the_team_is_asked_where_the_classifier_is_not_sure() -> None:
    found = cascade(1.0)
    chosen = found.chosen["test"]
    assert 0.7 < found.threshold < 0.85 and 0.4 < chosen.asked < 0.6
    assert found.gain["the team"].value > 0, "the classifier is right where it is sure, the team not always"
    assert found.gain["the classifier"].low > 0.3
    alone, together = found.splits["test"][0], found.splits["test"][-1]
    assert alone.asked == alone.tokens == 0 and alone.ms == 0.5
    assert together.asked == 1 and together.ms == 20.5


@pytest.mark.parametrize(("cost", "asked"), [(0.0, 1.0), (1e6, 0.0)])
def test_the_cost_decides_between_team_and_classifier(cost: float, asked: float) -> None:
    found = cascade(cost, sure_when_right=False, team=0.98)
    assert found.chosen["dev"].asked == pytest.approx(asked, abs=0.15)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), cost=st.floats(0, 100))
def test_the_chosen_point_is_worth_most_on_dev(seed: int, cost: float) -> None:
    dev = split(40, seed, sure_when_right=True, team=0.7)
    test = split(40, seed + 1, sure_when_right=True, team=0.7)
    found = make_cascade("run", "p", "d", dev, test, cost, confidence=0.9, seed=0)
    worth = [100 * p.score.value - cost * p.tokens / 1000 for p in found.splits["dev"]]
    best = found.chosen["dev"]
    assert 100 * best.score.value - cost * best.tokens / 1000 == pytest.approx(max(worth))
    asked = [p.asked for p in found.splits["test"]]
    assert asked == sorted(asked) and asked[0] == 0 and asked[-1] == 1


def test_it_is_read_as_it_was_written_and_has_a_page(tmp_path: Path) -> None:
    found = cascade(1.0)
    found.write(tmp_path)
    assert Cascade.read(tmp_path) == found
    page = render_cascade(found)
    assert page == render_cascade(Cascade.read(tmp_path)) and page.count("<svg") == 2
    assert page.count("(chosen on dev)") == found.markdown().count("(chosen on dev)") == 1
    (tmp_path / "cascade.json").write_text("{}")
    with pytest.raises(AffectError, match=r"cascade\.json: is not a cascade's results"):
        Cascade.read(tmp_path)


def test_it_serves_one_policy_and_one_train_split(tmp_path: Path) -> None:
    data = Dataset.load(write_dataset(tmp_path / "d", [make_sample(0, "joy", split="train")], name="d")).manifest
    (tmp_path / "manifest.json").write_text("one")
    here = {"policy": sha256(tmp_path / "manifest.json"), "trained_on": data.splits["train"].sha256}
    found = cascade(1.0).model_copy(update=here)
    found.check(tmp_path, data)
    with pytest.raises(AffectError, match=r"another train split than that of the dataset 'd'; make it anew"):
        found.model_copy(update={"trained_on": "other"}).check(tmp_path, data)
    (tmp_path / "manifest.json").write_text("another")
    with pytest.raises(
        AffectError, match=r"run run was chosen for another policy than .*; make it anew with `affect-rl"
    ):
        found.check(tmp_path, data)


def test_the_classifier_learns_from_voice_face_and_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def sample(number: int) -> AffectSample:
        audio, video = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=(1, 2)).astype(np.float32)
        label = LABELS[int(audio[:, 0].mean() + video[0, 1] > 0)]
        where = "train" if number < 200 else "test" if number < 260 else "dev"
        return make_sample(number, label, audio=audio, video=video, split=where)

    write_dataset(tmp_path / "d", [sample(n) for n in range(270)], name="d")
    dataset = Dataset.load(tmp_path / "d")
    test = dataset.samples("test")
    guesses = FeatureClassifier(dataset).guess(test)
    right = np.array([guess.label == s.labels[0] for guess, s in zip(guesses, test, strict=True)])
    sure = np.array([guess.sure for guess in guesses])
    assert right.mean() > 0.85 and all(0.5 <= s <= 1 for s in sure)
    assert sure[right].mean() > sure[~right].mean()
    texts = FeatureClassifier(dataset, lambda texts: np.ones((len(texts), 4)))
    assert [guess.label for guess in texts.guess(test)] == [guess.label for guess in guesses], "nothing in the words"
    assert FeatureClassifier(dataset).guess([]) == []
    lacking = [replace(test[0], audio=None), replace(test[0], video=None), replace(test[0], text="")]
    assert [guess.sure > 0 for guess in FeatureClassifier(dataset).guess(lacking)] == [False, False, True]
    assert texts.guess(lacking[2:])[0].sure == 0, "the words that all others had are missing"


def test_few_samples_make_a_classifier_and_one_label_is_refused(tmp_path: Path) -> None:
    def dataset(name: str, labels: tuple[str, ...]) -> Dataset:
        samples = [
            make_sample(n, label, split="train", audio=np.full((1, 2), n, np.float32)) for n, label in enumerate(labels)
        ]
        return Dataset.load(write_dataset(tmp_path / name, samples, name="d"))

    two = dataset("two", ("anger", "joy"))
    assert [guess.label for guess in FeatureClassifier(two).guess(two.samples("train"))] == ["anger", "joy"]
    with pytest.raises(AffectError, match=r"train knows `joy` only; a classifier needs two labels"):
        FeatureClassifier(dataset("one", ("joy", "joy")))
