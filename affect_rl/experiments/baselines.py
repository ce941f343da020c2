"""Systems that are none of ours, to hold results against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from affect_rl.data.dataset import Dataset
from affect_rl.sample import AffectSample


def fitted_classifier(features: np.ndarray | Sequence[np.ndarray], labels: Sequence[str]) -> Pipeline:
    """Logistic regression on standardised features ``[n, d]``."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(features, labels)


def logistic_regression(dataset: Dataset, test: Sequence[AffectSample]) -> list[tuple[str, ...]]:
    """Answers on `test` of a logistic regression that was fitted to the train split's features.

    Features are the mean over frames of voice and face, an absent modality is zeros. Of several true labels the
    first counts in training.
    """

    def features(samples: Sequence[AffectSample]) -> np.ndarray:
        return np.stack(
            [np.concatenate([_mean(s.audio, dataset.audio_dim), _mean(s.video, dataset.video_dim)]) for s in samples]
        )

    train = dataset.samples("train")
    model = fitted_classifier(features(train), [s.labels[0] for s in train])
    return [(str(label),) for label in model.predict(features(test))]


def _mean(frames: np.ndarray | None, dim: int) -> np.ndarray:
    return np.zeros(dim) if frames is None else frames.mean(axis=0)
