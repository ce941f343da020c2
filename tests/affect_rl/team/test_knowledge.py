"""What a critic may know: nothing of it depends on what the agent itself says from the turn on."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from team_cases import DEBATE, NONE, Recorder, make_team, play

from affect_rl.evidence import GROUPS, Evidence, Support
from affect_rl.sample import AffectSample
from affect_rl.scoring.emotions import CLUSTERS
from affect_rl.seeds import derived_seed
from affect_rl.team.agent import Request
from affect_rl.team.board import Board
from affect_rl.team.demonstrations import Annotator
from affect_rl.team.knowledge import LABELS, NAMES, columns, knowledge, note
from affect_rl.team.prompts import Prompts
from affect_rl.trajectory import Generation, Prompt, Trajectory, Turn
from retrieval_service.retriever import LocalRetriever

TEAMS = {
    "published": (),
    "two rounds": ("team.rounds=2",),
    "debate": DEBATE,
    "debate in two rounds": (*DEBATE, "team.rounds=2"),
    "an agent of one's own": (
        "team.agents=[planner, filter, interpreter, generator]",
        "team.interpreter.kind=test_own_agent:Interpreter",
    ),
    "published code": ("team.planner.kind=labelling_planner",),
    "without a planner": ("team.agents=[filter, generator]",),
}
LABEL_SET = ("anger", "joy", "sadness")

QUERY = st.sampled_from(["glass harbour", "grandmother cooked", "joy", "soft voice", "x"])
PLANS = st.builds(lambda *q: "\n".join(f"{g}: {t}" for g, t in zip(GROUPS, q, strict=True)), *[QUERY] * 3)
LABELLED = st.builds(lambda plan, label: f"{plan}\nlabel: {label}", PLANS, QUERY)
SELECTIONS = st.sampled_from([NONE, *(f"supportive: {n}\nconfusing: none\ncountering: none" for n in (1, 2))])
ANSWERS = st.builds(lambda label: f"reason: a\nlabel: {label}", st.sampled_from(["joy", "anger", "sadness", "fear"]))
TEXTS = st.one_of(st.text(max_size=40), PLANS, LABELLED, SELECTIONS, ANSWERS, QUERY.map("against: {}".format))


@pytest.mark.parametrize("name", TEAMS)
def test_nothing_depends_on_the_agents_own_tokens(
    name: str, world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    """Whatever an agent says in one of its turns, what was known at this turn and before it stays the same."""
    team = make_team(*TEAMS[name])

    async def fickle(prompt: Prompt, request: Request) -> Generation:
        """By rule, but the answer, and with it each line's score, hangs on every token that was read."""
        answer = await Annotator(prompts)(prompt, request)
        if request.agent.name == "generator" and derived_seed(0, prompt.token_ids) % 2:
            return replace(answer, text="reason: a whim\nlabel: none of them")
        return answer

    def played(place: int, spoken: dict[str | tuple[str, int], str]) -> Trajectory:
        return play(world[place], team, Recorder(fickle, spoken), retriever, prompts, critic_sees="privileged")

    @cache
    def undisturbed(place: int) -> Trajectory:
        return played(place, {})

    turns = [(turn.agent, turn.number) for turn in undisturbed(0).turns]
    moved = set()

    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, 3), st.sampled_from(turns), TEXTS)
    def check(place: int, changed: tuple[str, int], text: str) -> None:
        agent, number = changed
        before, after = undisturbed(place), played(place, {changed: text})
        for one, other in zip(before.turns, after.turns, strict=True):
            assert (one.agent, one.number) == (other.agent, other.number)
            if one.agent == agent and one.number <= number:
                assert one.knowledge == other.knowledge
                assert _critic_reads(one) == _critic_reads(other)
            elif one.knowledge != other.knowledge:
                moved.add(changed)

    check()
    assert moved, "what others know must follow from what is said"


def _critic_reads(turn: Turn) -> tuple[int, ...]:
    assert turn.critic_prompt is not None
    return turn.critic_prompt.token_ids


@settings(max_examples=60)
@given(st.lists(st.sampled_from(LABEL_SET), unique=True), st.sampled_from([None, 0.0, 1.0]), st.booleans())
def test_the_team_knows_nothing_of_the_truth(labels: list[str], score: float | None, closed: bool) -> None:
    """Neither the sample's labels nor scores, which follow from them."""
    kind, candidates = ("closed", LABEL_SET) if closed else ("open", ())
    sample = AffectSample("u", "d", "train", "c", "s", "text", ("joy",), kind, candidates)  # type: ignore[arg-type]
    items = tuple(Evidence(f"e{n}", "text", (label,), 0.5) for n, label in enumerate(LABEL_SET))
    found = dict.fromkeys(GROUPS, items)
    kept = dict.fromkeys(GROUPS, items[:1])
    slots = {"support": Support(("a", "b"), (("joy",), ("anger",))), "candidates": found, "kept": kept}
    told, lied = Board(sample, slots), Board(replace(sample, labels=tuple(labels)), slots)
    assert note(told, 0.5, "team") == note(lied, score, "team") != ""
    assert note(told, 0.5, "own") == note(lied, score, "own") == ""
    true, other = knowledge(told, 0.5), knowledge(lied, score)
    assert [true[i] for i in columns("team")] == [other[i] for i in columns("team")]
    assert len(true) == len(other) == len(NAMES) and all(0 <= value <= 1 for value in (*true, *other))


def test_what_a_critic_sees_grows_and_ends_with_everything() -> None:
    assert columns("own") == []
    assert set(columns("own")) < set(columns("team")) < set(columns("privileged")) == set(range(len(NAMES)))
    assert len(set(NAMES)) == len(NAMES)


def test_the_truth_is_told_to_the_privileged() -> None:
    sample = AffectSample("u", "d", "train", "c", "s", "text", ("joy",), "closed", LABEL_SET)
    first = NAMES.index(("privileged", "truth 0"))
    told = knowledge(Board(sample), None)[first : first + LABELS]
    assert told == (0, 1, *[0] * (LABELS - 2))
    free = knowledge(Board(replace(sample, labels=("happy",), label_kind="open", candidates=())), None)
    assert sum(free[first : first + LABELS]) == 1 and len(CLUSTERS) <= LABELS


def test_a_separate_critic_reads_what_agents_before_wrote(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    """In slots of their own as well; not what comes after the turn."""
    recorder = Recorder.of(prompts, {"interpreter": "bright spirits"})
    team = make_team(*TEAMS["an agent of one's own"])
    trajectory = play(world[0], team, recorder, retriever, prompts, critic_sees="team")
    seen = {turn.agent: prompts.tokenizer.decode(_critic_reads(turn)) for turn in trajectory.turns}
    behind = {turn.agent: len(prompts.tokenizer.decode(turn.prompt.token_ids)) for turn in trajectory.turns}
    notes = {agent: text[behind[agent] :] for agent, text in seen.items()}
    assert notes["generator"].endswith("gloss: bright spirits\nnotes: gloss: bright spirits\n")
    assert notes["interpreter"] and not any("bright spirits" in notes[agent] for agent in notes if agent != "generator")


def test_only_words_stand_in_a_note() -> None:
    sample = AffectSample("u", "d", "train", "c", "s", "text", ("joy",), "closed", LABEL_SET)
    slots = {"support": Support(("a",), (("joy",),)), "queries": {"supportive": "a\tlaugh"}, "mood": "so\nso", "n": 3}
    board = Board(sample, {**slots, "notes": ("one", "two", ""), "kept": {"supportive": (Evidence("e", "", (), 0),)}})
    ends = "mood: so so\nnotes: one\nnotes: two\n"
    assert note(board, None, "team") == f"supportive query: a\tlaugh\nsupportive kept: \n{ends}"
    assert note(board, None, "privileged").endswith(f"truth: joy\nneighbours: joy\n{ends}")
    assert note(board, None, "own") == ""


def test_a_turn_knows_what_stood_on_the_board_before_it(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    trajectory = play(world[0], make_team(), Recorder.of(prompts), retriever, prompts)
    known = {turn.agent: dict(zip(NAMES, turn.knowledge, strict=True)) for turn in trajectory.turns}
    similar, kept = ("team", "supportive similarity"), ("privileged", "supportive kept")
    best = max(item.score for item in trajectory.candidates["supportive"])
    assert [known[agent][similar] for agent in known] == [0, best, best]
    assert [known[agent][kept] for agent in known] == [0, 0, float(bool(trajectory.kept["supportive"]))]
    without = {agent: known[agent]["privileged", "score without"] for agent in known}
    assert without == {"planner": trajectory.scores["planner"], "filter": trajectory.scores["filter"], "generator": 0}
    assert [known[agent]["privileged", "played without"] for agent in known] == [1, 1, 0]
