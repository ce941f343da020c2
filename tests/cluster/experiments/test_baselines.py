"""Logistic regression on what a dataset has: frames, and texts where they tell anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from affect_rl.config.load import load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.sample import AffectSample
from cluster.experiments.baselines import baseline_answers, text_vectors

SAID = {"joy": "what a lovely sunny day, number {}", "anger": "leave me alone, I have had enough, number {}"}


def make_dataset(folder: Path, *, texts: bool, audio: bool) -> Dataset:
    rng = np.random.default_rng(0)
    samples = []
    for number in range(60):
        label = ("joy", "anger")[number % 2]
        split = "train" if number < 40 else "test" if number < 58 else "dev"
        heard = rng.normal(size=(2, 3)) + (label == "joy")
        samples.append(
            AffectSample(
                f"u{number}", "d", split, f"c{number}", "", SAID[label].format(number) if texts else "go now",
                (label,), "closed", ("joy", "anger"), audio=heard.astype(np.float32) if audio else None,
            )
        )  # fmt: skip
    return Dataset.load(write_dataset(folder / "d", samples, name="d"))


@pytest.mark.parametrize(
    ("texts", "audio", "titles"),
    [
        (False, True, ["logistic regression"]),
        (True, False, ["logistic regression on texts"]),
        (True, True, ["logistic regression", "logistic regression on texts"]),
    ],
)
def test_each_dataset_has_the_baselines_that_it_has_something_for(
    tmp_path: Path, texts: bool, audio: bool, titles: list[str]
) -> None:
    dataset = make_dataset(tmp_path, texts=texts, audio=audio)
    test = dataset.samples("test")
    found = dict(baseline_answers(dataset, test, load_config(None, ["retrieval.threads=1"])))
    assert list(found) == titles
    for answers in found.values():
        right = [answer == sample.labels for answer, sample in zip(answers, test, strict=True)]
        assert np.mean(right) > 0.8


def test_texts_that_all_say_the_same_tell_nothing(tmp_path: Path) -> None:
    assert text_vectors(make_dataset(tmp_path, texts=False, audio=True), load_config(None, []).retrieval) is None
