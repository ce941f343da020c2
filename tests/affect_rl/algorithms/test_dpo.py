"""Preferences as advantages against DPO's own loss, differentiated by torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from step_cases import random_step

from affect_rl.algorithms import ALGORITHMS, read_algorithm
from affect_rl.algorithms.algorithm import Part, Targets
from affect_rl.algorithms.dpo import best_against_worst, preference_advantages

CHAINS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=2), min_size=4, max_size=8)


@given(CHAINS, st.floats(0.05, 2), st.integers(0, 99), st.booleans())
def test_the_first_gradient_is_dpo_s(chains: list[list[int]], beta: float, seed: int, one_agent: bool) -> None:
    """Answers of several turns count as a whole."""
    step = random_step(chains, agent=[0 if one_agent else c % 2 * 2 for c in range(len(chains))], seed=seed)
    pairs = [(0, 2), (3, 1)]
    logprobs = step.old.clone().requires_grad_()

    def margin(i: int) -> torch.Tensor:
        return (logprobs - step.reference).split(step.chain_lengths.tolist())[i].sum()

    loss = -torch.stack([torch.nn.functional.logsigmoid(beta * (margin(c) - margin(r))) for c, r in pairs]).mean()
    (expected,) = torch.autograd.grad(loss, logprobs)

    algorithm = ALGORITHMS["dpo"](read_algorithm({"name": "dpo", "preference_weight": beta}))
    everything = torch.ones_like(step.agent).bool()
    part = Part(torch.arange(len(step.agent)), logprobs, algorithm.weights(step, everything))
    terms = algorithm.loss(step, Targets(preference_advantages(step, pairs, beta)), part)
    torch.testing.assert_close(torch.autograd.grad(terms.loss, logprobs)[0], expected)


def test_without_pairs_nothing_pulls_and_nothing_is_learned() -> None:
    step = random_step([[2], [3]])
    advantages = preference_advantages(step, [], 0.1)
    algorithm = ALGORITHMS["dpo"](read_algorithm({"name": "dpo"}))
    assert not advantages.any()
    assert not algorithm.learns(Targets(advantages), torch.ones_like(step.agent).bool())


def test_pairs_are_the_best_against_the_worst_answer_to_one_prompt() -> None:
    prompts = ["a", "b", "a", "a", "b", "c", "d", "d"]
    rewards = [0.5, 1.0, 1.5, -0.5, 0.0, 9.0, 1.0, 1.0]
    assert best_against_worst(prompts, rewards) == [(2, 3), (1, 4)]
    assert best_against_worst([], []) == []


@pytest.mark.parametrize("rewards", [[1.0, 0.0], [0.0, 1.0]])
def test_a_step_along_the_gradient_widens_the_margin(rewards: list[float]) -> None:
    (pair,) = best_against_worst(["a", "a"], rewards)
    advantages = preference_advantages(random_step([[2], [2]], agent=[0, 0]), [pair], 0.1)
    assert (advantages[:2] > 0).all() == (rewards[0] > rewards[1]) and (advantages[:2] * advantages[2:] < 0).all()
