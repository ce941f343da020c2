"""Group relative policy optimisation (arXiv 2402.03300): an answer against the others to the same sample."""

from __future__ import annotations

from affect_rl.algorithms.advantages import group_relative
from affect_rl.algorithms.algorithm import Algorithm, AlgorithmSettings, Targets
from affect_rl.algorithms.step import Step
from affect_rl.section import NonNegative


class GrpoSettings(AlgorithmSettings):
    """Group relative policy optimisation."""

    name: str = "grpo"
    """A name of `affect_rl.algorithms.ALGORITHMS`, or ``module:Class``."""
    kl_weight: NonNegative = 0.05
    """beta: weight of the KL penalty in the loss."""
    scale_by_deviation: bool = True
    """Divide by the group's deviation; False: Dr. GRPO (arXiv 2503.20783)."""


class Grpo(Algorithm):
    """Groups are the copies of a sample, agent by agent.

    Copies share the first agent's prompt alone: what later ones see depends on what was found. The advantage of an
    agent's turns is that of all it earned in the episode.
    """

    min_copies = 2
    Settings = GrpoSettings

    def targets(self, step: Step) -> Targets:
        groups = step.sample * len(step.agents) + step.chain_agent
        by_chain = group_relative(step.chain_rewards, groups, scale=self.settings.scale_by_deviation)
        return Targets(by_chain[step.chain][step.turn])

    @property
    def kl_weight(self) -> float:
        return self.settings.kl_weight
