"""Scores of answers and rewards of the three agents, equations 1 to 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from affect_rl.sample import AffectSample
from affect_rl.scoring.emotions import exact_score, wheel_f1
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
    lengths: Mapping[Role, float],
    *,
    planner_weight: float,
    filter_weight: float,
    format_penalty: float,
    length_penalty: float,
) -> dict[Role, float]:
    """Terminal reward of each agent.

    ``R_G = S_full``, ``R_P = S_full + lambda_P (S_full - S_label)`` and ``R_F = S_full + lambda_F
    (S_full - S_rank)``, each less the format penalty if that agent's own answer broke the format, and
    less the length penalty times its length. A counterfactual that was not played (absent from `scores`)
    contributes nothing.

    Args:
        scores: S_full, S_label, S_rank under ``full``, ``label``, ``rank``, in [0, 1].
        invalid: whether an agent's answer broke the format.
        lengths: how much of its token limit an agent's answer took, in [0, 1].
        planner_weight: lambda_P.
        filter_weight: lambda_F.
        format_penalty: taken for a broken format.
        length_penalty: taken for an answer that takes its whole limit, less for a shorter one.
    """
    full = scores["full"]
    rewards: dict[Role, float] = {
        "planner": full + planner_weight * (full - scores.get("label", full)),
        "filter": full + filter_weight * (full - scores.get("rank", full)),
        "generator": full,
    }
    return {
        role: reward - format_penalty * invalid.get(role, False) - length_penalty * lengths.get(role, 0.0)
        for role, reward in rewards.items()
    }
