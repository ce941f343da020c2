"""What stands beside an experiment's arms: logistic regression on what they are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from affect_rl.config.load import Config
from affect_rl.config.services import RetrievalConfig
from affect_rl.data.dataset import Dataset
from affect_rl.experiments.baselines import Encode, FeatureClassifier, logistic_regression
from affect_rl.sample import AffectSample


def baseline_answers(
    dataset: Dataset, samples: Sequence[AffectSample], config: Config
) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Titles of the baselines that the dataset has something for, and their answers to `samples`."""
    if dataset.audio_dim or dataset.video_dim:
        yield "logistic regression", logistic_regression(dataset, samples)
    if encode := text_vectors(dataset, config.retrieval):
        yield "logistic regression on texts", logistic_regression(dataset, samples, encode, frames=False)


def feature_classifier(dataset: Dataset, retrieval: RetrievalConfig) -> FeatureClassifier:
    """What answers first in a cascade."""
    return FeatureClassifier(dataset, text_vectors(dataset, retrieval))


def text_vectors(dataset: Dataset, retrieval: RetrievalConfig) -> Encode | None:
    """The evidence service's sentence encoder; None where actors speak the same few sentences, which tell nothing."""
    texts = [sample.text for sample in dataset.samples("train")]
    if 2 * len(set(texts)) <= len(texts):
        return None
    from retrieval_service.encoder import TextEncoder  # not above: it takes seconds

    return TextEncoder(retrieval).encode_passages
