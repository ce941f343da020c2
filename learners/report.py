"""What an update reports: the same numbers on every rank."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from affect_rl.algorithms.advantages import explained_variance
from affect_rl.algorithms.algorithm import Targets
from affect_rl.algorithms.losses import SUMS, Statistics
from affect_rl.algorithms.step import Step


@dataclass
class Report:
    """Statistics of optimiser steps, summed (or maximised) over passes, steps and ranks.

    Attributes:
        agents: names of the agents ``[A]``.
        losses: sums by name.
        sums: ``[A, 5]`` in the order of `affect_rl.algorithms.losses.SUMS`.
        ratio_max: ``[A]``.
    """

    agents: tuple[str, ...]
    losses: dict[str, Tensor] = field(default_factory=dict)
    sums: Tensor = field(init=False)
    ratio_max: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.sums, self.ratio_max = torch.zeros(len(self.agents), len(SUMS)), torch.zeros(len(self.agents))

    def add(self, losses: dict[str, Tensor], weight: float, seen: Statistics | None = None) -> None:
        """Take in a pass."""
        for name, loss in losses.items():
            before = self.losses.get(name, torch.zeros_like(loss))
            self.losses[name] = before + weight * loss.detach()
        if seen:
            self.sums = self.sums.to(seen.sums) + weight * seen.sums
            self.ratio_max = torch.maximum(self.ratio_max.to(seen.ratio_max), weight * seen.ratio_max)

    def metrics(self, steps: int, device: torch.device) -> dict[str, float]:
        """Losses and per-agent statistics of all ranks, averaged over the optimiser steps; call on all ranks."""
        losses = torch.stack([x.to(device) for x in self.losses.values()]) if self.losses else torch.zeros(0)
        sums, ratio_max = self.sums.to(device), self.ratio_max.to(device)
        if self.losses:  # none where no minibatch had anything to learn from
            dist.all_reduce(losses)
        dist.all_reduce(sums)
        dist.all_reduce(ratio_max, dist.ReduceOp.MAX)
        metrics = {f"loss/{n}": x / max(steps, 1) for n, x in zip(self.losses, losses.tolist(), strict=True)}
        for agent, row, largest in zip(self.agents, sums.tolist(), ratio_max.tolist(), strict=True):
            tokens, *others = row
            if tokens:
                metrics |= {f"{agent}/{name}": x / tokens for name, x in zip(SUMS[1:], others, strict=True)}
                metrics[f"{agent}/ratio_max"] = largest
        return metrics


def prepare_metrics(step: Step, targets: Targets, entropies: Tensor) -> dict[str, float]:
    """How far engine, learner and reference are apart, how sure the agents are, how well the critic foresees returns.

    Only agents that played are reported.
    """
    gap = step.old - step.behaviour
    count = step.over_agents(torch.ones_like(gap))
    kl = step.over_agents(step.old - step.reference)
    metrics = {
        "logprob_gap/max": float(gap.abs().max()),
        "logprob_gap/mean": float(gap.abs().mean()),
        "ratio/first": float(gap.exp()[(gap.exp() - 1).abs().argmax()]),
    }
    entropy, played = step.over_agents(entropies), [n for n, tokens in enumerate(count.tolist()) if tokens]
    metrics["kl/mean"] = sum(float(kl[n] / count[n]) for n in played) / len(played)
    for n in played:
        agent = step.agents[n]
        metrics |= {f"kl/{agent}": float(kl[n] / count[n]), f"{agent}/entropy": float(entropy[n] / count[n])}
    if targets.returns is not None and step.values is not None:
        explained = explained_variance(step.values, targets.returns, step.agent, len(step.agents))
        metrics |= {f"{step.agents[n]}/explained_variance": float(explained[n]) for n in played}
    return metrics
