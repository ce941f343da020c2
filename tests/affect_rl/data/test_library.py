"""The evidence library: the dataset's own or another's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from affect_rl.config.services import RetrievalConfig
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.library import evidence_library
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample

Make = Callable[..., AffectSample]


@pytest.fixture
def dataset(tmp_path: Path, samples: list[AffectSample]) -> Dataset:
    return Dataset.load(write_dataset(tmp_path / "own", samples, name="own"))


def test_the_datasets_own_splits_are_the_default(dataset: Dataset) -> None:
    assert evidence_library(dataset, RetrievalConfig()) == dataset.samples("train")
    assert evidence_library(dataset, RetrievalConfig(library_splits=("library",))) == []


def test_another_dataset_can_be_the_library(dataset: Dataset, sample: Make, tmp_path: Path) -> None:
    other = [sample(id=f"l{i}", split="library", label_kind="open", candidates=(), labels=("sullen",)) for i in (1, 2)]
    path = write_dataset(tmp_path / "other", other, name="other")
    assert [s.id for s in evidence_library(dataset, RetrievalConfig(library=str(path)))] == ["l1", "l2"]


def test_features_of_another_width_are_refused(dataset: Dataset, sample: Make, tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "wide", [sample(split="library", audio=np.ones((1, 5), np.float32))], name="wide")
    with pytest.raises(AffectError, match=r"wide: audio features are 5 wide, those of data\.dir=.*own 3; extract both"):
        evidence_library(dataset, RetrievalConfig(library=str(path)))
