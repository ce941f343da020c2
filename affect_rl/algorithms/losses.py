"""From advantages to losses, and what to report about them. Tensors in, tensors out.

A loss here is a *sum* over the tokens given, each with a weight that holds the denominator of the whole minibatch
(`token_weights`). Summed over micro-batches and ranks it is therefore the same loss however the minibatch was split.
Sums and maxima that statistics need come along, per agent, for the same reason.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from affect_rl.algorithms.corrections import log_ratio
from affect_rl.algorithms.step import Step, sum_by
from affect_rl.section import PositiveFloat, Section

Average = Literal["tokens", "sequences"]


class Surrogate(NamedTuple):
    """``[R_b]`` each: what is to be raised, with gradient; the importance ratio; and whether it was clipped."""

    objective: Tensor
    ratio: Tensor
    clipped: Tensor


class Bounds(Section):
    """PPO's clipped surrogate ``min(rho A, clip(rho, 1 - low, 1 + high) A)`` (arXiv 1707.06347, equation 7).

    A `clip_high` above `clip` is DAPO's clip-higher (arXiv 2503.14476, equation 10), which lets unlikely tokens grow.
    With `dual_clip` c the objective of a bad token is at least ``c A`` (arXiv 1912.09729, equation 5): else a token
    that has become far likelier than it was when sampled has no bound.
    """

    name: Literal["clipped"] = "clipped"
    """``clipped``."""
    clip: PositiveFloat = 0.2
    """How far the ratio may fall below 1."""
    clip_high: PositiveFloat | None = None
    """How far it may rise above 1; None: as far."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """c, above 1; None: no bound."""

    def __call__(self, logprobs: Tensor, anchor: Tensor, advantages: Tensor, turn: Tensor) -> Surrogate:
        ratio = log_ratio(logprobs, anchor).exp()
        return _clipped(ratio, advantages, self.clip, self.clip_high, self.dual_clip)


class Clipped(Bounds):
    """The same with a choice of what weighs the same."""

    average: Average = "tokens"
    """What of an agent weighs the same: its ``tokens``, or its answers (``sequences``), long and short."""


class Gspo(Section):
    """GSPO: one ratio for an answer, the geometric mean of its tokens' (arXiv 2507.18071, equations 5 and 7).

    Written as GSPO-token (equations 13 and 14), which is the same where an answer's advantages are equal, and has a
    meaning where they are not.
    """

    name: Literal["gspo"] = "gspo"
    """``gspo``."""
    clip: PositiveFloat = 3e-4
    """How far an answer's ratio may fall below 1; far less than a token's, for it is a mean."""
    clip_high: PositiveFloat | None = 4e-4
    """How far it may rise above 1; None: as far."""
    average: Average = "sequences"
    """What of an agent weighs the same: its ``tokens``, or its answers (``sequences``), long and short."""

    def __call__(self, logprobs: Tensor, anchor: Tensor, advantages: Tensor, turn: Tensor) -> Surrogate:
        turns, place = turn.unique(return_inverse=True)
        difference = log_ratio(logprobs, anchor)
        lengths = sum_by(torch.ones_like(difference), place, len(turns))
        mean = (sum_by(difference, place, len(turns)) / lengths)[place].detach()
        ratio = (mean + logprobs - logprobs.detach()).exp()
        return _clipped(ratio, advantages, self.clip, self.clip_high, None)


class Cispo(Section):
    """CISPO: clip the weight, not the token: ``sg(clip(rho, 1 - low, 1 + high)) A log pi`` (arXiv 2506.13585, eq. 4).

    Every token keeps its gradient, also those that the clipped surrogate would drop after the first steps.
    """

    name: Literal["cispo"] = "cispo"
    """``cispo``."""
    clip: PositiveFloat | None = None
    """How far the weight may fall below 1; None: to 0, as published."""
    clip_high: PositiveFloat = 0.2
    """How far it may rise above 1."""
    average: Average = "tokens"
    """What of an agent weighs the same: its ``tokens``, or its answers (``sequences``), long and short."""

    def __call__(self, logprobs: Tensor, anchor: Tensor, advantages: Tensor, turn: Tensor) -> Surrogate:
        ratio = log_ratio(logprobs, anchor).exp().detach()
        weight = ratio.clamp(0.0 if self.clip is None else 1 - self.clip, 1 + self.clip_high)
        return Surrogate(weight * advantages * logprobs, ratio, weight != ratio)


Loss = Annotated[Clipped | Gspo | Cispo, Field(discriminator="name")]


def _clipped(ratio: Tensor, advantages: Tensor, clip: float, clip_high: float | None, dual: float | None) -> Surrogate:
    low, high = 1 - clip, 1 + (clip if clip_high is None else clip_high)
    objective = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    if dual is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual * advantages), objective)
    return Surrogate(objective, ratio, (ratio < low) | (ratio > high))


def token_weights(step: Step, chosen: Tensor, average: Average) -> Tensor:
    """Weight of each token in a minibatch's mean, ``[R]``; 0 outside. Those of each agent that plays sum to 1.

    Args:
        step: the step.
        chosen: ``[R]`` (bool) tokens of the minibatch, answers whole.
        average: ``tokens``: ``1 / N_i`` with the agent's N_i tokens in the minibatch; ``sequences``: all answers have
            the same weight, spread evenly over their tokens.
    """
    inside = chosen.to(step.behaviour)
    share = inside / step.turn_lengths[step.turn] if average == "sequences" else inside
    return share / step.over_agents(share).clamp(min=1e-12)[step.agent]


class Statistics(NamedTuple):
    """What optimiser steps report of the policy, per agent; no gradient.

    Attributes:
        sums: ``[A, 5]`` sums over tokens, in the order of `SUMS`.
        ratio_max: ``[A]`` largest importance ratio.
    """

    sums: Tensor
    ratio_max: Tensor


SUMS = ("tokens", "ratio", "clip_fraction", "kl", "correction")


@torch.no_grad()
def statistics(
    surrogate: Surrogate, logprobs: Tensor, anchor: Tensor, weight: Tensor, agent: Tensor, agents: int
) -> Statistics:
    """Of a micro-batch's R_b tokens; `kl` is k3 of KL(anchor || policy), never negative."""
    ratio = surrogate.ratio.detach()
    kl = k3(anchor, logprobs.detach())
    rows = torch.stack([torch.ones_like(ratio), ratio, surrogate.clipped.to(ratio), kl, weight], dim=-1)
    largest = ratio.new_zeros(agents).scatter_reduce(0, agent, ratio, "amax")
    return Statistics(sum_by(rows, agent, agents), largest)


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Estimate of KL per token from samples, never negative: ``rho - 1 - log rho`` (Schulman, 2020).

    With ``rho = pi_ref / pi_theta`` it estimates KL(pi_theta || pi_ref) on tokens of pi_theta: GRPO's penalty
    (arXiv 2402.03300, equation 4).
    """
    difference = log_ratio(reference, logprobs)
    return difference.exp() - 1 - difference


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, tokens: Tensor | float, clip: float) -> Tensor:
    """Equations 11 and 12: ``1/N sum_t max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2)``.

    Args:
        values: ``[R_b]`` with gradient.
        old_values: ``[R_b]`` values at the start of the step.
        returns: ``[R_b]`` targets.
        tokens: N, tokens of the whole minibatch.
        clip: epsilon.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns) ** 2, (clipped - returns) ** 2).sum() / tokens


def balance_loss(router: Tensor, load: Tensor, percepts: int) -> Tensor:
    """Load-balance loss ``experts * sum_e f_e P_e`` as a sum over micro-batches.

    `affect_rl.policy.fusion.load_balance` takes the load f from the same rows as the probabilities P; here f
    is that of the whole step, which makes the loss linear in the rows and so independent of the split.

    Args:
        router: ``[M, experts]`` router distributions of the micro-batch, with gradient.
        load: ``[experts]`` share of the step's chosen slots that went to each expert.
        percepts: fused percepts of the whole minibatch.
    """
    return router.shape[1] * (router.sum(dim=0) * load).sum() / max(percepts, 1)
