"""The planner: what is read of its answers and what stands in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from team_cases import WORLD, Recorder, make_team, play

from affect_rl.evidence import GROUPS, CognitiveResult, Evidence, Exclusion, Group, Support
from affect_rl.sample import AffectSample
from affect_rl.team.board import Board
from affect_rl.team.demonstrations import demonstrate
from affect_rl.team.planner import LABEL, render_plan, simple_label
from affect_rl.team.prompts import Prompts
from retrieval_service.retriever import LocalRetriever

SAMPLE = AffectSample("u", "made-up", "train", "c", "s", "a glass harbour", ("joy",), "closed", ("anger", "joy"))
PLANNER = make_team().agents["planner"]
LABELLING = make_team("team.planner.kind=labelling_planner").agents["planner"]
WORDS = st.from_regex(r"[a-z]+( [a-z]+){0,4}", fullmatch=True)

BAD_PLANS = [
    ("", "`supportive:` is missing"),
    ("glass harbour", "`glass harbour` is not one of the lines"),
    ("supportive: a\nconfusing: b", "`countering:` is missing"),
    ("supportive: a\nsupportive: b\nconfusing: c\ncountering: d", "`supportive:` stands twice"),
    ("supportive:\nconfusing: b\ncountering: c", "`supportive:` is empty"),
    ("supportive: a\nconfusing: b\ncountering: c\nlabel: joy", "`label: joy` is not one of the lines"),
]


@pytest.mark.parametrize(("text", "message"), BAD_PLANS)
def test_a_broken_plan_falls_back_to_the_text(text: str, message: str) -> None:
    plan = PLANNER.read(text, Board(SAMPLE))
    assert plan.problem and message in plan.problem
    assert plan.writes == {"queries": dict.fromkeys(GROUPS, "a glass harbour")}


@pytest.mark.parametrize(("text", "message"), BAD_PLANS)
def test_a_broken_second_plan_falls_back_to_the_first(text: str, message: str) -> None:
    before = dict.fromkeys(GROUPS, "soft voice")
    plan = PLANNER.read(text, Board(SAMPLE, {"queries": before}))
    assert plan.problem and plan.writes == {"queries": before}


def test_white_space_and_case_do_not_matter() -> None:
    plan = PLANNER.read("  Supportive :  a   b \n\nCONFUSING: c\n countering: d ", Board(SAMPLE))
    assert plan.writes["queries"]["supportive"] == "a b"


@given(st.fixed_dictionaries(dict.fromkeys(get_args(Group), WORDS)))
def test_a_rendered_plan_reads_back(queries: dict[Group, str]) -> None:
    plan = PLANNER.read(render_plan(queries), Board(SAMPLE))
    assert plan.problem is None and plan.writes == {"queries": queries}


@given(st.one_of(st.text(max_size=200), st.lists(st.sampled_from([*GROUPS, ":", "\n", "label", " a"])).map("".join)))
def test_no_answer_raises(text: str) -> None:
    for agent in (PLANNER, LABELLING):
        reading = agent.read(text, Board(SAMPLE))
        assert set(reading.writes) == set(agent.writes) and set(reading.writes["queries"]) == set(GROUPS)


def test_the_bypass_owes_nothing_to_the_planner(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    plans = ["supportive: joy\nconfusing: joy\ncountering: joy", "supportive: x\nconfusing: y\ncountering: z", "?"]
    seen = []
    for plan in plans:
        recorder = Recorder.of(prompts, {"planner": plan})
        play(world[0], make_team(), recorder, retriever, prompts)
        seen.append([prompt.token_ids for prompt in recorder.prompts_of("filter", "planner")])
    assert seen[0] == seen[1] == seen[2] != []


def test_the_published_bypass_searches_with_what_the_planner_names(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    team = make_team("team.planner.kind=labelling_planner")

    def searched(label: str) -> list[tuple[int, ...]]:
        plan = f"supportive: a\nconfusing: b\ncountering: c\nlabel: {label}"
        recorder = Recorder.of(prompts, {"planner": plan})
        trajectory = play(world[0], team, recorder, retriever, prompts)
        assert trajectory.turns[0].problem is None and trajectory.queries["supportive"] == "a"
        return [prompt.token_ids for prompt in recorder.prompts_of("filter", "planner")]

    assert searched("joy, in earnest") != searched("grandmother cooked"), "its evidence follows the named label"


def test_a_planner_that_was_asked_for_a_label_must_name_it(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    plan = LABELLING.read("supportive: a\nconfusing: b\ncountering: c", Board(SAMPLE))
    assert plan.problem == "`label:` is missing" and plan.writes[LABEL] == ""
    team = make_team("team.planner.kind=labelling_planner")
    turns = asyncio.run(demonstrate(world[0], team, retriever, prompts, seed=1)).turns
    assert turns[0].problem is None and turns[0].generation.text.endswith(f"label: {world[0].labels[0]}")


def test_the_simple_label_is_the_neighbours_plurality() -> None:
    sample = WORLD[0]
    assert simple_label(sample, Support(("a", "b", "c"), (("joy",), ("anger",), ("anger",)))) == "anger"
    assert simple_label(sample, Support(("a", "b"), (("joy",), ("anger",)))) == "joy"
    assert simple_label(sample, Support()) == sample.candidates[0]


# -- two rounds ----------------------------------------------------------------------------------

FIRST, SECOND = (dict.fromkeys(GROUPS, words) for words in ("glass harbour", "grandmother cooked"))
TWO_SEARCHES = {("planner", 0): render_plan(FIRST), ("planner", 1): render_plan(SECOND)}


def _found(retriever: LocalRetriever, sample: AffectSample, query: str) -> dict[Group, tuple[Evidence, ...]]:
    queries = dict.fromkeys(GROUPS, query)
    return dict(asyncio.run(retriever.cognitive(queries, 2, Exclusion.of(sample))).groups)


def test_the_second_search_sees_what_the_first_found_and_adds_to_it(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    sample, recorder = world[0], Recorder.of(prompts, TWO_SEARCHES)
    trajectory = play(sample, make_team("team.rounds=2"), recorder, retriever, prompts)
    assert [(t.agent, t.number) for t in trajectory.turns] == [
        ("planner", 0), ("planner", 1), ("filter", 0), ("generator", 0),
    ]  # fmt: skip
    one, two = (_found(retriever, sample, plan["supportive"]) for plan in (FIRST, SECOND))
    early, late = (prompts.tokenizer.decode(turn.prompt.token_ids) for turn in trajectory.turns[:2])
    for item in (e for items in one.values() for e in items):
        assert item.text in late and item.text not in early
    ids = {item.id for found in (one, two) for items in found.values() for item in items}
    assert ids == {item.id for items in trajectory.candidates.values() for item in items}
    for group in GROUPS:
        assert trajectory.candidates[group][: len(two[group])] == two[group], "the later search comes first"
    every = [item.id for items in trajectory.candidates.values() for item in items]
    assert len(every) == len(set(every)), "nothing stands in two groups"
    shown = prompts.tokenizer.decode(trajectory.turns[2].prompt.token_ids)
    assert all(item.text in shown for items in trajectory.candidates.values() for item in items)
    assert dict(trajectory.queries) == SECOND


def test_two_searches_never_show_one_text_as_support_and_as_counter_evidence(
    world: list[AffectSample], prompts: Prompts
) -> None:
    """Recordings of the same words have ids of their own."""
    found = {
        "glass harbour": {"supportive": [("a", "soft voice: joy"), ("b", "loud voice: joy")]},
        "grandmother cooked": {"countering": [("c", "soft voice: joy")], "confusing": [("b", "loud voice: joy")]},
    }

    class Library:
        async def cognitive(self, queries: Mapping[Group, str], k: int, exclusion: Exclusion) -> CognitiveResult:
            groups = found[queries["supportive"]]
            items = {g: tuple(Evidence(i, text, ("joy",), 0.5) for i, text in groups.get(g, ())) for g in GROUPS}
            return CognitiveResult(items)

        async def perceptual(self, *_: object) -> Support:
            return Support()

    recorder, team = Recorder.of(prompts, TWO_SEARCHES), make_team("team.rounds=2")
    trajectory = play(world[0], team, recorder, Library(), prompts, bypasses=False)
    shown = {group: [item.id for item in items] for group, items in trajectory.candidates.items()}
    assert shown == {"supportive": [], "confusing": ["b"], "countering": ["c"]}


def test_turns_of_one_agent_draw_numbers_of_their_own(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    recorder = Recorder.of(prompts)
    play(world[0], make_team("team.rounds=2"), recorder, retriever, prompts)
    seeds = {request.number: request.seed for _, request in recorder.calls if request.agent.name == "planner"}
    assert len(seeds) == len(set(seeds.values())) == 2


def test_the_bypass_stands_for_both_turns(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    """One simple label is searched for; neither what was found before nor what is asked next shows in that line."""
    sample, seen = world[0], []
    for spoken in ({}, TWO_SEARCHES, {("planner", 1): "?"}):
        recorder = Recorder.of(prompts, spoken)
        play(sample, make_team("team.rounds=2"), recorder, retriever, prompts)
        assert "planner" not in recorder.asked("planner")
        ((prompt, request),) = [(p, r) for p, r in recorder.calls if (r.agent.name, r.line) == ("filter", "planner")]
        seen.append(prompt.token_ids)
    assert seen[0] == seen[1] == seen[2]
    support = asyncio.run(retriever.perceptual(sample.audio, sample.video, Exclusion.of(sample)))
    assert dict(request.board.candidates) == _found(retriever, sample, simple_label(sample, support))


def test_a_later_turn_is_paid_and_each_pays_for_itself(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    recorder = Recorder.of(prompts, {("planner", 0): "?"})
    team = make_team("team.rounds=2", "team.planner.format_penalty=0.25", "team.planner.weight=1")
    trajectory = play(world[0], team, recorder, retriever, prompts)
    first, second = trajectory.turns[:2]
    full, without = trajectory.scores["full"], trajectory.scores["planner"]
    assert first.problem and first.reward == -0.25
    assert second.problem is None and second.reward == pytest.approx(full + (full - without))
