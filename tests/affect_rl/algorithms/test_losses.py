"""Losses against loops and autograd, and the same however a minibatch is split."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from step_cases import random_step
from torch import Tensor

from affect_rl.algorithms import ALGORITHMS, read_algorithm
from affect_rl.algorithms.algorithm import Part, Targets, Terms
from affect_rl.algorithms.losses import SUMS, Cispo, Clipped, Gspo, balance_loss, k3, token_weights, value_loss
from affect_rl.algorithms.step import Step

CHAINS = [[2, 3], [3], [4], [1], [2, 2], [3]]
LOSSES = (
    Clipped(), Clipped(clip_high=0.4), Clipped(dual_clip=1.5), Clipped(average="sequences"),
    Gspo(clip=0.05, clip_high=0.08), Gspo(clip=0.05, average="tokens"), Cispo(), Cispo(clip=0.1, average="sequences"),
)  # fmt: skip
CORRECTIONS = ({"name": "none"}, {"name": "truncated", "limit": 1.1}, {"name": "masked", "low": 0.9, "high": 1.1})


def terms(step: Step, logprobs: Tensor, advantages: Tensor, places: Tensor, **settings: Any) -> Terms:
    """The loss of GRPO, which has all parts, over the tokens at `places`."""
    algorithm = ALGORITHMS["grpo"](read_algorithm({"name": "grpo", **settings}))
    weights = algorithm.weights(step, torch.ones(len(step.agent), dtype=torch.bool))
    return algorithm.loss(step, Targets(advantages), Part(places, logprobs[places], weights[places]))


@pytest.fixture
def step() -> Step:
    return random_step(CHAINS)


@pytest.fixture
def drawn(step: Step) -> tuple[Tensor, Tensor]:
    """Log-probs and advantages."""
    rng = torch.Generator().manual_seed(5)
    shape = step.old.shape
    logprobs = step.old + 0.3 * torch.randn(shape, generator=rng, dtype=torch.float64)
    return logprobs, torch.randn(shape, generator=rng, dtype=torch.float64)


def loop_loss(step: Step, logprobs: Tensor, advantages: Tensor, loss: Any, correction: dict[str, Any]) -> float:
    """One token after the other."""
    total = 0.0
    turns = [[t for t in range(len(step.agent)) if step.turn[t] == n] for n in range(len(step.turn_lengths))]
    for tokens in turns:
        agent = int(step.agent[tokens[0]])
        mine = [t for other in turns for t in other if step.agent[t] == agent]
        answers = len({int(step.turn[t]) for t in mine})
        anchor = step.behaviour if correction["name"] == "none" else step.old
        ratios = [math.exp(logprobs[t] - anchor[t]) for t in tokens]
        if loss.name == "gspo":
            ratios = [math.prod(ratios) ** (1 / len(ratios))] * len(tokens)
        for t, ratio in zip(tokens, ratios, strict=True):
            a, lp = float(advantages[t]), float(logprobs[t])
            low = 0.0 if loss.clip is None else 1 - loss.clip
            high = 1 + (loss.clip if loss.clip_high is None else loss.clip_high)
            clipped = min(max(ratio, low), high)
            objective = clipped * a * lp if loss.name == "cispo" else min(ratio * a, clipped * a)
            if getattr(loss, "dual_clip", None) and a < 0:
                objective = max(objective, loss.dual_clip * a)
            weight = math.exp(step.old[t] - step.behaviour[t])
            if correction["name"] == "none":
                weight = 1.0
            elif correction["name"] == "truncated":
                weight = min(weight, correction["limit"])
            elif not correction["low"] <= weight <= correction["high"]:
                weight = 0.0
            share = 1 / len(mine) if loss.average == "tokens" else 1 / (answers * len(tokens))
            rho = math.exp(step.reference[t] - lp)
            total += share * (0.05 * (rho - 1 - math.log(rho)) - weight * objective)
    return total


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda c: str(c["name"]))
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_losses_against_a_loop(step: Step, drawn: tuple[Tensor, Tensor], loss: Any, correction: dict[str, Any]) -> None:
    everything = torch.arange(len(step.agent))
    got = terms(step, *drawn, everything, loss=loss.model_dump(), correction=correction)
    assert float(got.loss) == pytest.approx(loop_loss(step, *drawn, loss, correction))


@given(st.permutations(range(7)), st.lists(st.integers(0, 7), max_size=3), st.sampled_from(LOSSES))
def test_losses_do_not_depend_on_the_split(order: list[int], cuts: list[int], loss: Any) -> None:
    """Turns in any order, in any number of micro-batches."""
    step = random_step([[2, 3], [3], [4], [1], [2], [3]])
    rng = torch.Generator().manual_seed(3)
    logprobs, advantages, old, returns = torch.randn(4, len(step.agent), generator=rng, dtype=torch.float64)
    router = torch.randn(7, 4, generator=rng, dtype=torch.float64).softmax(-1)
    load = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)

    def losses(turns: list[int]) -> Tensor:
        chosen = torch.isin(step.turn, torch.tensor(turns, dtype=torch.long)).nonzero()[:, 0]
        got = terms(step, logprobs, advantages, chosen, loss=loss.model_dump())
        value = value_loss(logprobs[chosen], old[chosen], returns[chosen], len(step.agent), 0.2)
        return torch.stack([*got.parts.values(), got.loss, value, balance_loss(router[turns], load, 7)])

    ends = [0, *sorted(cuts), 7]
    parts = [list(order[a:b]) for a, b in itertools.pairwise(ends)]
    torch.testing.assert_close(sum(losses(part) for part in parts), losses(list(range(7))))


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss.name == "clipped"], ids=str)
def test_gradients_against_finite_differences(step: Step, drawn: tuple[Tensor, Tensor], loss: Any) -> None:
    logprobs, advantages = drawn
    everything = torch.arange(len(step.agent))

    def policy(x: Tensor) -> Tensor:
        return terms(step, x, advantages, everything, loss=loss.model_dump()).loss

    assert torch.autograd.gradcheck(policy, logprobs.clone().requires_grad_())


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_where_nothing_has_moved_the_gradient_is_the_policy_gradient(step: Step, loss: Any) -> None:
    """All surrogates agree there: ``-w A`` for each token."""
    logprobs = step.old.clone().requires_grad_()
    advantages = torch.randn(len(step.agent), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    everything = torch.arange(len(step.agent))
    settings = {"loss": loss.model_dump(), "correction": {"name": "masked", "low": 0, "high": 1e9}, "kl_weight": 0}
    got = terms(step, logprobs, advantages, everything, **settings)
    weights = token_weights(step, torch.ones_like(step.agent).bool(), loss.average)
    (gradient,) = torch.autograd.grad(got.loss, logprobs)
    torch.testing.assert_close(gradient, -weights * (step.old - step.behaviour).exp() * advantages)
    assert got.statistics.sums[:, SUMS.index("kl")].abs().max() == 0


def test_gspo_s_gradient_is_that_of_its_own_definition() -> None:
    """Equation 5 of arXiv 2507.18071, differentiated by torch."""
    step = random_step([[3], [4]], agent=[0, 0])
    step = replace(step, behaviour=step.old)
    logprobs = (step.old + 0.01).requires_grad_()
    advantages = torch.tensor([1.0] * 3 + [-2.0] * 4, dtype=torch.float64)
    loss = torch.zeros((), dtype=torch.float64)
    for tokens, a in ((slice(0, 3), 1.0), (slice(3, 7), -2.0)):
        ratio = (logprobs[tokens] - step.old[tokens]).mean().exp()
        loss = loss - torch.minimum(ratio * a, ratio.clamp(0.9, 1.1) * a) / 2
    (expected,) = torch.autograd.grad(loss, logprobs)
    settings = {"loss": {"name": "gspo", "clip": 0.1, "clip_high": 0.1}, "kl_weight": 0}
    got = terms(step, logprobs, advantages, torch.arange(7), **settings)
    torch.testing.assert_close(torch.autograd.grad(got.loss, logprobs)[0], expected)


def test_clip_higher_and_dual_clip_bound_what_they_say() -> None:
    def gradient(loss: Clipped, ratio: float, advantage: float) -> float:
        logprobs = torch.tensor([math.log(ratio)], requires_grad=True)
        objective = loss(logprobs, torch.zeros(1), torch.tensor([advantage]), torch.tensor([0])).objective.sum()
        return float(torch.autograd.grad(objective, logprobs)[0])

    assert gradient(Clipped(), 1.3, 1.0) == 0 and gradient(Clipped(clip_high=0.4), 1.3, 1.0) == pytest.approx(1.3)
    assert gradient(Clipped(clip_high=0.4), 0.7, -1.0) == 0
    assert gradient(Clipped(), 9.0, -1.0) == pytest.approx(-9) and gradient(Clipped(dual_clip=3), 9.0, -1.0) == 0


def test_weights_of_each_agent_that_plays_sum_to_one(step: Step) -> None:
    chosen = torch.isin(step.chain, torch.tensor([0, 2, 3]))[step.turn]
    for average in ("tokens", "sequences"):
        weights = token_weights(step, chosen, average)  # type: ignore[arg-type]
        assert not weights[~chosen].any()
        torch.testing.assert_close(step.over_agents(weights), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))


def test_statistics_against_a_loop(step: Step, drawn: tuple[Tensor, Tensor]) -> None:
    logprobs, advantages = drawn
    seen = terms(step, logprobs, advantages, torch.arange(len(step.agent)), correction={"name": "none"}).statistics
    sums, largest = np.zeros((3, 5)), np.zeros(3)
    for t, agent in enumerate(step.agent.tolist()):
        ratio = math.exp(logprobs[t] - step.behaviour[t])
        sums[agent] += [1, ratio, abs(ratio - 1) > 0.2, ratio - 1 - math.log(ratio), 1]
        largest[agent] = max(largest[agent], ratio)
    np.testing.assert_allclose(seen.sums, sums)
    np.testing.assert_allclose(seen.ratio_max, largest)


def test_k3_estimates_kl() -> None:
    rng = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 6, generator=rng, dtype=torch.float64).log_softmax(-1)
    drawn = torch.multinomial(p.exp(), 200_000, replacement=True, generator=rng)
    estimate = k3(p[drawn], q[drawn])
    assert (estimate >= 0).all()
    assert float(estimate.mean()) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=0.02)


def test_value_loss_takes_the_worse_of_clipped_and_unclipped() -> None:
    # Unclipped 1.0 from old 0 towards return 1 would be perfect; clipped at 0.2 it still errs by 0.8.
    loss = value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), 1, 0.2)
    assert float(loss) == pytest.approx(0.64)


def test_balance_loss_of_one_batch_is_the_switch_loss() -> None:
    from affect_rl.policy.fusion import load_balance

    router = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    weights = torch.zeros(6, 4).scatter(1, router.topk(2).indices, 0.5)
    load = (weights > 0).float().sum(0) / 12
    torch.testing.assert_close(balance_loss(router, load, 6), load_balance(router, weights))
