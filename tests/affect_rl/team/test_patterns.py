"""Patterns that engines can be held to: whatever fits one can be read."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from team_cases import make_team

from affect_rl.evidence import GROUPS, Evidence
from affect_rl.sample import AffectSample
from affect_rl.tasks.fields import choice_pattern, room
from affect_rl.team.board import Board

LABELS = ("anger", "joy (a little)", "so-so", "C++", "[none]", "a/b", "glücklich", "高兴")
CLOSED = AffectSample("u", "made-up", "train", "c", "s", "well", ("anger",), "closed", LABELS)
OPEN = AffectSample("u", "made-up", "train", "c", "s", "well", ("proud",), "open")
FOUND: Mapping[str, tuple[Evidence, ...]] = {
    group: tuple(Evidence(f"{group}{n}", "words", (), 0.5) for n in range(count))
    for group, count in zip(GROUPS, (3, 1, 0), strict=True)
}
LABELLING = "team.planner.kind=affect_rl.team.planner:LabellingPlanner"
THINKING = "task.name=affect_rl.tasks.thinking:Thinking"
DEBATE = (
    "team.agents=[planner, filter, debater, generator]",
    "team.debater.kind=affect_rl.team.debater:Debater",
)
CASES = {
    "planner": ("planner", CLOSED, ()),
    "planner of the published code": ("planner", CLOSED, (LABELLING,)),
    "and of open labels": ("planner", OPEN, (LABELLING,)),
    "filter": ("filter", CLOSED, ("episode.keep=2",)),
    "generator": ("generator", CLOSED, ()),
    "generator of open labels": ("generator", OPEN, ("team.generator.tokens=80",)),
    "generator that thinks": ("generator", CLOSED, (THINKING,)),
    "generator that thinks of open labels": ("generator", OPEN, (THINKING,)),
    "debater": ("debater", CLOSED, DEBATE),
}


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_fits_can_be_read(case: str, data: st.DataObject) -> None:
    name, sample, overrides = CASES[case]
    agent = make_team(*overrides, label_kind=sample.label_kind).agents[name]
    board = Board(sample, {"candidates": FOUND})
    pattern = agent.pattern(board)
    text = data.draw(st.from_regex(pattern, fullmatch=True))
    assert agent.read(text, board).problem is None


def test_all_choices_of_a_filter_fit_and_no_others() -> None:
    board = Board(CLOSED, {"candidates": FOUND})
    pattern = re.compile(make_team("episode.keep=2").agents["filter"].pattern(board))
    for one in ("none", "1", "2", "3", "1, 2", "1, 3", "2, 3"):
        for other in ("none", "4"):
            assert pattern.fullmatch(f"supportive: {one}\nconfusing: {other}\ncountering: none")
    for wrong in ("4", "1, 2, 3", "1,2", "", "1, 1"):
        assert not pattern.fullmatch(f"supportive: {wrong}\nconfusing: none\ncountering: none")


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True))
def test_choices_are_taken_literally(choices: list[str]) -> None:
    pattern = re.compile(choice_pattern(choices))
    assert all(pattern.fullmatch(choice) for choice in choices)
    assert not pattern.fullmatch("".join(choices) + "x")


@given(st.integers(1, 500), st.integers(1, 5))
def test_values_and_what_stands_around_them_fit_into_an_answer(tokens: int, lines: int) -> None:
    characters = room(tokens, lines)
    assert characters >= 1
    if characters > 1:
        assert lines * (characters + 8) <= tokens < lines * (characters + 9), "names and ends take 8 tokens a line"
