"""The mathematics of multi-agent PPO: rewards, advantages, losses. Tensors in, tensors out.

The tokens of a step lie on one flat axis ``[R]``, sequence after sequence; `lengths` ``[S]`` says where
each ends, `roles` ``[R]`` whose token it is (an index into `affect_rl.trajectory.ROLES`).

A loss here is a *sum* over the tokens given, each divided by the number of its agent's tokens in the
whole minibatch. Summed over micro-batches and ranks it is therefore the same loss however the
minibatch was split. Sums and maxima that statistics need come along, per agent, for the same reason.

Left out on purpose: nothing here knows a config, an optimiser or another process.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from affect_rl.trajectory import ROLES

AGENTS = len(ROLES)


class Advantages(NamedTuple):
    """Advantages and value targets (``advantages + values``), both ``[R]``."""

    advantages: Tensor
    returns: Tensor


class PolicyTerms(NamedTuple):
    """The policy's part of equation 8, and what to report about it.

    Attributes:
        loss: scalar; clipped surrogate summed over agents.
        entropy: scalar; mean entropy of each agent's tokens, summed over agents.
        sums: ``[AGENTS, 5]`` sums over tokens, in the order of `POLICY_SUMS`; no gradient.
        ratio_max: ``[AGENTS]`` largest importance ratio; no gradient.
    """

    loss: Tensor
    entropy: Tensor
    sums: Tensor
    ratio_max: Tensor


POLICY_SUMS = ("tokens", "ratio", "clip_fraction", "kl", "entropy")


def token_rewards(rewards: Tensor, logprobs: Tensor, reference: Tensor, lengths: Tensor, kl_weight: float) -> Tensor:
    """Equation 10: ``-beta log(pi_theta / pi_sft)`` at each token, plus the reward R_i at the last.

    Args:
        rewards: ``[S]`` terminal rewards (equations 1 to 3).
        logprobs: ``[R]`` log-probs under the policy at the start of the step.
        reference: ``[R]`` log-probs under the frozen reference.
        lengths: ``[S]`` tokens of each sequence, all positive.
        kl_weight: beta.

    Returns:
        ``[R]`` reward of each token.
    """
    per_token = -kl_weight * (logprobs - reference)
    return per_token.index_add(0, lengths.cumsum(0) - 1, rewards.to(per_token))


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> Advantages:
    """Equation 9: generalised advantage estimation (arXiv 1506.02438) along each sequence by itself.

    ``A_t = sum_l (gamma lam)^l delta_{t+l}``, ``delta_t = r_t + gamma V(s_{t+1}) - V(s_t)``, V = 0 after
    the last token.

    Args:
        rewards: ``[R]`` reward of each token.
        values: ``[R]`` value of the state that predicts each token.
        lengths: ``[S]`` tokens of each sequence.
        gamma: discount per token.
        lam: lambda, 0 for one-step differences, 1 for Monte Carlo returns.
    """
    real = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]  # [S, T]
    r, v = (torch.zeros(real.shape, device=x.device, dtype=x.dtype).masked_scatter(real, x) for x in (rewards, values))
    padded = torch.zeros_like(v)
    ahead, next_value = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0])
    # Padding stands at the end and holds zeros, so nothing flows out of it into real tokens.
    for t in range(real.shape[1] - 1, -1, -1):
        ahead = r[:, t] + gamma * next_value - v[:, t] + gamma * lam * ahead
        padded[:, t], next_value = ahead, v[:, t]
    advantages = padded[real]
    return Advantages(advantages, advantages + values)


def per_agent_sums(x: Tensor, roles: Tensor) -> Tensor:
    """Sums over each agent's tokens: ``[R]`` or ``[R, n]`` to ``[AGENTS]`` or ``[AGENTS, n]``."""
    return x.new_zeros(AGENTS, *x.shape[1:]).index_add(0, roles, x)


def normalise(advantages: Tensor, roles: Tensor) -> Tensor:
    """Shift and scale each agent's advantages to mean 0 and standard deviation 1 over the whole step.

    Agents differ in reward scale and answer length; normalised together, one would drown the others.
    """
    count = per_agent_sums(torch.ones_like(advantages), roles).clamp(min=1)
    centred = advantages - (per_agent_sums(advantages, roles) / count)[roles]
    std = (per_agent_sums(centred**2, roles) / count).sqrt()
    return centred / (std[roles] + 1e-8)


def policy_terms(
    logprobs: Tensor,
    entropies: Tensor,
    behaviour: Tensor,
    advantages: Tensor,
    roles: Tensor,
    tokens: Tensor,
    clip: float,
) -> PolicyTerms:
    """Clipped surrogate ``-sum_i 1/N_i sum_t min(rho A, clip(rho, 1-eps, 1+eps) A)`` and statistics.

    Args:
        logprobs: ``[R]`` under the policy, with gradient.
        entropies: ``[R]`` likewise.
        behaviour: ``[R]`` log-probs under the policy that sampled the tokens.
        advantages: ``[R]``.
        roles: ``[R]``.
        tokens: ``[AGENTS]`` N_i, tokens of each agent in the whole minibatch.
        clip: epsilon.
    """
    difference = logprobs - behaviour
    ratio = difference.clamp(-20, 20).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    share = 1 / tokens.clamp(min=1).to(logprobs)[roles]
    with torch.no_grad():
        clipped = ((ratio - 1).abs() > clip).to(ratio)
        kl = ratio - 1 - difference  # k3 estimator of KL(behaviour || policy), never negative
        sums = per_agent_sums(torch.stack([torch.ones_like(ratio), ratio, clipped, kl, entropies], dim=-1), roles)
        ratio_max = ratio.new_zeros(AGENTS).scatter_reduce(0, roles, ratio.detach(), "amax")
    return PolicyTerms(-(share * surrogate).sum(), (share * entropies).sum(), sums, ratio_max)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, tokens: Tensor, clip: float) -> Tensor:
    """Equations 11 and 12: ``1/N sum_t max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2)``.

    Args:
        values: ``[R]`` with gradient.
        old_values: ``[R]`` values at the start of the step.
        returns: ``[R]`` targets.
        tokens: ``[AGENTS]`` tokens of each agent in the whole minibatch; N is their sum.
        clip: epsilon.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns) ** 2, (clipped - returns) ** 2).sum() / tokens.sum().clamp(min=1)


def balance_loss(router: Tensor, load: Tensor, percepts: Tensor) -> Tensor:
    """Load-balance loss ``experts * sum_e f_e P_e`` as a sum over micro-batches.

    `affect_rl.policy.fusion.load_balance` takes the load f from the same rows as the probabilities P; here f
    is that of the whole step, which makes the loss linear in the rows and so independent of the split.

    Args:
        router: ``[M, experts]`` router distributions of the micro-batch, with gradient.
        load: ``[experts]`` share of the step's chosen slots that went to each expert.
        percepts: fused percepts of the whole minibatch.
    """
    return router.shape[1] * (router.sum(dim=0) * load).sum() / percepts.clamp(min=1)


def explained_variance(values: Tensor, returns: Tensor, roles: Tensor) -> Tensor:
    """``1 - Var(returns - values) / Var(returns)`` of each agent, ``[AGENTS]``; 0 where returns do not vary."""

    def variance(x: Tensor) -> Tensor:
        count = per_agent_sums(torch.ones_like(x), roles).clamp(min=1)
        return per_agent_sums((x - (per_agent_sums(x, roles) / count)[roles]) ** 2, roles) / count

    total = variance(returns)
    return torch.where(total > 0, 1 - variance(returns - values) / total.clamp(min=1e-12), torch.zeros_like(total))
