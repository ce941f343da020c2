"""How right labels are, in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from affect_rl.sample import AffectSample
from affect_rl.scoring.emotions import exact_score, wheel_f1

ScoreKind = Literal["auto", "exact", "wheel"]


def label_score(predicted: Sequence[str], sample: AffectSample, kind: ScoreKind = "auto") -> float:
    """Score in [0, 1] of predicted labels; 0 without any.

    ``exact`` compares labels, ``wheel`` is the F1 over emotion-wheel clusters, which extra labels lower.
    ``auto`` takes the wheel for open labels and exact for closed sets and sentiment.
    """
    if not predicted:
        return 0.0
    if kind == "wheel" or (kind == "auto" and sample.label_kind == "open"):
        return wheel_f1(predicted, sample.labels)
    return exact_score(predicted, sample.labels, sample.candidates)
