"""Rewards against the equations, written out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from team_cases import make_team

from affect_rl.team.rewards import rewarded
from affect_rl.trajectory import Generation, Prompt, Turn

PENALTIES = [f"team.{name}.format_penalty=0.3" for name in ("planner", "filter", "generator")]
TOKENS = [f"team.{name}.tokens=20" for name in ("planner", "filter", "generator")]
WEIGHTS = ["team.planner.weight=0.5", "team.filter.weight=0.25"]


def _turn(agent: str, problem: str | None = None, length: int = 5, number: int = 0) -> Turn:
    answer = Generation((3,) * length, (0.0,) * length, (0,) * length, "", True)
    return Turn(agent, Prompt((1,), ()), answer, problem, number)


def _rewards(scores: Mapping[str, float], *turns: Turn, changes: tuple[str, ...] = ()) -> list[float]:
    team = make_team(*PENALTIES, *WEIGHTS, *TOKENS, *changes).config
    played = turns or tuple(map(_turn, ("planner", "filter", "generator")))
    return [turn.reward for turn in rewarded(played, scores, team)]


def test_rewards_follow_equations_1_to_3() -> None:
    assert _rewards({"full": 1.0, "planner": 0.0, "filter": 1.0}) == [1.5, 1.0, 1.0]
    assert _rewards({"full": 0.0, "planner": 1.0, "filter": 1.0}) == [-0.5, -0.25, 0.0]


def test_only_the_agent_at_fault_pays_the_format_penalty() -> None:
    turns = (_turn("planner"), _turn("filter", "broken"), _turn("generator"))
    assert _rewards({"full": 1.0, "planner": 1.0, "filter": 1.0}, *turns) == [1, pytest.approx(0.7), 1]


def test_each_agent_pays_for_the_length_of_its_own_answer() -> None:
    turns = (_turn("planner", length=20), _turn("filter", length=20), _turn("generator", length=10))
    changes = ("team.planner.length_penalty=0.2", "team.generator.length_penalty=0.2")
    assert _rewards({"full": 1.0}, *turns, changes=changes) == [pytest.approx(0.8), 1, pytest.approx(0.9)]


def test_a_line_that_was_not_played_counts_for_nothing() -> None:
    assert _rewards({"full": 1.0}) == [1, 1, 1]


def test_the_last_turn_is_paid_and_every_turn_pays_its_own_penalties() -> None:
    turns = (_turn("planner", "broken"), _turn("planner", number=1), _turn("generator"))
    assert _rewards({"full": 1.0, "planner": 0.0}, *turns) == [-0.3, 1.5, 1]


def test_without_true_labels_only_penalties_are_left() -> None:
    assert _rewards({}, _turn("planner", "broken"), _turn("generator")) == [-0.3, 0]
