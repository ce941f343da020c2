"""What fusion had to work with, sample by sample, and what it made of it.

Support is told apart by whether its labels agree with the truth, input by which modality has more to say. Both are
properties of data, not of a policy: arms that are compared under them are compared on the same samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.pipeline import Pipeline

from affect_rl.data.dataset import Dataset
from affect_rl.experiments.baselines import fitted_classifier
from affect_rl.policy.fusion import Fusion, collate_percepts
from affect_rl.policy.slot_fusion import SlotFusion
from affect_rl.sample import AffectSample
from affect_rl.trajectory import Percept

Relation = Literal["helpful", "ordinary", "conflicting"]
State = Literal["balanced", "audio-led", "video-led", "conflicting"]

LEAD = 0.25
"""A modality leads if its classifier is surer than the other one's by this much."""
_BATCH = 32
"""Percepts at a time: those of some systems have millions of numbers."""


def support_relation(labels: Sequence[str], support: Sequence[Sequence[str]]) -> Relation | None:
    """How neighbours' labels relate to the truth: most share one, some do, or none does. None without neighbours."""
    if not support:
        return None
    share = sum(bool(set(labels) & set(of_neighbour)) for of_neighbour in support) / len(support)
    return "helpful" if share > 0.5 else "ordinary" if share > 0 else "conflicting"


@dataclass(frozen=True, slots=True)
class UnimodalClassifier:
    """Labels by one modality alone: a logistic regression on the mean over frames, fitted to the train split."""

    modality: Literal["audio", "video"]
    model: Pipeline

    @classmethod
    def fit(cls, modality: Literal["audio", "video"], train: Sequence[AffectSample]) -> UnimodalClassifier:
        seen = [(frames.mean(axis=0), s.labels[0]) for s in train if (frames := getattr(s, modality)) is not None]
        features, labels = zip(*seen, strict=True)
        return cls(modality, fitted_classifier(features, labels))

    def __call__(self, sample: AffectSample) -> tuple[str, float]:
        """The likeliest label and its probability; 0 where the modality is absent."""
        frames = getattr(sample, self.modality)
        if frames is None:
            return "", 0.0
        chances = self.model.predict_proba(frames.mean(axis=0)[None])[0]
        return str(self.model.classes_[chances.argmax()]), float(chances.max())


def modality_states(dataset: Dataset, samples: Sequence[AffectSample]) -> list[State | None]:
    """Which modality has more to say about each sample, by the classifiers of both; None without voice and face."""
    audio, video = (UnimodalClassifier.fit(modality, dataset.samples("train")) for modality in ("audio", "video"))
    return [_state(audio(s), video(s)) for s in samples]


def _state(audio: tuple[str, float], video: tuple[str, float]) -> State | None:
    (heard, sure_of_heard), (seen, sure_of_seen) = audio, video
    if not (heard or seen):
        return None
    if not (heard and seen) or abs(sure_of_heard - sure_of_seen) >= LEAD:
        return "audio-led" if sure_of_heard > sure_of_seen else "video-led"
    return "balanced" if heard == seen else "conflicting"


@torch.no_grad()
def routing_weights(fusion: Fusion | SlotFusion, percepts: Sequence[Percept]) -> np.ndarray:
    """MB-MoE's mixture weights ``[n, experts]`` of n fused percepts."""
    shape = fusion.shape
    batches = [percepts[start : start + _BATCH] for start in range(0, len(percepts), _BATCH)]
    fused = [fusion(collate_percepts(batch, shape.audio_dim, shape.video_dim)) for batch in batches]
    return torch.cat([output.weights for output in fused]).float().numpy()


def load_entropy(weights: np.ndarray) -> float:
    """Entropy of the experts' shares of the work over samples ``[n, experts]``: 1 is even, 0 is one expert alone."""
    load = weights.mean(axis=0)
    used = load[load > 0]
    return float(-(used * np.log(used)).sum() / np.log(len(load))) if len(load) > 1 else 1.0
