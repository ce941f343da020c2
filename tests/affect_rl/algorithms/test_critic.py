"""The critic: its regression against scikit-learn, what it may use, and what it makes of knowledge and of noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from step_cases import random_step
from torch import Tensor

from affect_rl.algorithms.advantages import explained_variance
from affect_rl.algorithms.critic import Critic, CriticSettings
from affect_rl.algorithms.knowledge_critic import RecursiveRidge
from affect_rl.algorithms.step import Step
from affect_rl.algorithms.value_norm import ValueNorm


def rows(count: int, features: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of different scale, targets, agents and weights."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=rng, dtype=torch.float64) * torch.logspace(-2, 2, features) + 3
    y = torch.randn(count, generator=rng, dtype=torch.float64) + x[:, 0]
    return x, y, torch.arange(count) % 2, torch.rand(count, generator=rng, dtype=torch.float64) + 0.1


@given(st.sampled_from([0.01, 1.0, 50.0]), st.sampled_from([1.0, 0.7]), st.integers(0, 99))
def test_the_regression_is_scikit_learn_s_on_standardised_features(
    penalty: float, forgetting: float, seed: int
) -> None:
    ours = RecursiveRidge(2, 4, forgetting=forgetting, penalties=[penalty])
    batches = [rows(count, 4, seed + i) for i, count in enumerate((30, 41, 24))]
    for batch in batches:
        ours.update(*batch)
    x, y, agent, c = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
    age = np.repeat([2, 1, 0], [30, 41, 24])
    weights = c * forgetting**age
    for one in (0, 1):
        mine = agent == one
        mean = np.average(x[mine], axis=0, weights=weights[mine])
        scale = np.sqrt(np.average((x[mine] - mean) ** 2, axis=0, weights=weights[mine]))
        theirs = Ridge(alpha=penalty).fit((x[mine] - mean) / scale, y[mine], sample_weight=weights[mine])
        new = rows(6, 4, seed + 50)[0]
        expected = theirs.predict((new.numpy() - mean) / scale)
        np.testing.assert_allclose(ours.predict(new, torch.full((6,), one)), expected, rtol=1e-6, atol=1e-8)


def test_what_never_varies_explains_nothing() -> None:
    ridge = RecursiveRidge(1, 2, forgetting=1.0, penalties=[1.0])
    x = torch.stack([torch.full((20,), 5.0), torch.linspace(0, 1, 20)], dim=1)
    ridge.update(x, 3 * x[:, 1], torch.zeros(20, dtype=torch.long), torch.ones(20))
    assert ridge.weights[0, 1] == 0 and ridge.weights[0, 2] > 2


def test_an_agent_that_does_not_play_keeps_what_it_knows() -> None:
    ridge = RecursiveRidge(2, 1, forgetting=0.5)
    x, agent = torch.linspace(0, 1, 10)[:, None], torch.tensor([0, 1] * 5)
    ridge.update(x, x[:, 0], agent, torch.ones(10))
    before = {name: tensor.clone() for name, tensor in ridge.state_dict().items()}
    ridge.update(x, -x[:, 0], torch.zeros(10, dtype=torch.long), torch.ones(10))
    assert all(torch.equal(before[name][1], tensor[1]) for name, tensor in ridge.state_dict().items())
    assert not torch.equal(before["sums"][0], ridge.state_dict()["sums"][0])


def test_shrinkage_follows_what_there_is_to_know() -> None:
    """Forty features and 64 rows a step: one agent's returns hang on a feature, another's on nothing."""
    rng = torch.Generator().manual_seed(0)
    ridge = RecursiveRidge(2, 40, forgetting=0.9)
    agent = torch.arange(128) % 2
    explained = []
    for _ in range(20):
        x = torch.rand(128, 40, generator=rng)
        noise = torch.randn(128, generator=rng)
        y = torch.where(agent == 0, 6 * x[:, 3] + noise, noise)
        explained.append(explained_variance(ridge.predict(x, agent), y, agent, 2))
        ridge.update(x, y, agent, torch.ones(128))
    late = torch.stack(explained[5:]).mean(0)
    assert late[0] > 0.6 and late[1] > -0.03  # of 0.75 and 0


@given(st.integers(1, 6), st.integers(0, 99))
def test_value_norm_is_a_debiased_average(steps: int, seed: int) -> None:
    norm, rng = ValueNorm(2, decay=0.8), torch.Generator().manual_seed(seed)
    batches = [torch.randn(12, generator=rng, dtype=torch.float64) * 3 + 5 for _ in range(steps)]
    agent = torch.tensor([0] * 12)
    for batch in batches:
        norm.update(batch, agent)
    age = 0.8 ** np.arange(steps)[::-1]
    mean = np.average([b.mean() for b in batches], weights=age)
    square = np.average([(b**2).mean() for b in batches], weights=age)
    means, deviations = norm.statistics()
    assert float(means[0]) == pytest.approx(mean) and float(deviations[0]) == pytest.approx(np.sqrt(square - mean**2))
    assert (float(means[1]), float(deviations[1])) == (0, 1)


def knowing_step(seed: int) -> tuple[Step, Tensor, Tensor]:
    """A step whose returns are a known feature plus a fact that stands in the hidden state alone; returns, and it."""
    step = random_step([[3], [5], [4]] * 60, knowledge=5, seed=seed)
    rng = torch.Generator().manual_seed(seed + 1)
    hidden = torch.randn(len(step.turn_lengths), generator=rng, dtype=torch.float64)[step.turn]
    returns = 2 * step.knowledge[step.turn, 0] + hidden
    return step, returns, hidden


def test_the_critic_uses_knowledge_from_the_second_step_on_and_never_the_step_s_own_returns() -> None:
    critic = Critic(CriticSettings(), 3)
    first, returns, hidden = knowing_step(0)
    assert not critic.values(first, 0 * hidden).any()
    critic.learn(first, 0 * hidden, returns)
    again = Critic(CriticSettings(), 3)
    again.learn(first, 0 * hidden, returns)
    for seed in range(1, 8):
        step, returns, hidden = knowing_step(seed)
        values = critic.values(step, 0 * hidden)
        torch.testing.assert_close(values, again.values(step, 0 * hidden))  # before either has seen these returns
        for one in (critic, again):
            one.learn(step, 0 * hidden, returns)
    assert explained_variance(values, returns, step.agent, 3).min() > 0.7  # of 0.8


@pytest.mark.parametrize("normalise", [True, False])
def test_the_head_learns_what_knowledge_leaves_and_counts_for_what_it_is_worth(normalise: bool) -> None:
    good, bad = (Critic(CriticSettings(normalise=normalise), 3) for _ in range(2))
    rng = torch.Generator().manual_seed(9)
    for seed in range(8):
        step, returns, hidden = knowing_step(seed)
        noise = torch.randn(hidden.shape, generator=rng, dtype=torch.float64)
        knows = explained_variance(good.values(step, hidden), returns, step.agent, 3)
        guesses = explained_variance(bad.values(step, noise), returns, step.agent, 3)
        targets = good.learn(step, hidden, returns)
        bad.learn(step, noise, returns)
    assert knows.min() > 0.95 and guesses.min() > 0.7  # of 1 and of 0.8
    assert float(torch.corrcoef(torch.stack([targets, hidden]))[0, 1]) > 0.95
    if normalise:
        assert float(targets.std()) == pytest.approx(1, abs=0.15)


def test_values_do_not_depend_on_the_length_of_answers() -> None:
    """A turn counts once: its tokens share its knowledge."""
    step, returns, hidden = knowing_step(0)
    one, other = Critic(CriticSettings(), 3), Critic(CriticSettings(), 3)
    one.learn(step, 0 * hidden, returns)
    firsts = step.turn_lengths.cumsum(0) - 1
    short = replace(
        step, agent=step.turn_agent, turn=torch.arange(len(firsts)), turn_lengths=torch.ones_like(firsts),
        behaviour=step.behaviour[firsts], old=step.old[firsts], reference=step.reference[firsts], values=None,
    )  # fmt: skip
    other.learn(short, 0 * hidden[firsts], returns[firsts])
    zeros = torch.zeros(len(firsts), dtype=torch.float64)
    torch.testing.assert_close(one.values(short, zeros), other.values(short, zeros))


def test_a_critic_goes_on_from_its_state() -> None:
    critic = Critic(CriticSettings(), 3)
    for seed in range(3):
        step, returns, hidden = knowing_step(seed)
        critic.learn(step, hidden, returns)
    again = Critic(CriticSettings(), 3)
    again.load_state_dict(critic.state_dict())
    step, returns, hidden = knowing_step(7)
    assert torch.equal(critic.values(step, hidden), again.values(step, hidden))
    assert torch.equal(critic.learn(step, hidden, returns), again.learn(step, hidden, returns))
    fresh = Critic(CriticSettings(), 3)
    fresh.load_state_dict(Critic(CriticSettings(), 3).state_dict())
    assert not fresh.values(step, hidden).any()
