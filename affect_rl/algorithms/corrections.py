"""What to do about engine and learner giving a token different log-probs.

They differ a little even with the same weights (other kernels, bfloat16), and more if the engine's are older. Left in
the PPO ratio, that noise is clipped as if the policy had moved. So the ratio is better taken against the learner's own
log-probs at the start of the step, with an importance weight pi_old / pi_engine before it that makes up for who
sampled.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from affect_rl.section import NonNegative, PositiveFloat, Section


class Corrected(NamedTuple):
    """``[R]`` each: the log-probs that the ratio is against, and the weight of each token's loss. No gradient."""

    anchor: Tensor
    weight: Tensor


def log_ratio(new: Tensor, old: Tensor) -> Tensor:
    """log(pi_new / pi_old), kept where its exponential is finite."""
    return (new - old).clamp(-20, 20)


class NoCorrection(Section):
    """The ratio is against the engine's log-probs: staleness and mismatch alike are clipped."""

    name: Literal["none"] = "none"
    """``none``."""

    def __call__(self, old: Tensor, behaviour: Tensor) -> Corrected:
        return Corrected(behaviour, torch.ones_like(behaviour))


class Truncated(Section):
    """Truncated importance sampling: weight ``min(pi_old / pi_engine, c)`` (arXiv 1606.02647; for engines Yao et al.,
    "Your efficient RL framework secretly brings you off-policy RL training", 2025)."""

    name: Literal["truncated"] = "truncated"
    """``truncated``."""
    limit: PositiveFloat = 2.0
    """c: the largest weight."""

    def __call__(self, old: Tensor, behaviour: Tensor) -> Corrected:
        return Corrected(old, log_ratio(old, behaviour).exp().clamp(max=self.limit))


class Masked(Section):
    """IcePop ("Small leak can sink a great ship", 2025): tokens whose weight leaves [low, high] do not count."""

    name: Literal["masked"] = "masked"
    """``masked``."""
    low: NonNegative = 0.5
    """Smallest weight that counts."""
    high: PositiveFloat = 5.0
    """Largest weight that counts."""

    def __call__(self, old: Tensor, behaviour: Tensor) -> Corrected:
        weight = log_ratio(old, behaviour).exp()
        return Corrected(old, torch.where((weight >= self.low) & (weight <= self.high), weight, 0.0))


Correction = Annotated[NoCorrection | Truncated | Masked, Field(discriminator="name")]
