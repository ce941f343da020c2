"""Direct preference optimisation through the same clipped update as MAPPO.

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

from affect_rl.algorithms.batching import TokenSequence
from affect_rl.algorithms.mappo import AGENTS


def preference_pairs(sequences: Sequence[TokenSequence], sample_ids: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (chosen, rejected) of answers to the same prompt.

    The same token ids are not enough: the features of a clip stand behind placeholders, and other clips may have
    the same words; and dropout may withhold a modality from one of a sample's episodes.

    Args:
        sequences: ``[S]``.
        sample_ids: of the groups that the sequences name.
    """
    prompts = [
        (
            sample_ids[s.group],
            s.role,
            s.prompt.token_ids,
            *((p.audio is None, p.video is None) for p in s.prompt.percepts),
        )
        for s in sequences
    ]
    return best_against_worst(prompts, [s.reward for s in sequences])


def best_against_worst(prompts: Sequence[Hashable], rewards: Sequence[float]) -> list[tuple[int, int]]:
    """Pairs (chosen, rejected) of answers, at most one for each prompt; answers of equal reward make none.

    Args:
        prompts: what tells the prompts of the answers apart ``[S]``.
        rewards: ``[S]``.
    """
    answers: dict[Hashable, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        answers[prompt].append(index)
    pairs = [(max(a, key=rewards.__getitem__), min(a, key=rewards.__getitem__)) for a in answers.values()]
    return [(chosen, rejected) for chosen, rejected in pairs if rewards[chosen] > rewards[rejected]]


def preference_advantages(
    logprobs: Tensor,
    reference: Tensor,
    roles: Tensor,
    lengths: Tensor,
    pairs: Sequence[tuple[int, int]],
    beta: float,
) -> Tensor:
    """Advantages ``[R]`` with which `affect_rl.algorithms.mappo.policy_terms` has DPO's gradient; 0 outside pairs.

    That function divides by the tokens of an agent, hence the factor.

    Args:
        logprobs: ``[R]`` under the policy at the start of the step.
        reference: ``[R]`` under the frozen reference.
        roles: ``[R]``.
        lengths: ``[S]`` tokens of each answer.
        pairs: indices into the S answers.
        beta: weight of a margin.
    """
    sequence_of = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    margins = logprobs.new_zeros(len(lengths)).index_add(0, sequence_of, logprobs - reference)
    weights = torch.zeros_like(margins)
    if pairs:
        chosen, rejected = torch.tensor(pairs, device=lengths.device).T
        pull = beta * torch.sigmoid(-beta * (margins[chosen] - margins[rejected])) / len(pairs)
        weights = weights.index_add(0, chosen, pull).index_add(0, rejected, -pull)
    tokens = torch.bincount(roles, minlength=AGENTS).to(weights)
    return weights[sequence_of] * tokens[roles]
