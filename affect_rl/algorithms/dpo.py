"""Direct preference optimisation through the same clipped update as the other algorithms.

Rafailov et al. (arXiv 2305.18290), equation 7: ``L = -E log sigmoid(beta (m_chosen - m_rejected))`` with the margin
``m = sum_t log(pi_theta / pi_sft)`` of an answer. Its gradient is that of a policy gradient in which all tokens of
an answer have one advantage, ``+- beta sigmoid(-z)`` with ``z = beta (m_chosen - m_rejected)``. So preferences
become advantages: with one minibatch the first optimiser step of an update is exactly DPO, and the clipped ratio keeps
later ones near the policy that the advantages were computed for. Pairs are formed as RAG-DDR does (arXiv
2410.13509): an agent's best against its worst answer to the same prompt, by the reward of what came of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from affect_rl.algorithms.algorithm import Algorithm, CommonSettings, Targets
from affect_rl.algorithms.corrections import Corrected
from affect_rl.algorithms.losses import Bounds, token_weights
from affect_rl.algorithms.step import Step, sum_by
from affect_rl.section import PositiveFloat


class DpoSettings(CommonSettings):
    """Direct preference optimisation."""

    name: str = "dpo"
    """A name of `affect_rl.algorithms.ALGORITHMS`, or ``module:Class``."""
    loss: Bounds = Bounds()
    """Bounds of the optimiser steps after the first."""
    preference_weight: PositiveFloat = 0.1
    """beta: how far a preference may lead away from the reference."""


class Dpo(Algorithm):
    """Learns from pairs of an agent's answers to the same prompt.

    The answer is all that the agent wrote in the episode. Who sampled it does not matter to a preference, so there is
    no correction, and the ratio starts from 1.
    """

    min_copies = 2
    Settings = DpoSettings

    def targets(self, step: Step) -> Targets:
        pairs = best_against_worst(step.prompt.tolist(), step.chain_rewards.tolist())
        return Targets(preference_advantages(step, pairs, self.settings.preference_weight))

    def weights(self, step: Step, chosen: Tensor) -> Tensor:
        return token_weights(step, chosen, "tokens")  # `preference_advantages` counts on it

    def corrected(self, step: Step) -> Corrected:
        return Corrected(step.old, torch.ones_like(step.old))


def best_against_worst(prompts: Sequence[Hashable], rewards: Sequence[float]) -> list[tuple[int, int]]:
    """Pairs (chosen, rejected) of answers, at most one for each prompt; answers of equal reward make none.

    Args:
        prompts: what tells the prompts of the answers apart ``[C]``.
        rewards: ``[C]``.
    """
    answers: dict[Hashable, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        answers[prompt].append(index)
    pairs = [(max(a, key=rewards.__getitem__), min(a, key=rewards.__getitem__)) for a in answers.values()]
    return [(chosen, rejected) for chosen, rejected in pairs if rewards[chosen] > rewards[rejected]]


def preference_advantages(step: Step, pairs: Sequence[tuple[int, int]], beta: float) -> Tensor:
    """Advantages ``[R]`` with which the clipped loss has DPO's gradient; 0 outside pairs.

    The loss divides by the tokens of an agent, hence the factor.

    Args:
        step: with the learner's and the reference's log-probs.
        pairs: indices into the C answers.
        beta: weight of a margin.
    """
    margins = step.over_chains(step.old - step.reference)
    weights = torch.zeros_like(margins)
    if pairs:
        chosen, rejected = torch.tensor(pairs, device=margins.device).T
        pull = beta * torch.sigmoid(-beta * (margins[chosen] - margins[rejected])) / len(pairs)
        weights = weights.index_add(0, chosen, pull).index_add(0, rejected, -pull)
    tokens = sum_by(torch.ones_like(step.old), step.agent, len(step.agents))
    return weights[step.chain][step.turn] * tokens[step.agent]
