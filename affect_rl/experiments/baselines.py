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

    Of several true labels the first counts in training.

    Args:
        dataset: whose train split it learns.
        encode: of texts; None: they are left out.
    """

    def __init__(self, dataset: Dataset, encode: Encode | None = None) -> None:
        self._dataset, self._encode = dataset, encode
        train = dataset.samples("train")
        speakers = [sample.speaker or sample.id for sample in train]
        folds = GroupKFold(min(_FOLDS, len(set(speakers))))
        features, labels = sample_features(dataset, train, encode), [sample.labels[0] for sample in train]
        model = LogisticRegressionCV(
            Cs=list(_STRENGTHS),
            cv=list(folds.split(features, labels, speakers)),
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
        return [Guess(str(self._model.classes_[row.argmax()]), float(row.max())) for row in shares]


def _mean(frames: np.ndarray | None, dim: int) -> np.ndarray:
    return np.zeros(dim) if frames is None else frames.mean(axis=0)
