"""Dealing a step out: every episode to one rank, every token once, the same work whatever the number of ranks."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from affect_rl.algorithms.batching import Pass, TokenSequence, rows_of
from affect_rl.config.learning import LearnerConfig
from affect_rl.errors import AffectError
from affect_rl.trajectory import Percept, Trajectory
from benchmarks.workload import AGENTS, random_episodes, tiny_policy, with_common_prefix
from learners.shares import Reading, Share, deal


@pytest.fixture(scope="module")
def episodes() -> list[Trajectory]:
    return random_episodes(tiny_policy(), 12, copies=2, rounds=2)


def dealt(episodes: list[Trajectory], ranks: int, *, critic: bool = False, updates: int = 0) -> list[Share]:
    settings = LearnerConfig(workers=ranks, epochs=2, minibatches=3, tokens_per_microbatch=128)
    return deal(episodes, AGENTS, settings, (7, updates), separate_critic=critic)[1]


def read(reading: Reading, plan: list[Pass]) -> list[tuple[int, int]]:
    """Places on the flat axis of what a plan reads."""
    rows = [s for rows, _ in plan for row in rows for s in reading.rows[row].sequences]
    return sorted((s.start, s.start + s.answer_tokens) for s in rows)


def test_numbers_of_tokens_find_their_way_back_to_the_turns(episodes: list[Trajectory]) -> None:
    step, _ = deal(episodes, AGENTS, LearnerConfig(), (0,))
    found = step.by_turn(step.behaviour)
    assert len(found) == sum(len(episode.turns) for episode in episodes)
    for (place, agent, number), logprobs in found.items():
        (turn,) = [t for t in episodes[place].turns if (t.agent, t.number) == (agent, number)]
        assert logprobs == pytest.approx(turn.generation.logprobs)


def test_a_step_of_fewer_samples_than_minibatches_has_as_many_minibatches_as_samples(
    episodes: list[Trajectory],
) -> None:
    """A sample that comes twice, at an epoch's end, or is left out must not end a run."""
    twice = [replace(episode, sample_id="twice") for episode in episodes[:4]]
    _, (share,) = deal([*twice, *episodes[4:6]], AGENTS, LearnerConfig(epochs=1, minibatches=3), (0,))
    assert sorted(len(part.episodes) for part in share.minibatches) == [2, 4]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("critic", [False, True])
def test_a_rank_has_its_own_episodes_and_all_ranks_together_have_each_once(
    episodes: list[Trajectory], ranks: int, critic: bool
) -> None:
    step, _ = deal(episodes, AGENTS, LearnerConfig(epochs=1), (0,), separate_critic=False)
    shares, alone = dealt(episodes, ranks, critic=critic), dealt(episodes, 1, critic=critic)[0]
    owners = [{s.episode for row in share.actor.rows for s in row.sequences} for share in shares]
    assert sum(map(len, owners)) == len(set.union(*owners)) == len(episodes)
    for n, part in enumerate(alone.minibatches):
        assert {tuple(share.minibatches[n].episodes) for share in shares} == {tuple(part.episodes)}
        assert {share.minibatches[n].percepts for share in shares} == {part.percepts}
    for name in ("actor", "critic") if critic else ("actor",):
        readings, whole = [getattr(share, name) for share in shares], getattr(alone, name)
        spans = sorted(itertools.chain(*(read(r, r.whole) for r in readings)))
        assert spans == read(whole, whole.whole)
        assert [a for a, _ in spans[1:]] == [b for _, b in spans[:-1]] and spans[-1][1] == len(step.agent)
        assert len({len(r.whole) for r in readings}) == 1
        for n in range(6):
            parts = [r.minibatches[n] for r in readings]
            assert sorted(itertools.chain(*(read(r, p) for r, p in zip(readings, parts, strict=True)))) == read(
                whole, whole.minibatches[n]
            )
            assert len(set(map(len, parts))) == 1


@pytest.mark.parametrize("adapters", [None, {"planner": "one", "filter": "one", "generator": "two"}])
def test_rows_that_share_their_beginning_hold_every_sequence_once(adapters: dict[str, str] | None) -> None:
    policy = tiny_policy()
    episodes = with_common_prefix(policy, random_episodes(policy, 6))
    for ranks in (1, 2):
        settings = LearnerConfig(workers=ranks, epochs=1, tokens_per_microbatch=256, share_prefix=True)
        step, shares = deal(episodes, AGENTS, settings, (0,), adapters=adapters)
        spans = sorted(itertools.chain(*(read(share.actor, share.actor.whole) for share in shares)))
        assert [a for a, _ in spans[1:]] == [b for _, b in spans[:-1]] and spans[-1][1] == len(step.agent)
        rows = [row for share in shares for row in share.actor.rows]
        assert sorted(len(row.sequences) for row in rows) == sorted([1, 2] * 6 if adapters else [3] * 6)
        for row in rows:
            assert len({s.episode for s in row.sequences}) == 1
            if adapters:
                assert len({adapters[s.agent] for s in row.sequences}) == 1


def alike(**changes: object) -> list[TokenSequence]:
    """Two sequences that begin alike, but for what `changes` the second one."""
    percept = Percept(np.ones((2, 6), np.float32), None)
    mask = (False,) * 5 + (True,) * 2
    one = TokenSequence(0, "planner", (5, 6, 7, 8, 9, 10, 11), mask, (percept,), (2,), prefix=3)
    return [one, replace(one, agent="filter", start=2, **changes)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"episode": 1},
        {"token_ids": (5, 6, 99, 8, 9, 10, 11)},
        {"percepts": (Percept(np.zeros((2, 6), np.float32), None),)},
        {"prefix": 2},
        {"mask": (False,) * 3 + (True,) * 4, "lengths": (4,)},
    ],
    ids=["other episode", "other token", "other percept", "other prefix", "no token of its own before its answer"],
)
def test_sequences_that_begin_otherwise_have_rows_of_their_own(changes: dict[str, object]) -> None:
    assert [len(row.sequences) for row in rows_of(alike(), widest=99)] == [2]
    assert [len(row.sequences) for row in rows_of(alike(**changes), widest=99)] == [1, 1]


def test_a_row_is_no_wider_than_a_pass_may_be() -> None:
    assert [row.width for row in rows_of(alike(), widest=11)] == [11]
    assert [row.width for row in rows_of(alike(), widest=10)] == [7, 7]
    assert [row.width for row in rows_of(alike())] == [7, 7]


def test_prompts_without_percepts_do_not_share() -> None:
    assert len(rows_of([replace(s, prefix=0, percepts=()) for s in alike()], widest=99)) == 2


def test_minibatches_keep_copies_together_and_change_with_epoch_and_update(episodes: list[Trajectory]) -> None:
    (share,), (later,) = dealt(episodes, 1), dealt(episodes, 1, updates=1)
    for epoch in (share.minibatches[:3], share.minibatches[3:]):
        assert sorted(itertools.chain(*(part.episodes for part in epoch))) == list(range(12))
        assert all(e ^ 1 in part.episodes for part in epoch for e in part.episodes)
    assert share.minibatches[:3] != share.minibatches[3:]
    assert share.minibatches != later.minibatches
    assert share.minibatches == dealt(episodes, 1)[0].minibatches


def test_turns_that_are_not_trained_stay_behind(episodes: list[Trajectory]) -> None:
    quiet = [replace(e, turns=tuple(replace(t, trained=t.agent == "filter") for t in e.turns)) for e in episodes]
    (share,) = dealt(quiet, 1)
    assert {s.agent for row in share.actor.rows for s in row.sequences} == {"filter"}
    silent = [replace(e, turns=tuple(replace(t, trained=False) for t in e.turns)) for e in episodes]
    with pytest.raises(AffectError, match="no turn of these episodes is trained"):
        dealt(silent, 1)


def test_a_rank_without_episodes_has_something_to_run_over(episodes: list[Trajectory]) -> None:
    settings = LearnerConfig(workers=4, epochs=1, minibatches=1)
    _, shares = deal(episodes[:2], AGENTS, settings, (0,), separate_critic=False)
    assert all(share.actor.rows for share in shares)
    assert [sum(len(rows) for rows, _ in share.actor.whole) for share in shares].count(0) == 2


def test_passes_of_the_policy_are_of_one_adapter_each(episodes: list[Trajectory]) -> None:
    adapters = {"planner": "search", "filter": "search", "generator": "answer"}
    _, shares = deal(episodes, AGENTS, LearnerConfig(workers=2), (0,), separate_critic=True, adapters=adapters)
    for share in shares:
        for rows, adapter in itertools.chain(share.actor.whole, *share.actor.minibatches):
            assert {adapters[share.actor.rows[row].sequences[0].agent] for row in rows} <= {adapter}
        assert share.critic is not None and {kind for _, kind in share.critic.whole} == {""}
    assert [p.kind for p in shares[0].actor.whole] == [p.kind for p in shares[1].actor.whole]
