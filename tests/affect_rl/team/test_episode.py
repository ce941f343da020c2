"""Episodes on a real index, played by rule: what is asked of whom, and what a malformed answer costs."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from affect_rl.config.sections import EpisodeConfig, RetrievalConfig, RewardConfig
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.errors import AffectError
from affect_rl.evidence import GROUPS, Support, render_evidence
from affect_rl.policy.tokens import PERCEPT_TOKEN, train_tokenizer
from affect_rl.sample import AffectSample
from affect_rl.team.demonstrations import Annotator, agrees, demonstrate
from affect_rl.team.episode import Episode, play_episode, simple_label
from affect_rl.team.parsers import parse_selection
from affect_rl.team.prompts import Prompts, template_texts
from affect_rl.team.silver import SilverEpisode
from affect_rl.trajectory import Generate, Generation, Prompt, Request, Role, Trajectory
from retrieval_service.index import build_index
from retrieval_service.retriever import LocalRetriever

WORLD = synthesise(SynthSettings(train=12, dev=1, test=1, expressions=40, absent=0))
RETRIEVAL = RetrievalConfig(library_splits=("library",))
EPISODE = EpisodeConfig(k=2)
REWARDS = RewardConfig()


@pytest.fixture(scope="module")
def samples() -> list[AffectSample]:
    return [s for s in WORLD if s.split == "train"]


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> LocalRetriever:
    library = [s for s in WORLD if s.split == "library"]
    return LocalRetriever(build_index(library, tmp_path_factory.mktemp("library") / "index", RETRIEVAL), RETRIEVAL)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    texts = [text for s in WORLD for text in (s.text, render_evidence(s))]
    return Prompts(train_tokenizer([*texts, *template_texts()], 800), soft_tokens=4, context=512, evidence_tokens=32)


@dataclass
class Recorder:
    """Passes requests on and remembers them; `spoken` replaces what a role says."""

    generate: Generate
    spoken: dict[Role, str] = field(default_factory=dict)
    calls: list[tuple[Prompt, Request]] = field(default_factory=list)

    async def __call__(self, prompt: Prompt, request: Request) -> Generation:
        self.calls.append((prompt, request))
        answer = await self.generate(prompt, request)
        if request.role in self.spoken and request.purpose == "full":
            return replace(answer, text=self.spoken[request.role])
        return answer


def _play(
    sample: AffectSample,
    generate: Generate,
    retriever: LocalRetriever | None,
    prompts: Prompts,
    kind: type[Episode] = Episode,
    **changes: object,
) -> Trajectory:
    config = EPISODE.model_copy(update=changes)
    return asyncio.run(play_episode(sample, generate, retriever, prompts, config, REWARDS, 1, kind))


def test_six_generations_share_one_prefix(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    recorder = Recorder(Annotator(prompts, 1, 1.0, 1.0))
    trajectory = _play(samples[0], recorder, retriever, prompts)
    roles = Counter((request.role, request.purpose) for _, request in recorder.calls)
    assert roles == Counter(
        [
            ("planner", "full"), ("filter", "full"), ("generator", "full"),
            ("filter", "label"), ("generator", "label"), ("generator", "rank"),
        ]
    )  # fmt: skip
    prefix = prompts.prefix(samples[0])
    assert all(prompt.token_ids[: len(prefix)] == prefix for prompt, _ in recorder.calls)
    assert [turn.role for turn in trajectory.turns] == ["planner", "filter", "generator"]
    assert trajectory.generated_tokens > sum(len(t.generation.token_ids) for t in trajectory.turns)


def test_each_percept_has_its_run_of_placeholders(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    trajectory = _play(samples[0], Annotator(prompts, 1, 1.0, 1.0), retriever, prompts)
    placeholder = prompts.tokenizer.convert_tokens_to_ids(PERCEPT_TOKEN)
    for turn in trajectory.turns:
        assert turn.prompt.token_ids.count(placeholder) == 4 * len(turn.prompt.percepts)
    raw, fused = trajectory.turns[2].prompt.percepts
    assert not raw.fused and raw.audio_support is None
    assert fused.fused and fused.audio_support is not None and len(fused.audio_support) > 1


def test_the_label_counterfactual_owes_nothing_to_the_planner(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    plans = ["supportive: joy\nconfusing: joy\ncountering: joy", "supportive: x\nconfusing: y\ncountering: z", "?"]
    seen = []
    for plan in plans:
        recorder = Recorder(Annotator(prompts, 1, 1.0, 1.0), {"planner": plan})
        _play(samples[0], recorder, retriever, prompts)
        seen.append([prompt.token_ids for prompt, request in recorder.calls if request.purpose == "label"])
    assert seen[0] == seen[1] == seen[2]


def test_the_published_label_counterfactual_searches_with_what_the_planner_names(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    def searched(label: str) -> list[tuple[int, ...]]:
        plan = f"supportive: a\nconfusing: b\ncountering: c\nlabel: {label}"
        recorder = Recorder(Annotator(prompts, 1, 1.0, 1.0, names_label=True), {"planner": plan})
        trajectory = _play(samples[0], recorder, retriever, prompts, planner_label=True)
        assert trajectory.turns[0].problem is None and trajectory.queries["supportive"] == "a"
        return [prompt.token_ids for prompt, request in recorder.calls if request.purpose == "label"]

    assert searched("joy, in earnest") != searched("grandmother cooked"), "its evidence follows the named label"


def test_a_planner_that_was_asked_for_a_label_must_name_it(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    recorder = Recorder(Annotator(prompts, 1, 1.0, 1.0), {"planner": "supportive: a\nconfusing: b\ncountering: c"})
    assert _play(samples[0], recorder, retriever, prompts, planner_label=True).turns[0].problem == "`label:` is missing"
    turns = asyncio.run(
        demonstrate(samples[0], retriever, Annotator(prompts, 1, 1.0, 1.0, names_label=True), EPISODE.model_copy(
            update={"planner_label": True}), 1)
    )  # fmt: skip
    assert turns[0].problem is None and turns[0].generation.text.endswith(f"label: {samples[0].labels[0]}")


def test_the_rank_counterfactual_keeps_retrieval_order(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    recorder = Recorder(
        Annotator(prompts, 1, 1.0, 1.0), {"filter": "supportive: none\nconfusing: none\ncountering: none"}
    )
    trajectory = _play(samples[0], recorder, retriever, prompts)
    (request,) = [request for _, request in recorder.calls if request.purpose == "rank"]
    assert request.candidates == {g: trajectory.candidates[g][:1] for g in GROUPS}
    assert all(not kept for kept in trajectory.kept.values())


def test_counterfactuals_draw_the_random_numbers_of_what_they_are_compared_with(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    recorder = Recorder(Annotator(prompts, 1, 1.0, 1.0))
    _play(samples[0], recorder, retriever, prompts)
    seeds = {role: {r.seed for _, r in recorder.calls if r.role == role} for role in ("planner", "filter", "generator")}
    assert all(len(found) == 1 for found in seeds.values())
    assert len(set.union(*seeds.values())) == 3


ROLES_AND_WORDS = st.dictionaries(st.sampled_from(["planner", "filter", "generator"]), st.text(max_size=60), min_size=1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spoken=ROLES_AND_WORDS)
def test_a_malformed_answer_never_ends_an_episode_and_pays(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts, spoken: dict[Role, str]
) -> None:
    trajectory = _play(samples[0], Recorder(Annotator(prompts, 1, 1.0, 1.0), spoken), retriever, prompts)
    full, label, rank = (trajectory.scores[name] for name in ("full", "label", "rank"))
    expected = {"planner": full + 0.5 * (full - label), "filter": full + 0.5 * (full - rank), "generator": full}
    for turn in trajectory.turns:
        penalty = REWARDS.format_penalty if turn.problem else 0
        assert turn.reward == pytest.approx(expected[turn.role] - penalty)
        assert (turn.problem is not None) == (turn.role in spoken)


def test_without_retrieval_the_generator_answers_alone(samples: list[AffectSample], prompts: Prompts) -> None:
    recorder = Recorder(Annotator(prompts, 1, 1.0, 1.0))
    trajectory = _play(samples[0], recorder, None, prompts, retrieval=False)
    assert [request.role for _, request in recorder.calls] == ["generator"]
    assert trajectory.scores == {"full": 1.0} and len(trajectory.turns) == 1


def test_agents_that_do_not_play_are_replaced_by_the_simple_way(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    recorder = Recorder(Annotator(prompts, 1, 1.0, 1.0))
    alone = _play(samples[0], recorder, retriever, prompts, agents=("generator",))
    assert [(r.role, r.purpose) for _, r in recorder.calls] == [("generator", "full")]
    assert set(alone.queries.values()) == {samples[0].text} and alone.counterfactuals == {}
    assert alone.kept == {g: alone.candidates[g][:1] for g in GROUPS}
    assert alone.turns[0].reward == alone.scores["full"]

    filtered = _play(samples[0], recorder, retriever, prompts, agents=("filter", "generator"))
    assert [t.role for t in filtered.turns] == ["filter", "generator"] and set(filtered.counterfactuals) == {"rank"}
    planned = _play(samples[0], recorder, retriever, prompts, agents=("planner", "generator"))
    assert [t.role for t in planned.turns] == ["planner", "generator"] and set(planned.counterfactuals) == {"label"}


def test_groups_out_of_play_are_neither_searched_nor_shown(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    trajectory = _play(samples[0], Annotator(prompts, 1, 1.0, 1.0), retriever, prompts, groups=("supportive",))
    assert set(trajectory.candidates) == {"supportive"}
    assert not trajectory.kept["confusing"] and not trajectory.kept["countering"]
    assert all(turn.problem is None for turn in trajectory.turns)


@pytest.mark.parametrize(
    ("changes", "learning"),
    [({}, ("planner", "filter", "generator")), ({"frozen": ("generator",)}, ("planner", "filter")),
     ({"sampled": ("filter",)}, ("filter",)), ({"agents": ("planner", "generator")}, ("planner", "generator"))],
)  # fmt: skip
def test_only_agents_that_explore_and_are_not_frozen_learn(
    samples: list[AffectSample],
    retriever: LocalRetriever,
    prompts: Prompts,
    changes: dict[str, object],
    learning: tuple[Role, ...],
) -> None:
    trajectory = _play(samples[0], Annotator(prompts, 1, 1.0, 1.0), retriever, prompts, **changes)
    assert tuple(turn.role for turn in trajectory.turns if turn.trained) == learning


def test_a_withheld_modality_reaches_nobody(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    annotator, whole = Annotator(prompts, 1, 1.0, 1.0), samples[0]
    assert whole.audio is not None and whole.video is not None
    fused = _play(whole, annotator, retriever, prompts, absent=("audio",)).turns[2].prompt.percepts[1]
    assert fused.audio is None and fused.audio_support is not None and fused.video is whole.video

    direct = _play(whole, annotator, retriever, prompts, absent=("audio",), support="direct").turns[2].prompt.percepts
    assert direct[0].audio is None and direct[1].audio_support is None
    np.testing.assert_array_equal(direct[1].audio, fused.audio_support)
    assert direct[1].video is not None and len(direct[1].video) > len(whole.video)

    for use, audio in (("direct", direct[1].audio), ("none", None)):
        stood_in = _play(whole, annotator, retriever, prompts, absent=("audio",), stand_in=use).turns[2].prompt.percepts
        np.testing.assert_array_equal(stood_in[1].audio, audio)
        assert stood_in[1].audio_support is None and stood_in[1].video_support is not None, "the face keeps its own"

    for turn in _play(whole, annotator, retriever, prompts, absent=("video",), zero_absent=True, stand_in="none").turns:
        for percept in turn.prompt.percepts:
            assert percept.video is not None and percept.video.shape == whole.video.shape and not percept.video.any()
            assert percept.video_support is None and percept.audio is whole.audio
        assert turn.role != "generator" or turn.prompt.percepts[1].audio_support is not None

    mute = _play(whole, annotator, retriever, prompts, absent=("text",)).turns[2]
    assert whole.text not in prompts.tokenizer.decode(mute.prompt.token_ids)


def test_silver_selections_are_what_helps_the_reader(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    """The reader here answers right once it has seen a supportive candidate that shares the truth."""
    annotator = Annotator(prompts, 1, 1.0, 1.0)

    async def reader(prompt: Prompt, request: Request) -> Generation:
        answer = await annotator(prompt, request)
        shown = request.candidates.get("supportive", ())
        if request.role == "generator" and not any(agrees(item, request.sample) for item in shown):
            return replace(answer, text="reason: voice and face\nlabel: nothing")
        return answer

    found = 0
    for sample in samples:
        config = EPISODE.model_copy(update={"counterfactuals": False})
        episode = asyncio.run(play_episode(sample, reader, retriever, prompts, config, REWARDS, 1, SilverEpisode))
        helpful = [item for item in episode.candidates["supportive"] if agrees(item, sample)]
        assert episode.scores["full"] == float(bool(helpful))
        assert episode.kept["supportive"] == tuple(helpful[:1]) and not episode.kept["countering"]
        assert parse_selection(episode.turns[1].generation.text, episode.candidates, 1).kept == episode.kept
        found += bool(helpful)
    assert found


def test_the_search_for_silver_sees_what_an_episode_sees(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    annotator = Annotator(prompts, 1, 1.0, 1.0)
    deaf = _play(samples[0], annotator, retriever, prompts, kind=SilverEpisode, absent=("audio",))
    assert all(turn.prompt.percepts[0].audio is None for turn in deaf.turns)
    alone = _play(samples[0], annotator, retriever, prompts, kind=SilverEpisode, retrieval=False)
    assert [turn.role for turn in alone.turns] == ["generator"]


def test_a_careful_annotator_finds_what_an_expression_means(
    samples: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    figurative = [s for s in samples if len(s.description.split()) == 2]
    for careful, share in ((1.0, 0.6), (0.0, 0.0)):
        annotator = Annotator(prompts, 1, careful, careful)
        found = 0
        for s in figurative:
            turns = asyncio.run(demonstrate(s, retriever, annotator, EPISODE, seed=0))
            found += "as in the supportive evidence" in turns[2].generation.text
        assert found / len(figurative) >= share


def test_evidence_is_dropped_before_the_sample_is_cut(samples: list[AffectSample], prompts: Prompts) -> None:
    room = len(prompts.planner(samples[0], 8).token_ids)
    tight = Prompts(prompts.tokenizer, soft_tokens=4, context=room + 8, evidence_tokens=32)
    assert tight.planner(samples[0], 8).token_ids == prompts.planner(samples[0], 8).token_ids
    with pytest.raises(AffectError, match=r"sample train-00000: its prompt takes .* raise model\.context"):
        tight.planner(samples[0], 9)


def test_the_simple_label_is_the_neighbours_plurality() -> None:
    sample = WORLD[0]
    assert simple_label(sample, Support(("a", "b", "c"), (("joy",), ("anger",), ("anger",)))) == "anger"
    assert simple_label(sample, Support(("a", "b"), (("joy",), ("anger",)))) == "joy"
    assert simple_label(sample, Support()) == sample.candidates[0]
