"""Batching: nothing lost, nothing doubled, the same for the same seed, and within the token budget."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affect_rl.algorithms.batching import (
    TokenSequence,
    collate,
    group_batches,
    micro_batches,
    minibatches,
    rows_of,
    schedule,
    share_episodes,
    split_ranks,
    turns_to_sequences,
)
from affect_rl.algorithms.step import flatten
from affect_rl.errors import AffectError
from affect_rl.policy.fusion import FusionShape
from affect_rl.trajectory import Generation, Percept, Prompt, Turn

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=40)
SHAPE = FusionShape(audio_dim=2, video_dim=3, lm_dim=8)
FRAMES = Percept(np.ones((2, 2), np.float32), None)


def turn(
    agent: str,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    number: int = 0,
    percepts: Sequence[Percept] = (),
    logprobs: bool = True,
    critic_prompt: Prompt | None = None,
) -> Turn:
    generation = Generation(tuple(answer), tuple(-float(t) for t in answer) if logprobs else (), (), "", True)
    return Turn(
        agent, Prompt(tuple(prompt), tuple(percepts)), generation, None, number, reward=sum(answer) / 10,
        temperature=0.5, knowledge=(float(number),), critic_prompt=critic_prompt,
    )  # fmt: skip


@given(LENGTHS, st.integers(60, 400))
def test_micro_batches_cover_all_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = micro_batches(lengths, range(len(lengths)), budget)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert all(max(lengths[i] for i in batch) * len(batch) <= budget for batch in batches)
    assert batches == micro_batches(lengths, list(reversed(range(len(lengths)))), budget)


def test_a_sequence_beyond_the_budget_names_the_setting() -> None:
    with pytest.raises(AffectError, match="61 tokens exceeds tokens_per_microbatch=60; raise it"):
        micro_batches([61, 3], [0, 1], 60)


@given(LENGTHS, st.integers(1, 4))
def test_ranks_share_all_sequences_about_evenly(lengths: list[int], ranks: int) -> None:
    shares = split_ranks(lengths, range(len(lengths)), ranks)
    assert sorted(itertools.chain(*shares)) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths)


@given(LENGTHS, st.integers(1, 4), st.integers(60, 200))
def test_all_ranks_run_equally_many_passes(lengths: list[int], ranks: int, budget: int) -> None:
    plans = schedule(lengths, split_ranks(lengths, range(len(lengths)), ranks), budget)
    assert len({len(plan) for plan in plans}) == 1
    assert sorted(i for plan in plans for rows, _ in plan for i in rows) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 3), st.integers(0, 9))
def test_passes_are_of_one_kind_and_the_n_th_of_the_same_on_all_ranks(
    lengths: list[int], ranks: int, seed: int
) -> None:
    kinds = ["ab"[k] for k in np.random.default_rng(seed).integers(2, size=len(lengths))]
    plans = schedule(lengths, split_ranks(lengths, range(len(lengths)), ranks), 100, kinds)
    assert len({tuple(kind for _, kind in plan) for plan in plans}) == 1
    assert all(kinds[i] == kind for plan in plans for rows, kind in plan for i in rows)
    assert sorted(i for plan in plans for rows, _ in plan for i in rows) == list(range(len(lengths)))


@given(st.lists(st.integers(50, 100), min_size=8, max_size=40), st.integers(1, 4), st.integers(1, 2), st.integers(0, 9))
def test_episodes_stay_on_one_rank_with_about_equal_work_in_all_minibatches(
    tokens: list[int], ranks: int, count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    parts = [(int(a), count + int(b)) for a, b in rng.integers(count, size=(len(tokens), 2))]  # two epochs
    rank_of = share_episodes(tokens, parts, ranks)
    assert rank_of == share_episodes(tokens, parts, ranks)
    assert set(rank_of) == set(range(ranks))
    for part in range(2 * count):
        work = [sum(t for t, p, r in zip(tokens, parts, rank_of, strict=True) if part in p and r == rank)
                for rank in range(ranks)]  # fmt: skip
        assert max(work) - min(work) <= 4 * max(tokens)


def test_more_ranks_than_episodes_leaves_ranks_idle() -> None:
    assert share_episodes([3, 5], [(0,), (1,)], 4) == [1, 0]


@given(st.integers(1, 5), st.integers(5, 20), st.integers(0, 9))
def test_minibatches_keep_episodes_whole(count: int, episodes: int, seed: int) -> None:
    groups = [episode for episode in range(episodes) for _ in range(3)]
    parts = minibatches(groups, count, (seed, 1))
    assert sorted(itertools.chain(*parts)) == list(range(len(groups)))
    seen = [{groups[i] for i in part} for part in parts]
    assert sum(map(len, seen)) == episodes
    assert max(map(len, seen)) - min(map(len, seen)) <= 1
    assert parts == minibatches(groups, count, (seed, 1))


def test_minibatches_differ_between_epochs() -> None:
    assert minibatches(range(30), 3, (0, 0, 0)) != minibatches(range(30), 3, (0, 0, 1))


def test_more_minibatches_than_episodes_is_an_error() -> None:
    with pytest.raises(AffectError, match=r"2 samples cannot fill learner\.minibatches=3"):
        minibatches([0, 0, 1], 3, (0,))


def test_group_batches_pass_through_all_groups_each_epoch() -> None:
    groups = [0, 0, 1, 2, 3, 4, 5, 5]
    batches = list(itertools.islice(group_batches(groups, 2, seed=1), 6))
    for epoch in (batches[:3], batches[3:]):
        assert sorted(itertools.chain(*epoch)) == list(range(8))
    assert batches == list(itertools.islice(group_batches(groups, 2, seed=1), 6))
    assert next(group_batches(groups, 99, seed=1)) == list(range(8))


def test_turns_lie_agent_after_agent_in_the_order_of_play() -> None:
    played = [turn("planner", [1], [5]), turn("filter", [2], [6, 7]), turn("planner", [3], [8], number=1)]
    sequences = turns_to_sequences([played, [turn("filter", [4], [9])]])
    assert [(s.episode, s.agent, s.token_ids, s.start) for s in sequences] == [
        (0, "planner", (1, 5), 0), (0, "planner", (3, 8), 1), (0, "filter", (2, 6, 7), 2), (1, "filter", (4, 9), 4),
    ]  # fmt: skip
    step = flatten(sequences, ["planner", "filter"])
    assert step.chain.tolist() == [0, 0, 1, 2] and step.turn_number.tolist() == [0, 1, 0, 0]
    assert step.behaviour.tolist() == [-5, -8, -6, -7, -9]


def test_a_turn_that_goes_on_from_the_last_one_shares_its_sequence() -> None:
    frames = [FRAMES]
    turns = [
        turn("planner", [1, 2], [5, 6], percepts=frames),
        turn("planner", [1, 2, 5, 6, 3], [7], number=1, percepts=[Percept(np.ones((2, 2), np.float32), None), FRAMES]),
        turn("planner", [1, 2, 5, 6, 3, 7], [8], number=2, percepts=[FRAMES, FRAMES]),
        turn("planner", [1, 2, 5, 6, 3, 9], [4], number=3, percepts=[FRAMES, FRAMES]),
    ]
    joined, alone = turns_to_sequences([turns])
    assert joined.token_ids == (1, 2, 5, 6, 3, 7, 8) and joined.lengths == (2, 1, 1)
    assert joined.mask == (False, False, True, True, False, True, True)
    assert joined.logprobs == (-5, -6, -7, -8) and joined.rewards == (1.1, 0.7, 0.8)
    assert len(joined.percepts) == 2 and joined.knowledge == ((0,), (1,), (2,))
    assert alone.token_ids == (1, 2, 5, 6, 3, 9, 4) and alone.start == 4
    step = flatten([joined, alone], ["planner"])
    assert step.turn_lengths.tolist() == [2, 1, 1, 1] and step.chain_lengths.tolist() == [5]
    assert step.temperature.tolist() == [0.5] * 5


def test_other_features_behind_the_same_tokens_do_not_join() -> None:
    other = Percept(np.zeros((2, 2), np.float32), None)
    turns = [
        turn("planner", [1], [5], percepts=[FRAMES]), turn("planner", [1, 5, 2], [6], number=1, percepts=[other]),
    ]  # fmt: skip
    assert len(turns_to_sequences([turns])) == 2


def test_a_separate_critic_reads_prompts_of_its_own_on_the_same_axis() -> None:
    told = Prompt((1, 9, 9), ())
    turns = [turn("planner", [1], [5, 6], critic_prompt=told), turn("planner", [1, 5, 6, 2], [7], number=1)]
    (actor,), critic = turns_to_sequences([turns]), turns_to_sequences([turns], critic=True)
    assert actor.token_ids == (1, 5, 6, 2, 7)
    assert [s.token_ids for s in critic] == [(1, 9, 9, 5, 6), (1, 5, 6, 2, 7)]
    batches = [collate(rows_of(part), range(len(part)), SHAPE, pad_id=0) for part in ([actor], critic)]
    for batch in batches:
        assert batch.tokens.input_ids[batch.tokens.response_mask].tolist() == [5, 6, 7]
        assert batch.places.tolist() == [0, 1, 2]


def test_collate_places_every_answer_token() -> None:
    turns = [turn("a", [1, 2, 3], [100, 101]), turn("b", [1, 2], [102], percepts=[FRAMES, FRAMES, FRAMES])]
    sequences = turns_to_sequences([turns, [turn("a", [1, 2, 3, 4, 5], [100, 101, 102, 103])]])
    step = flatten(sequences, ["a", "b"])
    batch = collate(rows_of(sequences), [1, 2], SHAPE, pad_id=0)
    assert batch.weight == 1
    assert batch.tokens.input_ids.tolist()[0] == [1, 2, 102, 0, 0, 0, 0, 0, 0]
    assert batch.tokens.input_ids[batch.tokens.response_mask].tolist() == [102, 100, 101, 102, 103]
    assert batch.places.tolist() == [2, 3, 4, 5, 6]
    assert step.behaviour[batch.places].tolist() == [-102, -100, -101, -102, -103]
    assert step.agent.tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert batch.tokens.percepts.fused.shape == (3,)


def test_an_empty_pass_has_weight_zero() -> None:
    sequences = turns_to_sequences([[turn("a", range(1, 9), [5]), turn("b", [1, 2], [3])]])
    batch = collate(rows_of(sequences), [], SHAPE, pad_id=0)
    assert batch.weight == 0
    assert batch.tokens.input_ids.shape == (1, 3)


def test_demonstrations_need_no_logprobs() -> None:
    step = flatten(turns_to_sequences([[turn("planner", [1], [2, 3], logprobs=False)]]), ["planner"])
    assert step.behaviour.tolist() == [0, 0]


def test_an_agent_that_is_not_trained_has_no_turns_to_learn_from() -> None:
    sequences = [TokenSequence(0, "critic", (1, 2), (False, True), (), (1,))]
    with pytest.raises(AffectError, match="turns of critic to learn from, but planner, filter are trained"):
        flatten(sequences, ["planner", "filter"])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (turn("planner", [], [1]), "turn 0 of planner in episode 1 has an empty prompt or answer"),
        (turn("planner", [1], []), "turn 0 of planner in episode 1 has an empty prompt or answer"),
        (
            Turn("planner", Prompt((1,), ()), Generation((1, 2), (0.0,), (), "", True), None, number=3),
            "turn 3 of planner in episode 1 has 2 tokens but 1 log-probs",
        ),
    ],
)
def test_broken_turns_are_named(broken: Turn, message: str) -> None:
    with pytest.raises(AffectError, match=message):
        turns_to_sequences([[], [broken]])


def test_prompts_are_the_same_for_one_sample_agent_and_percepts_only() -> None:
    muted = Percept(None, None)
    episodes = [
        [turn("planner", [1], [5], percepts=[FRAMES]), turn("filter", [1], [6], percepts=[FRAMES])],
        [turn("planner", [1], [7], percepts=[FRAMES])],
        [turn("planner", [1], [8], percepts=[muted])],
        [turn("planner", [1], [9], percepts=[FRAMES])],
    ]
    step = flatten(turns_to_sequences(episodes), ["planner", "filter"], ["clip a", "clip a", "clip a", "clip b"])
    assert step.prompt.tolist() == [0, 1, 0, 2, 3]
    assert step.sample.tolist() == [0, 0, 0, 0, 1]
