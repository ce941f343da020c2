"""Systems that are none of ours: to hold results against, and to answer first what is easy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from affect_rl.data.dataset import Dataset
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample

Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts to vectors ``[N, d]``."""
_FOLDS = 5
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse regularisation strengths that are tried."""


def fitted_classifier(features: np.ndarray | Sequence[np.ndarray], labels: Sequence[str]) -> Pipeline:
    """Logistic regression on standardised features ``[n, d]``."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(features, labels)


def logistic_regression(
    dataset: Dataset, test: Sequence[AffectSample], encode: Encode | None = None, *, frames: bool = True
) -> list[tuple[str, ...]]:
    """Answers on `test` of a logistic regression that was fitted to the train split, see `sample_features`.

    Of several true labels the first counts in training.
    """
    train = dataset.samples("train")
    seen = [sample_features(dataset, samples, encode, frames=frames) for samples in (train, test)]
    model = fitted_classifier(seen[0], [s.labels[0] for s in train])
    return [(str(label),) for label in model.predict(seen[1])]


def sample_features(
    dataset: Dataset, samples: Sequence[AffectSample], encode: Encode | None = None, *, frames: bool = True
) -> np.ndarray:
    """What a classifier sees of samples, ``[N, d]``: means over frames of voice and face, then the text as a vector.

    An absent modality is zeros. Without `encode` texts are left out, without `frames` voice and face.
    """
    audio, video = dataset.audio_dim, dataset.video_dim
    means = [[_mean(s.audio, audio) for s in samples], [_mean(s.video, video) for s in samples]] if frames else []
    return np.hstack([*means, *([encode([s.text for s in samples])] if encode else [])])


@dataclass(frozen=True, slots=True)
class Guess:
    """What a classifier says of a sample, and the probability that it gives its label."""

    label: str
    sure: float


class FeatureClassifier:
    """Logistic regression on `sample_features`, as strongly regularised as serves speakers held out best.

    Of several true labels the first counts in training. Of a sample that lacks a voice, a face or words, where all
    samples of the train split had them, it is sure of nothing: zeros in their place may look like anything.

    Args:
        dataset: whose train split it learns.
        encode: of texts; None: they are left out.

    Raises:
        AffectError: the train split has one label only.
    """

    def __init__(self, dataset: Dataset, encode: Encode | None = None) -> None:
        self._dataset, self._encode = dataset, encode
        train = dataset.samples("train")
        self._needs = set(train[0].modalities).intersection(*(sample.modalities for sample in train))
        speakers = [sample.speaker or sample.id for sample in train]
        features, labels = sample_features(dataset, train, encode), np.array([sample.labels[0] for sample in train])
        if len(set(labels)) < 2:
            raise AffectError(f"{dataset.directory}: train knows `{labels[0]}` only; a classifier needs two labels")
        folds = _folds(features, labels, speakers)
        model = LogisticRegression(C=_STRENGTHS[0], max_iter=2000)
        if folds:
            model = LogisticRegressionCV(
                Cs=list(_STRENGTHS),
                cv=folds,
                scoring="neg_log_loss",
                max_iter=2000,
                l1_ratios=(0,),
                use_legacy_attributes=False,
            )
        self._model = make_pipeline(StandardScaler(), model).fit(features, labels)

    def guess(self, samples: Sequence[AffectSample]) -> list[Guess]:
        """What it says of samples."""
        if not samples:
            return []
        shares = self._model.predict_proba(sample_features(self._dataset, samples, self._encode))
        return [
            Guess(str(self._model.classes_[row.argmax()]), float(row.max()) if self._knows(sample) else 0.0)
            for sample, row in zip(samples, shares, strict=True)
        ]

    def _knows(self, sample: AffectSample) -> bool:
        needed = self._needs if self._encode else self._needs - {"text"}
        return needed <= set(sample.modalities)


def _folds(features: np.ndarray, labels: np.ndarray, speakers: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds by speaker; none if there are too few speakers for two labels in each part that is learned."""
    count = min(_FOLDS, len(set(speakers)))
    folds = list(GroupKFold(count).split(features, labels, speakers)) if count > 1 else []
    return folds if all(len(set(labels[learned])) > 1 for learned, _ in folds) else []


def _mean(frames: np.ndarray | None, dim: int) -> np.ndarray:
    return np.zeros(dim) if frames is None else frames.mean(axis=0)
