"""Scores of answers and rewards of the three agents, equations 1 to 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from affect_rl.emotions import exact_score, wheel_f1
from affect_rl.sample import AffectSample
from affect_rl.trajectory import Role


def score(predicted: tuple[str, ...], sample: AffectSample, kind: Literal["auto", "exact", "wheel"] = "auto") -> float:
    """Score in [0, 1] of predicted labels; 0 without any.

    ``exact`` compares labels, ``wheel`` is the F1 over emotion-wheel clusters, which extra labels lower.
    ``auto`` takes the wheel for open labels and exact for closed sets and sentiment.
    """
    if not predicted:
        return 0.0
    if kind == "wheel" or (kind == "auto" and sample.label_kind == "open"):
        return wheel_f1(predicted, sample.labels)
    return exact_score(predicted, sample.labels, sample.candidates)


def agent_rewards(
    scores: Mapping[str, float],
    invalid: Mapping[Role, bool],
    *,
    planner_weight: float,
    filter_weight: float,
    format_penalty: float,
) -> dict[Role, float]:
    """Terminal reward of each agent.

    ``R_G = S_full``, ``R_P = S_full + lambda_P (S_full - S_label)`` and ``R_F = S_full + lambda_F
    (S_full - S_rank)``, each less the penalty if that agent's own answer broke the format. A
    counterfactual that was not played (absent from `scores`) contributes nothing.
    """
    full = scores["full"]
    rewards: dict[Role, float] = {
        "planner": full + planner_weight * (full - scores.get("label", full)),
        "filter": full + filter_weight * (full - scores.get("rank", full)),
        "generator": full,
    }
    return {role: reward - format_penalty * invalid.get(role, False) for role, reward in rewards.items()}
