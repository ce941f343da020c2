"""Episodes on a real index, played by rule: what is asked of whom and when, and what a malformed answer costs."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from team_cases import CAREFUL, NONE, Recorder, make_team, play, turn_of

from affect_rl.errors import AffectError
from affect_rl.evidence import GROUPS, CognitiveResult, Exclusion, Group, Support
from affect_rl.policy.special_tokens import PERCEPT_TOKEN
from affect_rl.sample import AffectSample
from affect_rl.team.agent import Request
from affect_rl.team.demonstrations import Annotator, demonstrate
from affect_rl.team.episode import play_episode
from affect_rl.team.planner import render_plan, whole_utterance
from affect_rl.team.prompts import Prompts
from affect_rl.trajectory import Generation, Prompt, Trajectory
from retrieval_service.retriever import LocalRetriever

Answers = Mapping[str | tuple[str, int], str]
DEADLINE_S = 60


# -- what is asked -------------------------------------------------------------------------------


def test_six_generations_share_one_prefix(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    def calls(sample: AffectSample) -> tuple[Recorder, Trajectory]:
        recorder = Recorder.of(prompts)
        return recorder, play(sample, make_team(), recorder, retriever, prompts)

    recorder, trajectory, sample = next((*c, s) for s in world if len((c := calls(s))[0].calls) == 6)
    assert Counter((request.agent.name, request.line) for _, request in recorder.calls) == Counter(
        [
            ("planner", "full"), ("filter", "full"), ("generator", "full"),
            ("filter", "planner"), ("generator", "planner"), ("generator", "filter"),
        ]
    )  # fmt: skip
    prefix = prompts.prefix(sample)
    assert all(prompt.token_ids[: len(prefix)] == prefix for prompt, _ in recorder.calls)
    assert [turn.agent for turn in trajectory.turns] == ["planner", "filter", "generator"]
    assert set(trajectory.scores) == {"full", "planner", "filter"} and set(trajectory.bypassed) == {"planner", "filter"}
    assert trajectory.generated_tokens > sum(len(t.generation.token_ids) for t in trajectory.turns)
    assert trajectory.prompt_tokens == sum(len(prompt.token_ids) for prompt, _ in recorder.calls)


def test_a_prompt_that_was_played_is_not_generated_again(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    """A filter that keeps retrieval order is its own bypass: the line without it ends in the team's own answer."""
    team = make_team("team.filter.careful=0")
    fewer = 0
    for sample in world:
        recorder = Recorder.of(prompts)
        trajectory = play(sample, team, recorder, retriever, prompts)
        asked = [(r.agent.name, r.number, p.token_ids) for p, r in recorder.calls]
        assert len(asked) == len(set(asked)) <= 5
        assert trajectory.scores["filter"] == trajectory.scores["full"]
        assert trajectory.bypassed["filter"] == trajectory.output
        assert turn_of(trajectory, "filter").reward == trajectory.scores["full"]
        fewer += len(asked) == 5
    assert fewer


def test_each_percept_has_its_run_of_placeholders(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    trajectory = play(world[0], make_team(), Annotator(prompts), retriever, prompts)
    placeholder = prompts.tokenizer.convert_tokens_to_ids(PERCEPT_TOKEN)
    for turn in trajectory.turns:
        assert turn.prompt.token_ids.count(placeholder) == 4 * len(turn.prompt.percepts)
    raw, fused = turn_of(trajectory, "generator").prompt.percepts
    assert not raw.fused and raw.audio_support is None
    assert fused.fused and fused.audio_support is not None and len(fused.audio_support) > 1


def test_lines_draw_the_random_numbers_of_what_they_are_compared_with(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    recorder = Recorder.of(prompts, {"filter": NONE})
    play(world[0], make_team(), recorder, retriever, prompts)
    seeds = defaultdict(set)
    for _, request in recorder.calls:
        seeds[request.agent.name].add(request.seed)
    assert set(seeds) == {"planner", "filter", "generator"} and all(len(found) == 1 for found in seeds.values())
    assert len(set.union(*seeds.values())) == 3


@pytest.mark.parametrize(("asked", "expected"), [(None, {"planner": 0.5, "filter": 1, "generator": 1}), (0.0, None)])
def test_each_agent_has_its_temperature_unless_one_is_asked_for(
    world: list[AffectSample],
    retriever: LocalRetriever,
    prompts: Prompts,
    asked: float | None,
    expected: dict[str, float] | None,
) -> None:
    recorder = Recorder.of(prompts)
    team = make_team("team.planner.temperature=0.5")
    trajectory = play(world[0], team, recorder, retriever, prompts, temperature=asked)
    wanted = expected or dict.fromkeys(team.agents, asked)
    assert {request.agent.name: request.temperature for _, request in recorder.calls} == wanted
    assert {turn.agent: turn.temperature for turn in trajectory.turns} == wanted


ANSWERS = st.dictionaries(st.sampled_from(["planner", "filter", "generator"]), st.text(max_size=60), min_size=1)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spoken=ANSWERS)
def test_a_malformed_answer_never_ends_an_episode_and_pays(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts, spoken: Answers
) -> None:
    trajectory = play(world[0], make_team(), Recorder.of(prompts, spoken), retriever, prompts)
    full, planner, filtered = (trajectory.scores[name] for name in ("full", "planner", "filter"))
    expected = {"planner": full + 0.5 * (full - planner), "filter": full + 0.5 * (full - filtered), "generator": full}
    for turn in trajectory.turns:
        assert turn.reward == pytest.approx(expected[turn.agent] - 0.5 * (turn.problem is not None))
        assert (turn.problem is not None) == (turn.agent in spoken)


def test_an_answer_that_was_cut_off_is_malformed(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    async def generate(prompt: Prompt, request: Request) -> Generation:
        answer = await Annotator(prompts)(prompt, request)
        return replace(answer, finished=request.agent.name != "filter")

    trajectory = play(world[0], make_team(), generate, retriever, prompts)
    problems = {turn.agent: turn.problem for turn in trajectory.turns}
    assert problems == {
        "planner": None, "filter": "the answer did not end within its token limit", "generator": None,
    }  # fmt: skip


# -- who plays -----------------------------------------------------------------------------------


def test_without_retrieval_the_generator_answers_alone(world: list[AffectSample], prompts: Prompts) -> None:
    recorder = Recorder.of(prompts)
    trajectory = play(world[0], make_team("team.retrieval=false"), recorder, None, prompts)
    assert [request.agent.name for _, request in recorder.calls] == ["generator"]
    assert trajectory.scores == {"full": 1.0} and len(trajectory.turns) == 1


def test_agents_that_do_not_play_are_replaced_by_the_simple_way(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    recorder = Recorder.of(prompts)
    alone = play(world[0], make_team("team.agents=[generator]"), recorder, retriever, prompts)
    assert [(r.agent.name, r.line) for _, r in recorder.calls] == [("generator", "full")]
    assert set(alone.queries.values()) == {world[0].text} and alone.bypassed == {}
    assert alone.kept == {g: alone.candidates[g][:1] for g in GROUPS}
    assert alone.turns[0].reward == alone.scores["full"]

    filtered = play(world[0], make_team("team.agents=[filter, generator]"), recorder, retriever, prompts)
    assert [t.agent for t in filtered.turns] == ["filter", "generator"] and set(filtered.bypassed) == {"filter"}
    planned = play(world[0], make_team("team.agents=[planner, generator]"), recorder, retriever, prompts)
    assert [t.agent for t in planned.turns] == ["planner", "generator"] and set(planned.bypassed) == {"planner"}


def test_groups_out_of_play_are_neither_searched_nor_shown(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    team = make_team("episode.groups=[supportive]")
    trajectory = play(world[0], team, Annotator(prompts), retriever, prompts)
    assert set(trajectory.candidates) == {"supportive"}
    assert not trajectory.kept["confusing"] and not trajectory.kept["countering"]
    assert all(turn.problem is None for turn in trajectory.turns)


@pytest.mark.parametrize(
    ("changes", "learning", "lines"),
    [
        ([], ("planner", "filter", "generator"), {"planner", "filter"}),
        (["team.generator.trains=false"], ("planner", "filter"), {"planner", "filter"}),
        (["team.planner.trains=false", "team.generator.trains=false"], ("filter",), {"filter"}),
        (["team.agents=[planner, generator]"], ("planner", "generator"), {"planner"}),
        (["team.planner.weight=0"], ("planner", "filter", "generator"), {"filter"}),
    ],
)
def test_only_agents_that_train_learn_and_only_what_pays_them_is_played(
    world: list[AffectSample],
    retriever: LocalRetriever,
    prompts: Prompts,
    changes: list[str],
    learning: tuple[str, ...],
    lines: set[str],
) -> None:
    trajectory = play(world[0], make_team(*changes), Annotator(prompts), retriever, prompts)
    assert tuple(turn.agent for turn in trajectory.turns if turn.trained) == learning
    assert set(trajectory.scores) == lines | {"full"}
    measured = play(world[0], make_team(*changes), Annotator(prompts), retriever, prompts, bypasses=False)
    assert set(measured.scores) == {"full"} and measured.bypassed == {}


def test_a_sample_without_labels_is_played_and_not_scored(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    label = world[0].candidates[1]
    answer = f"reason: a bright voice\nlabel: {label}"
    said = {"planner": render_plan(whole_utterance(world[0])), "filter": "?", "generator": answer}

    async def generate(prompt: Prompt, request: Request) -> Generation:
        return Generation((1,), (0.0,), (0,), said[request.agent.name], finished=True)

    recorder = Recorder(generate)
    trajectory = play(replace(world[0], labels=()), make_team(), recorder, retriever, prompts)
    assert (trajectory.output.labels, trajectory.scores, trajectory.bypassed) == ((label,), {}, {})
    assert [request.line for _, request in recorder.calls] == ["full"] * 3
    assert {turn.agent: turn.reward for turn in trajectory.turns} == {"planner": 0, "filter": -0.5, "generator": 0}
    assert {len(turn.knowledge) for turn in trajectory.turns} == {
        len(turn.knowledge) for turn in play(world[0], make_team(), recorder, retriever, prompts).turns
    }


def test_a_withheld_modality_reaches_nobody(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    whole = world[0]
    assert whole.audio is not None and whole.video is not None

    def shown(*changes: str) -> Trajectory:
        return play(whole, make_team(*changes), Annotator(prompts), retriever, prompts)

    deaf = "episode.absent=[audio]"
    fused = turn_of(shown(deaf), "generator").prompt.percepts[1]
    assert fused.audio is None and fused.audio_support is not None and fused.video is whole.video

    direct = turn_of(shown(deaf, "team.generator.support=direct"), "generator").prompt.percepts
    assert direct[0].audio is None and direct[1].audio_support is None
    np.testing.assert_array_equal(direct[1].audio, fused.audio_support)
    assert direct[1].video is not None and len(direct[1].video) > len(whole.video)

    for use, audio in (("direct", direct[1].audio), ("none", None)):
        stood_in = turn_of(shown(deaf, f"team.generator.stand_in={use}"), "generator").prompt.percepts
        np.testing.assert_array_equal(stood_in[1].audio, audio)
        assert stood_in[1].audio_support is None and stood_in[1].video_support is not None, "the face keeps its own"

    for turn in shown("episode.absent=[video]", "episode.zero_absent=true", "team.generator.stand_in=none").turns:
        for percept in turn.prompt.percepts:
            assert percept.video is not None and percept.video.shape == whole.video.shape and not percept.video.any()
            assert percept.video_support is None and percept.audio is whole.audio
        assert turn.agent != "generator" or turn.prompt.percepts[1].audio_support is not None

    mute = turn_of(shown("episode.absent=[text]"), "generator")
    assert whole.text not in prompts.tokenizer.decode(mute.prompt.token_ids)


# -- when ----------------------------------------------------------------------------------------


def _play_within_deadline(sample: AffectSample, generate: object, retrieve: object, prompts: Prompts) -> Trajectory:
    """An episode in which one waits for another that waits for it never ends."""

    async def run() -> Trajectory:
        async with asyncio.timeout(DEADLINE_S):
            return await play_episode(sample, make_team(), generate, retrieve, prompts, 1)  # type: ignore[arg-type]

    return asyncio.run(run())


class Held:
    """Plays by rule, but a request is answered only once another has been made."""

    def __init__(self, prompts: Prompts, retriever: LocalRetriever, until: dict[str, str]) -> None:
        self.annotator, self.retriever, self.until = Annotator(prompts), retriever, until
        self.made: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def _pass(self, name: str) -> None:
        self.made[name].set()
        if name in self.until:
            await self.made[self.until[name]].wait()

    async def __call__(self, prompt: Prompt, request: Request) -> Generation:
        await self._pass(f"{request.agent.name} of {request.line}")
        return await self.annotator(prompt, request)

    async def cognitive(self, queries: Mapping[Group, str], k: int, exclusion: Exclusion) -> CognitiveResult:
        await self._pass(f"search for {queries['supportive']}")
        return await self.retriever.cognitive(queries, k, exclusion)

    async def perceptual(self, audio: np.ndarray | None, video: np.ndarray | None, exclusion: Exclusion) -> Support:
        await self._pass("perception")
        return await self.retriever.perceptual(audio, video, exclusion)


@pytest.mark.parametrize(
    "until",
    [
        {"perception": "planner of full"},
        {"planner of full": "perception"},
        {"planner of full": "filter of planner"},
        {"planner of full": "generator of planner"},
        {"filter of full": "generator of filter"},
        {"perception": "filter of full"},
    ],
    ids=lambda until: " waits for ".join(*until.items()),
)
def test_what_does_not_depend_on_each_other_runs_at_once(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts, until: dict[str, str]
) -> None:
    """The one that is held back would hold up the other for ever, if that waited for it."""
    ((held, freed),) = until.items()
    for sample in world:
        free = Held(prompts, retriever, {})
        expected = _play_within_deadline(sample, free, free, prompts)
        if free.made[freed].is_set():  # else its prompt is one that was played in another line
            held_up = Held(prompts, retriever, until)
            assert _play_within_deadline(sample, held_up, held_up, prompts).scores == expected.scores
            assert held_up.made[held].is_set()
            return
    pytest.fail(f"nobody was asked as {freed}")


def test_one_that_fails_ends_the_episode_with_its_own_error(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    cancelled = []

    async def generate(prompt: Prompt, request: Request) -> Generation:
        if request.line == "full":
            raise AffectError("made up")
        try:
            await asyncio.sleep(DEADLINE_S)
        except asyncio.CancelledError:
            cancelled.append(request.agent.name)
            raise
        raise AssertionError

    service = Held(prompts, retriever, {})

    async def delayed(prompt: Prompt, request: Request) -> Generation:
        if request.line == "full":
            await service.made["in flight"].wait()
        else:
            service.made["in flight"].set()
        return await generate(prompt, request)

    with pytest.raises(AffectError, match="made up"):
        _play_within_deadline(world[0], delayed, service, prompts)
    assert cancelled == ["filter"], "nothing of the episode goes on"


# -- demonstrations ------------------------------------------------------------------------------


def test_a_careful_annotator_finds_what_an_expression_means(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    figurative = [s for s in world if len(s.description.split()) == 2]
    habit = tuple(setting.replace("=1", "=0") for setting in CAREFUL)

    def share_found(care: tuple[str, ...]) -> float:
        played = [asyncio.run(demonstrate(s, make_team(*care), retriever, prompts, seed=0)) for s in figurative]
        quoted = [f"{s.description}, in earnest: {s.labels[0]}\nlabel: {s.labels[0]}" for s in figurative]
        found = [quote in episode.turns[2].generation.text for quote, episode in zip(quoted, played, strict=True)]
        return sum(found) / len(found)

    assert share_found(CAREFUL) > share_found(habit) + 0.1, (share_found(CAREFUL), share_found(habit))


def test_a_share_of_demonstrations_is_careful(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    team = make_team("team.planner.careful=0.5")
    plans = {
        (s.id, seed): asyncio.run(demonstrate(s, team, retriever, prompts, seed=seed)).turns[0].generation.text
        for s in world[:6]
        for seed in range(6)
    }
    by_habit = [text for (name, _), text in plans.items() if text.count(_text(world, name)) == 3]
    assert 0 < len(by_habit) < len(plans)


def test_agents_may_be_shown_a_careful_turn_where_a_habit_is_taught(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    figurative = [s for s in world if len(s.description.split()) == 2]

    def played(careful: int, forcing: float) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        team = make_team(f"team.planner.careful={careful}", "team.filter.careful=1", "team.generator.careful=1")
        episodes = [
            asyncio.run(demonstrate(s, team, retriever, prompts, seed=0, teacher_forcing=forcing)) for s in figurative
        ]
        return [
            (first.generation.token_ids, second.prompt.token_ids) for first, second, *_ in (e.turns for e in episodes)
        ]

    habit, careful, forced = played(0, 0.0), played(1, 0.0), played(0, 1.0)
    assert forced == [(plan, found) for (plan, _), (_, found) in zip(habit, careful, strict=True)]
    assert forced not in (habit, careful)


def test_shuffled_candidates_hide_the_annotators_choice_from_who_only_counts(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    def answers(shuffle: bool) -> list[str]:
        played = [
            asyncio.run(demonstrate(s, make_team(), retriever, prompts, seed, shuffle=shuffle))
            for s in world
            for seed in range(4)
        ]
        return [episode.turns[1].generation.text.splitlines()[0] for episode in played]

    def share_second(found: list[str]) -> float:
        return found.count("supportive: 2") / max(1, sum(line != "supportive: none" for line in found))

    in_order, shuffled = answers(False), answers(True)
    assert in_order.count("supportive: none") == shuffled.count("supportive: none"), "the same candidates"
    assert share_second(shuffled) > share_second(in_order) + 0.1, (share_second(shuffled), share_second(in_order))
    assert shuffled == answers(True), "the seed alone decides"


def test_candidates_are_not_shuffled_for_a_team_that_keeps_the_first_ones_unread(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    team = make_team("team.agents=[planner, generator]")
    one, other = (asyncio.run(demonstrate(world[0], team, retriever, prompts, 1, shuffle=s)) for s in (False, True))
    assert [turn.prompt.token_ids for turn in one.turns] == [turn.prompt.token_ids for turn in other.turns]


def _text(world: list[AffectSample], name: str) -> str:
    return next(s.text for s in world if s.id == name)
