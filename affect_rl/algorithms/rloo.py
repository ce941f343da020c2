"""REINFORCE with a leave-one-out baseline (arXiv 2402.14740): no critic, and still unbiased."""

from __future__ import annotations

from affect_rl.algorithms.advantages import leave_one_out, normalise, token_rewards
from affect_rl.algorithms.algorithm import Algorithm, AlgorithmSettings, Targets
from affect_rl.algorithms.step import Step
from affect_rl.section import NonNegative


class RlooSettings(AlgorithmSettings):
    """REINFORCE with a leave-one-out baseline."""

    name: str = "rloo"
    """A name of `affect_rl.algorithms.ALGORITHMS`, or ``module:Class``."""
    kl_weight: NonNegative = 0.05
    """beta: what KL from the reference costs in reward, summed over an answer."""
    normalise: bool = True
    """Give each agent's advantages mean 0 and deviation 1 over the whole step."""


class Rloo(Algorithm):
    """The baseline of an answer is the mean of the other copies of its sample, agent by agent."""

    min_copies = 2
    Settings = RlooSettings

    def targets(self, step: Step) -> Targets:
        rewards = step.over_chains(token_rewards(step, self.settings.kl_weight))
        groups = step.sample * len(step.agents) + step.chain_agent
        advantages = leave_one_out(rewards, groups)[step.chain][step.turn]
        return Targets(normalise(advantages, step.agent) if self.settings.normalise else advantages)
