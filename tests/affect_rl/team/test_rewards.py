"""Rewards against the equations, written out by hand."""

from __future__ import annotations

import pytest

from affect_rl.sample import AffectSample
from affect_rl.team.rewards import agent_rewards, score

WEIGHTS = {"planner_weight": 0.5, "filter_weight": 0.25, "format_penalty": 0.3, "length_penalty": 0.0}


def _sample(kind: str, labels: tuple[str, ...]) -> AffectSample:
    candidates = ("anger", "joy", "sadness") if kind == "closed" else ()
    return AffectSample("u", "made-up", "train", "c", "s", "text", labels, kind, candidates)  # type: ignore[arg-type]


def test_rewards_follow_equations_1_to_3() -> None:
    rewards = agent_rewards({"full": 1.0, "label": 0.0, "rank": 1.0}, {}, {}, **WEIGHTS)
    assert rewards == {"planner": 1.5, "filter": 1.0, "generator": 1.0}
    rewards = agent_rewards({"full": 0.0, "label": 1.0, "rank": 1.0}, {}, {}, **WEIGHTS)
    assert rewards == {"planner": -0.5, "filter": -0.25, "generator": 0.0}


def test_only_the_agent_at_fault_pays_the_format_penalty() -> None:
    rewards = agent_rewards({"full": 1.0, "label": 1.0, "rank": 1.0}, {"filter": True}, {}, **WEIGHTS)
    assert rewards == {"planner": 1.0, "filter": pytest.approx(0.7), "generator": 1.0}


def test_each_agent_pays_for_the_length_of_its_own_answer() -> None:
    lengths = {"planner": 1.0, "generator": 0.5}
    rewards = agent_rewards({"full": 1.0}, {}, lengths, **WEIGHTS | {"length_penalty": 0.2})  # type: ignore[arg-type]
    assert rewards == {"planner": pytest.approx(0.8), "filter": 1.0, "generator": pytest.approx(0.9)}


def test_a_counterfactual_that_was_not_played_counts_for_nothing() -> None:
    assert set(agent_rewards({"full": 1.0}, {}, {}, **WEIGHTS).values()) == {1.0}


def test_closed_sets_score_exactly_and_ties_are_alternatives() -> None:
    assert score(("joy",), _sample("closed", ("joy",))) == 1
    assert score(("joy",), _sample("closed", ("joy", "anger"))) == 1
    assert score(("sadness",), _sample("closed", ("joy", "anger"))) == 0
    assert score((), _sample("closed", ("joy",))) == 0


def test_open_labels_score_by_meaning_and_extra_labels_cost() -> None:
    sample = _sample("open", ("joyful",))
    assert score(("happy",), sample) == 1
    assert 0 < score(("happy", "furious"), sample) < 1
    everything = ("happy", "furious", "sad", "afraid", "disgusted")
    assert score(everything, sample) < score(("happy", "furious"), sample)
    assert score(("unhappy",), sample) == 0


def test_the_kind_can_be_forced() -> None:
    assert score(("happy",), _sample("open", ("joyful",)), "exact") == 0
