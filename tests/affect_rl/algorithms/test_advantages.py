"""Every estimator against loops in plain Python, and properties that its definition promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from step_cases import random_step

from affect_rl.algorithms import advantages as adv
from affect_rl.algorithms.step import Step

CHAINS = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=7)
SEED = st.integers(0, 99)
UNIT = st.floats(0, 1)


def by_chain(step: Step, x: torch.Tensor) -> list[list[float]]:
    return [part.tolist() for part in x.split(step.chain_lengths.tolist())]


@given(CHAINS, UNIT, UNIT, SEED)
def test_gae_against_its_sum(chains: list[list[int]], gamma: float, lam: float, seed: int) -> None:
    step = random_step(chains, seed=seed)
    assert step.values is not None
    rewards = adv.token_rewards(step, 0.1)
    expected: list[float] = []
    for r, v in zip(by_chain(step, rewards), by_chain(step, step.values), strict=True):
        delta = [r[t] + gamma * (v[t + 1] if t + 1 < len(v) else 0.0) - v[t] for t in range(len(r))]
        expected += [sum((gamma * lam) ** k * delta[t + k] for k in range(len(r) - t)) for t in range(len(r))]
    got = adv.gae(rewards, step.values, step.chain_lengths, gamma, lam)
    np.testing.assert_allclose(got, expected, atol=1e-12)


@given(CHAINS, UNIT, SEED)
def test_returns_against_their_sum(chains: list[list[int]], gamma: float, seed: int) -> None:
    step = random_step(chains, seed=seed)
    rewards = adv.token_rewards(step, 0.1)
    expected = [sum(gamma**k * x for k, x in enumerate(r[t:])) for r in by_chain(step, rewards) for t in range(len(r))]
    np.testing.assert_allclose(adv.returns_to_go(rewards, step.chain_lengths, gamma), expected, atol=1e-12)


@given(CHAINS, SEED)
def test_credit_runs_along_all_turns_of_an_agent_and_no_further(chains: list[list[int]], seed: int) -> None:
    step = random_step(chains, seed=seed)
    assert step.values is not None
    rewards = adv.token_rewards(step, 0.0)
    together = by_chain(step, adv.gae(rewards, step.values, step.chain_lengths, 0.9, 0.8))
    for r, v, expected in zip(by_chain(step, rewards), by_chain(step, step.values), together, strict=True):
        alone = adv.gae(torch.tensor(r), torch.tensor(v), torch.tensor([len(r)]), 0.9, 0.8)
        np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-6)


def test_a_turn_s_reward_reaches_the_turns_before_it() -> None:
    step = random_step([[2, 3]])
    rewards = torch.tensor([0.0, 0, 0, 0, 1])
    assert adv.gae(rewards, torch.zeros(5), step.chain_lengths, 1.0, 1.0).tolist() == [1] * 5
    assert adv.gae(rewards, torch.zeros(5), step.turn_lengths, 1.0, 1.0).tolist() == [0, 0, 1, 1, 1]


def test_a_reward_falls_on_its_turn_s_last_token_and_kl_on_every_token() -> None:
    step = random_step([[2, 1]])
    rewards = adv.token_rewards(step, 0.1)
    kl = 0.1 * (step.old - step.reference)
    torch.testing.assert_close(rewards, -kl + torch.stack([0 * kl[0], step.rewards[0], step.rewards[1]]))


GROUPS = st.lists(st.tuples(st.integers(0, 3), st.floats(-2, 2).map(lambda x: round(x, 2))), min_size=1, max_size=12)


@given(GROUPS)
def test_group_relative_against_numpy(pairs: list[tuple[int, float]]) -> None:
    groups, scores = np.array([g for g, _ in pairs]), np.array([s for _, s in pairs])
    given_ = torch.tensor(scores), torch.tensor(groups)
    plain, scaled = (adv.group_relative(*given_, scale=scale).numpy() for scale in (False, True))
    for g in set(groups.tolist()):
        mine = scores[groups == g]
        np.testing.assert_allclose(plain[groups == g], mine - mine.mean(), atol=1e-12)
        expected = (mine - mine.mean()) / mine.std() if mine.std() > 1e-6 else 0 * mine
        np.testing.assert_allclose(scaled[groups == g], expected, atol=1e-5)


@given(GROUPS)
def test_leave_one_out_against_a_loop(pairs: list[tuple[int, float]]) -> None:
    got = adv.leave_one_out(torch.tensor([s for _, s in pairs]), torch.tensor([g for g, _ in pairs]))
    for i, (group, score) in enumerate(pairs):
        others = [s for j, (g, s) in enumerate(pairs) if g == group and j != i]
        assert float(got[i]) == pytest.approx(score - np.mean(others) if others else 0, abs=1e-6)


def test_leave_one_out_is_unbiased() -> None:
    """The baseline of an answer does not contain it: changing its score moves its advantage by as much."""
    groups = torch.tensor([0, 0, 0])
    before = adv.leave_one_out(torch.tensor([1.0, 2.0, 4.0]), groups)
    after = adv.leave_one_out(torch.tensor([2.0, 2.0, 4.0]), groups)
    assert float(after[0] - before[0]) == pytest.approx(1)


def test_advantages_are_normalised_per_agent() -> None:
    normalised = adv.normalise(torch.tensor([1.0, 2.0, 3.0, 100.0, 300.0]), torch.tensor([0, 0, 0, 2, 2]))
    torch.testing.assert_close(normalised, torch.tensor([-1.2247449, 0, 1.2247449, -1, 1]))
    assert adv.normalise(torch.full((5,), 7.0), torch.zeros(5, dtype=torch.long)).abs().max() == 0


@given(st.floats(0, 1), st.floats(0, 1), SEED)
def test_mixed_advantages_against_loops(gamma: float, mix: float, seed: int) -> None:
    chains = [[2, 1], [1, 3], [2], [1, 1, 1]]
    step = random_step(chains, agent=[0, 0, 0, 0], sample=[0, 0, 1, 1], seed=seed)
    rewards = [part.tolist() for part in step.rewards.split([len(c) for c in chains])]
    returns = [[sum(gamma**k * x for k, x in enumerate(r[n:])) for n in range(len(r))] for r in rewards]
    expected: list[float] = []
    for c, turns in enumerate(chains):
        for n, length in enumerate(turns):
            peers = np.array([returns[d][n] for d in (0, 1, 2, 3) if d // 2 == c // 2 and n < len(chains[d])])
            by_turn = (returns[c][n] - peers.mean()) / peers.std() if peers.std() > 1e-6 else 0.0
            same = np.array([r[n] for r in rewards if n < len(r)])
            by_batch = (rewards[c][n] - same.mean()) / same.std() if same.std() > 1e-6 else 0.0
            expected += [mix * by_turn + (1 - mix) * by_batch] * length
    np.testing.assert_allclose(adv.mixed(step, gamma, mix), expected, atol=1e-3)


def test_mixed_advantages_do_not_blame_a_turn_for_being_early() -> None:
    """What an agent earns comes with its last turn: first turns, which all earn nothing, are neither good nor bad."""
    step = random_step([[1, 1], [1, 1], [1], [1]], agent=[0, 0, 1, 1], sample=[0, 1, 0, 1])
    step = replace(step, rewards=torch.tensor([0.0, 1.0, 0.0, 3.0, 7.0, 7.0]))
    assert adv.mixed(step, gamma=1.0, mix=0.0).tolist() == pytest.approx([0, -1, 0, 1, 0, 0])


def test_explained_variance() -> None:
    agent = torch.tensor([0, 0, 1, 1, 2, 2])
    returns = torch.tensor([1.0, 3.0, 1.0, 3.0, 5.0, 5.0])
    values = torch.tensor([1.0, 3.0, 0.0, 0.0, 1.0, 2.0])
    torch.testing.assert_close(adv.explained_variance(values, returns, agent, 3), torch.tensor([1.0, 0.0, 0.0]))
