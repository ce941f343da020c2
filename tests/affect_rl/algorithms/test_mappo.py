"""The mathematics of MAPPO against independent computations: plain loops, and finite differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from affect_rl.algorithms import mappo

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)
UNIT = st.floats(0, 1)


def random_tokens(lengths: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values (float64) and lengths of random sequences."""
    rng = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, sum(lengths), generator=rng, dtype=torch.float64)
    return rewards, values, torch.tensor(lengths)


def sequences_of(x: Tensor, lengths: Tensor) -> list[np.ndarray]:
    return [part.numpy() for part in x.split(lengths.tolist())]


@given(LENGTHS, UNIT, UNIT, st.integers(0, 99))
def test_gae_is_the_sum_over_later_differences(lengths: list[int], gamma: float, lam: float, seed: int) -> None:
    rewards, values, lens = random_tokens(lengths, seed)
    expected = []
    for r, v in zip(sequences_of(rewards, lens), sequences_of(values, lens), strict=True):
        following = np.append(v[1:], 0.0)
        delta = r + gamma * following - v
        expected += [sum((gamma * lam) ** k * delta[t + k] for k in range(len(r) - t)) for t in range(len(r))]
    result = mappo.gae(rewards, values, lens, gamma, lam)
    np.testing.assert_allclose(result.advantages, expected, atol=1e-12)
    np.testing.assert_allclose(result.returns, np.array(expected) + values.numpy(), atol=1e-12)


@given(LENGTHS, UNIT, st.integers(0, 99))
def test_gae_with_lambda_one_is_the_monte_carlo_return(lengths: list[int], gamma: float, seed: int) -> None:
    rewards, values, lens = random_tokens(lengths, seed)
    returns = mappo.gae(rewards, values, lens, gamma, 1.0).returns
    for r, got in zip(sequences_of(rewards, lens), sequences_of(returns, lens), strict=True):
        expected = [sum(gamma**k * x for k, x in enumerate(r[t:])) for t in range(len(r))]
        np.testing.assert_allclose(got, expected, atol=1e-12)


@given(LENGTHS, st.integers(0, 99))
def test_gae_of_a_sequence_ignores_the_others(lengths: list[int], seed: int) -> None:
    rewards, values, lens = random_tokens(lengths, seed)
    together = mappo.gae(rewards, values, lens, 0.9, 0.8).advantages.split(lengths)
    for r, v, expected in zip(rewards.split(lengths), values.split(lengths), together, strict=True):
        alone = mappo.gae(r, v, torch.tensor([len(r)]), 0.9, 0.8).advantages
        torch.testing.assert_close(alone, expected)


def test_terminal_reward_falls_on_the_last_token_and_kl_on_every_token() -> None:
    logprobs, reference = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -2.0, -1.0])
    rewards = mappo.token_rewards(torch.tensor([10.0, 20.0]), logprobs, reference, torch.tensor([2, 1]), 0.1)
    torch.testing.assert_close(rewards, torch.tensor([-0.05, 10.0, 20.2]))


@pytest.fixture
def tokens() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(12, generator=rng, dtype=torch.float64)

    logprobs = draw() - 3
    return {
        "logprobs": logprobs,
        "entropies": draw().abs(),
        "behaviour": logprobs + 0.3 * draw(),
        "advantages": draw(),
        "roles": torch.tensor([0] * 5 + [1] * 3 + [2] * 4),
        "tokens": torch.tensor([5, 3, 4]),
    }


def test_clipped_surrogate_against_a_loop(tokens: dict[str, Tensor]) -> None:
    terms = mappo.policy_terms(**tokens, clip=0.2)
    loss = entropy = 0.0
    sums = np.zeros((3, 5))
    largest = np.zeros(3)
    for t in range(12):
        agent, advantage = int(tokens["roles"][t]), float(tokens["advantages"][t])
        ratio = math.exp(float(tokens["logprobs"][t]) - float(tokens["behaviour"][t]))
        share = 1 / int(tokens["tokens"][agent])
        loss -= share * min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        entropy += share * float(tokens["entropies"][t])
        sums[agent] += [1, ratio, abs(ratio - 1) > 0.2, ratio - 1 - math.log(ratio), float(tokens["entropies"][t])]
        largest[agent] = max(largest[agent], ratio)
    assert float(terms.loss) == pytest.approx(loss)
    assert float(terms.entropy) == pytest.approx(entropy)
    np.testing.assert_allclose(terms.sums, sums)
    np.testing.assert_allclose(terms.ratio_max, largest)


def test_gradients_against_finite_differences(tokens: dict[str, Tensor]) -> None:
    old, returns, router = torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rest = {name: value for name, value in tokens.items() if name != "logprobs"}

    def policy(logprobs: Tensor) -> Tensor:
        return mappo.policy_terms(logprobs, **rest, clip=0.2).loss

    def value(values: Tensor) -> Tensor:
        return mappo.value_loss(values, old, returns, tokens["tokens"], 0.2)

    def balance(logits: Tensor) -> Tensor:
        load = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
        return mappo.balance_loss(logits.view(4, 3).softmax(-1), load, torch.tensor(4))

    for function, point in ((policy, tokens["logprobs"]), (value, old + 0.5 * returns), (balance, router)):
        assert torch.autograd.gradcheck(function, point.clone().requires_grad_())


def test_first_ratio_of_one_gives_the_plain_policy_gradient(tokens: dict[str, Tensor]) -> None:
    logprobs = tokens["behaviour"].clone().requires_grad_()
    terms = mappo.policy_terms(**(tokens | {"logprobs": logprobs}), clip=0.2)
    terms.loss.backward()
    torch.testing.assert_close(logprobs.grad, -tokens["advantages"] / tokens["tokens"][tokens["roles"]])
    assert terms.sums[:, mappo.POLICY_SUMS.index("kl")].abs().max() == 0


def test_value_loss_takes_the_worse_of_clipped_and_unclipped() -> None:
    # Unclipped 1.0 from old 0 towards return 1 would be perfect; clipped at 0.2 it still errs by 0.8.
    loss = mappo.value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([1, 0, 0]), 0.2)
    assert float(loss) == pytest.approx(0.64)


@given(st.permutations(range(12)), st.lists(st.integers(0, 12), max_size=4))
def test_losses_do_not_depend_on_the_split(order: list[int], cuts: list[int]) -> None:
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(6, 12, generator=rng, dtype=torch.float64)
    router = torch.randn(12, 4, generator=rng, dtype=torch.float64).softmax(-1)
    roles, count = torch.tensor([0] * 5 + [1] * 3 + [2] * 4), torch.tensor([5, 3, 4])
    load = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)

    def losses(part: list[int]) -> Tensor:
        terms = mappo.policy_terms(x[0, part], x[1, part], x[2, part], x[3, part], roles[part], count, 0.2)
        value = mappo.value_loss(x[4, part], x[5, part], x[3, part], count, 0.2)
        return torch.stack([terms.loss, terms.entropy, value, mappo.balance_loss(router[part], load, torch.tensor(12))])

    ends = [0, *sorted(cuts), 12]
    parts = [order[a:b] for a, b in itertools.pairwise(ends)]
    torch.testing.assert_close(sum(losses(part) for part in parts), losses(list(range(12))))


def test_advantages_are_normalised_per_agent() -> None:
    roles = torch.tensor([0, 0, 0, 2, 2])
    normalised = mappo.normalise(torch.tensor([1.0, 2.0, 3.0, 100.0, 300.0]), roles)
    torch.testing.assert_close(normalised, torch.tensor([-1.2247449, 0, 1.2247449, -1, 1]))
    assert mappo.normalise(torch.full((5,), 7.0), roles).abs().max() == 0


def test_explained_variance() -> None:
    roles = torch.tensor([0, 0, 1, 1, 2, 2])
    returns = torch.tensor([1.0, 3.0, 1.0, 3.0, 5.0, 5.0])
    values = torch.tensor([1.0, 3.0, 0.0, 0.0, 1.0, 2.0])
    torch.testing.assert_close(mappo.explained_variance(values, returns, roles), torch.tensor([1.0, 0.0, 0.0]))


def test_balance_loss_of_one_batch_is_the_switch_loss() -> None:
    from affect_rl.policy.fusion import load_balance

    router = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    weights = torch.zeros(6, 4).scatter(1, router.topk(2).indices, 0.5)
    load = (weights > 0).float().sum(0) / 12
    torch.testing.assert_close(mappo.balance_loss(router, load, torch.tensor(6)), load_balance(router, weights))
