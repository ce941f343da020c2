"""REINFORCE++ (arXiv 2501.03262): PPO without a critic, normalised over the whole step."""

from __future__ import annotations

from affect_rl.algorithms.advantages import normalise, returns_to_go, token_rewards
from affect_rl.algorithms.algorithm import Algorithm, AlgorithmSettings, Targets
from affect_rl.algorithms.step import Step
from affect_rl.section import NonNegative


class ReinforceSettings(AlgorithmSettings):
    """REINFORCE++."""

    name: str = "reinforce++"
    """A name of `affect_rl.algorithms.ALGORITHMS`, or ``module:Class``."""
    kl_weight: NonNegative = 0.05
    """beta: what KL from the reference costs in reward, token by token."""


class Reinforce(Algorithm):
    """``A_t = R - beta sum_{k >= t} KL_k``, shifted and scaled over all of an agent's tokens in the step.

    The paper normalises over all tokens; here each agent has a scale of its own.
    """

    Settings = ReinforceSettings

    def targets(self, step: Step) -> Targets:
        returns = returns_to_go(token_rewards(step, self.settings.kl_weight), step.chain_lengths)
        return Targets(normalise(returns, step.agent))
