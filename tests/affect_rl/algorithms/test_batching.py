"""Batching: nothing lost, nothing doubled, the same for the same seed, and within the token budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from affect_rl.algorithms.batching import (
    TokenSequence,
    collate,
    flatten,
    group_batches,
    micro_batches,
    minibatches,
    schedule,
    split_ranks,
)
from affect_rl.errors import AffectError
from affect_rl.policy.fusion import FusionShape
from affect_rl.trajectory import Percept, Prompt

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=40)
SHAPE = FusionShape(audio_dim=2, video_dim=3, lm_dim=8)


def sequence(prompt: int, answer: int, *, group: int = 0, percepts: int = 1) -> TokenSequence:
    frames = np.ones((2, 2), np.float32)
    return TokenSequence(
        group, "filter", Prompt(tuple(range(1, prompt + 1)), (Percept(frames, None),) * percepts),
        tuple(range(100, 100 + answer)), tuple(-float(i) for i in range(answer)), reward=float(group),
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
    plans = schedule(lengths, range(len(lengths)), ranks, budget)
    assert len({len(plan) for plan in plans}) == 1
    assert sorted(i for plan in plans for rows in plan for i in rows) == list(range(len(lengths)))


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


def test_collate_places_every_answer_token() -> None:
    sequences = [sequence(3, 2, group=0), sequence(5, 4, group=1, percepts=2), sequence(2, 1, group=2)]
    flat = flatten(sequences)
    batch = collate(sequences, flat, [2, 1], SHAPE, pad_id=0)
    assert batch.weight == 1
    assert batch.tokens.input_ids.tolist()[0] == [1, 2, 100, 0, 0, 0, 0, 0, 0]
    assert batch.tokens.input_ids[batch.tokens.response_mask].tolist() == [100, 100, 101, 102, 103]
    assert batch.places.tolist() == [6, 2, 3, 4, 5]
    assert flat.logprobs[batch.places].tolist() == [0, 0, -1, -2, -3]
    assert flat.roles.tolist() == [1] * 7
    assert batch.tokens.percepts.fused.shape == (3,)


def test_an_empty_pass_has_weight_zero() -> None:
    sequences = [sequence(9, 9), sequence(2, 1)]
    batch = collate(sequences, flatten(sequences), [], SHAPE, pad_id=0)
    assert batch.weight == 0
    assert batch.tokens.input_ids.shape == (1, 3)


def test_demonstrations_need_no_logprobs() -> None:
    flat = flatten([TokenSequence(0, "planner", Prompt((1,), ()), (2, 3))])
    assert flat.logprobs.tolist() == [0, 0]
    assert torch.equal(flat.rewards, torch.zeros(1))


@pytest.mark.parametrize(
    ("prompt", "response", "logprobs", "message"),
    [
        ((), (1,), (), "a planner turn of group 7 has an empty prompt or answer"),
        ((1,), (), (), "a planner turn of group 7 has an empty prompt or answer"),
        ((1,), (1, 2), (0.0,), "a planner turn of group 7 has 2 tokens but 1 log-probs"),
    ],
)
def test_broken_turns_are_named(
    prompt: tuple[int, ...], response: tuple[int, ...], logprobs: tuple[float, ...], message: str
) -> None:
    with pytest.raises(AffectError, match=message):
        TokenSequence(7, "planner", Prompt(prompt, ()), response, logprobs)
