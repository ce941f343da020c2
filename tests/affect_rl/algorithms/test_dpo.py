"""Preferences as advantages against DPO's own loss, differentiated by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from affect_rl.algorithms import mappo
from affect_rl.algorithms.batching import TokenSequence
from affect_rl.algorithms.dpo import best_against_worst, preference_advantages, preference_pairs
from affect_rl.trajectory import Percept, Prompt, Role


@given(st.lists(st.integers(1, 6), min_size=4, max_size=8), st.floats(0.05, 2), st.integers(0, 99), st.booleans())
def test_the_first_gradient_is_dpo_s(lengths: list[int], beta: float, seed: int, one_role: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    logprobs, reference = torch.randn(2, sum(lengths), generator=rng, dtype=torch.float64)
    lens = torch.tensor(lengths)
    roles = (torch.zeros(len(lengths)) if one_role else torch.arange(len(lengths)) % 2 * 2).long()
    pairs = [(0, 2), (3, 1)]
    logprobs.requires_grad_()

    def margin(i: int) -> torch.Tensor:
        return (logprobs - reference).split(lengths)[i].sum()

    loss = -torch.stack([torch.nn.functional.logsigmoid(beta * (margin(c) - margin(r))) for c, r in pairs]).mean()
    (expected,) = torch.autograd.grad(loss, logprobs)

    token_roles = roles.repeat_interleave(lens)
    advantages = preference_advantages(logprobs.detach(), reference, token_roles, lens, pairs, beta)
    tokens = torch.bincount(token_roles, minlength=mappo.AGENTS)
    terms = mappo.policy_terms(
        logprobs, torch.zeros_like(reference), logprobs.detach(), advantages, token_roles, tokens, clip=0.2
    )
    (got,) = torch.autograd.grad(terms.loss, logprobs)
    torch.testing.assert_close(got, expected)


def test_without_pairs_nothing_pulls() -> None:
    zeros = torch.zeros(5)
    assert not preference_advantages(zeros, zeros, zeros.long(), torch.tensor([2, 3]), [], 0.1).any()


def test_pairs_are_the_best_against_the_worst_answer_to_one_prompt() -> None:
    prompts = ["a", "b", "a", "a", "b", "c", "d", "d"]
    rewards = [0.5, 1.0, 1.5, -0.5, 0.0, 9.0, 1.0, 1.0]
    assert best_against_worst(prompts, rewards) == [(2, 3), (1, 4)]
    assert best_against_worst([], []) == []


def test_answers_are_compared_for_the_same_sample_agent_and_percepts_only() -> None:
    voice = np.ones((1, 2), np.float32)
    heard, muted = Prompt((1, 2), (Percept(voice, None),)), Prompt((1, 2), (Percept(None, None),))

    def answer(group: int, reward: float, role: Role = "planner", prompt: Prompt = heard) -> TokenSequence:
        return TokenSequence(group, role, prompt, (3,), (0.0,), reward)

    copies = ["clip a", "clip a", "clip b"]
    assert preference_pairs([answer(0, 1.0), answer(1, 0.0), answer(2, -1.0)], copies) == [(0, 1)]
    assert preference_pairs([answer(0, 1.0), answer(1, 0.0, "filter"), answer(1, 0.0, prompt=muted)], copies) == []


@pytest.mark.parametrize("rewards", [[1.0, 0.0], [0.0, 1.0]])
def test_a_step_along_the_gradient_widens_the_margin(rewards: list[float]) -> None:
    (pair,) = best_against_worst(["a", "a"], rewards)
    zeros = torch.zeros(4)
    advantages = preference_advantages(zeros, zeros, zeros.long(), torch.tensor([2, 2]), [pair], 0.1)
    assert (advantages[:2] > 0).all() == (rewards[0] > rewards[1]) and (advantages[:2] * advantages[2:] < 0).all()
