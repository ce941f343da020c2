"""The filter: what is read of its answers, and silver selections, which are searched for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from team_cases import Recorder, make_team, play, turn_of

from affect_rl.evidence import GROUPS, Evidence, Group
from affect_rl.sample import AffectSample
from affect_rl.team.agent import Request
from affect_rl.team.board import Board, Found
from affect_rl.team.demonstrations import Annotator
from affect_rl.team.filter import render_selection
from affect_rl.team.prompts import Prompts
from affect_rl.trajectory import Generation, Prompt
from retrieval_service.retriever import LocalRetriever

SAMPLE = AffectSample("u", "made-up", "train", "c", "s", "a glass harbour", ("joy",), "closed", ("anger", "joy"))
CANDIDATES: Found = {
    "supportive": tuple(Evidence(f"s{i}", f"text {i}", ("joy",), 0.5) for i in (1, 2)),
    "confusing": (Evidence("c3", "text 3", ("anger",), 0.4),),
    "countering": (),
}
BOARD = Board(SAMPLE, {"candidates": CANDIDATES})
FILTER = make_team().agents["filter"]

BAD_SELECTIONS = [
    ("supportive: first\nconfusing: none\ncountering: none", "supportive: `first` is neither numbers nor `none`"),
    ("supportive: 3\nconfusing: none\ncountering: none", "supportive: 3 is not a candidate of this group"),
    ("supportive: 0\nconfusing: none\ncountering: none", "supportive: 0 is not a candidate of this group"),
    ("supportive: 1, 1\nconfusing: none\ncountering: none", "supportive: a number stands twice"),
    ("supportive: 1, 2\nconfusing: none\ncountering: none", "supportive: 2 kept, at most 1"),
    ("supportive: 1\nconfusing: 3\ncountering: 4", "countering: 4 is not a candidate of this group"),
    ("supportive: -1\nconfusing: none\ncountering: none", "supportive: `-1` is neither numbers nor `none`"),
    ("supportive: ١\nconfusing: none\ncountering: none", "supportive: `١` is neither numbers nor `none`"),
    ("supportive: 1,\nconfusing: none\ncountering: none", "supportive: `1,` is neither numbers nor `none`"),
    ("supportive: 1", "`confusing:` is missing"),
]


def _kept(text: str) -> dict[Group, list[str]]:
    return {group: [item.id for item in items] for group, items in FILTER.read(text, BOARD).writes["kept"].items()}


@pytest.mark.parametrize(("text", "message"), BAD_SELECTIONS)
def test_a_broken_selection_falls_back_to_retrieval_order(text: str, message: str) -> None:
    problem = FILTER.read(text, BOARD).problem
    assert problem and message in problem
    assert _kept(text) == {"supportive": ["s1"], "confusing": ["c3"], "countering": []}


def test_white_space_and_case_do_not_matter() -> None:
    assert _kept("SUPPORTIVE: 2\nconfusing: None\ncountering: NONE")["supportive"] == ["s2"]


@given(st.sampled_from([(), (1,), (2,)]), st.sampled_from([(), (3,)]))
def test_a_rendered_selection_reads_back(supportive: tuple[int, ...], confusing: tuple[int, ...]) -> None:
    text = render_selection({"supportive": supportive, "confusing": confusing})
    assert FILTER.read(text, BOARD).problem is None
    assert _kept(text)["supportive"] == [f"s{n}" for n in supportive]
    assert _kept(text)["confusing"] == [f"c{n}" for n in confusing]


@given(
    st.one_of(st.text(max_size=200), st.lists(st.sampled_from([*GROUPS, ":", "\n", "1", ",", " none"])).map("".join))
)
def test_no_answer_raises(text: str) -> None:
    assert set(FILTER.read(text, BOARD).writes["kept"]) == set(GROUPS)


def test_the_bypass_keeps_retrieval_order(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    recorder = Recorder.of(prompts, {"filter": "supportive: none\nconfusing: none\ncountering: none"})
    trajectory = play(world[0], make_team(), recorder, retriever, prompts)
    (request,) = [request for _, request in recorder.calls if request.line == "filter"]
    assert request.agent.name == "generator"
    assert request.board.kept == {g: trajectory.candidates[g][:1] for g in GROUPS}
    assert all(not kept for kept in trajectory.kept.values())


def test_silver_selections_are_what_helps_the_reader(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    """The reader here answers right once it has seen a supportive candidate that shares the truth."""
    annotator, team = Annotator(prompts), make_team("team.filter.kind=silver_filter")

    async def reader(prompt: Prompt, request: Request) -> Generation:
        answer, board = await annotator(prompt, request), request.board
        if request.agent.name == "generator" and not any(e.agrees(board.sample) for e in board.kept["supportive"]):
            return replace(answer, text="reason: voice and face\nlabel: nothing")
        return answer

    found = 0
    for sample in world:
        episode = play(sample, team, reader, retriever, prompts, bypasses=False)
        helpful = [item for item in episode.candidates["supportive"] if item.agrees(sample)]
        assert episode.scores["full"] == float(bool(helpful))
        assert episode.kept["supportive"] == tuple(helpful[:1]) and not episode.kept["countering"]
        board = Board(sample, {"candidates": episode.candidates})
        assert FILTER.read(turn_of(episode, "filter").generation.text, board).writes["kept"] == episode.kept
        found += bool(helpful)
    assert found


def test_the_search_for_silver_sees_what_an_episode_sees(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    team = make_team("team.filter.kind=silver_filter", "episode.absent=[audio]")
    deaf = play(world[0], team, Annotator(prompts), retriever, prompts)
    assert [turn.agent for turn in deaf.turns] == ["planner", "filter", "generator"]
    assert all(turn.prompt.percepts[0].audio is None for turn in deaf.turns)
    team = make_team("team.filter.kind=silver_filter", "team.retrieval=false")
    alone = play(world[0], team, Annotator(prompts), None, prompts)
    assert [turn.agent for turn in alone.turns] == ["generator"]
