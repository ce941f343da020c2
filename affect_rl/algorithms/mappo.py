"""Multi-agent PPO (arXiv 2103.01955): a shared policy, a critic that sees more than an agent does."""

from __future__ import annotations

from affect_rl.algorithms.advantages import gae, in_units_of_returns, token_rewards
from affect_rl.algorithms.algorithm import Algorithm, AlgorithmSettings, Targets
from affect_rl.algorithms.critic import CriticSettings
from affect_rl.algorithms.step import Step
from affect_rl.section import Fraction, NonNegative


class MappoSettings(AlgorithmSettings):
    """Multi-agent PPO."""

    name: str = "mappo"
    """A name of `affect_rl.algorithms.ALGORITHMS`, or ``module:Class``."""
    gamma: Fraction = 1.0
    """Discount per token; 1 for terminal rewards."""
    lam: Fraction = 1.0
    """lambda of GAE. The reward comes with the last token: below 1 its credit fades towards the first ones (0.95^40 is
    0.13), which decide a query."""
    kl_weight: NonNegative = 0.05
    """beta of equation 10: what KL from the reference costs in reward."""
    normalise: bool = True
    """Give each agent's advantages mean 0 and the deviation of its returns as their unit, over the whole step."""
    critic: CriticSettings = CriticSettings()
    """The critic."""


class Mappo(Algorithm):
    """Equations 8 to 12: KL in the reward, GAE along each agent's turns, the clipped surrogate."""

    needs_critic = True
    Settings = MappoSettings

    def targets(self, step: Step) -> Targets:
        s: MappoSettings = self.settings
        assert step.values is not None
        rewards = token_rewards(step, s.kl_weight)
        advantages = gae(rewards, step.values, step.chain_lengths, s.gamma, s.lam)
        returns = advantages + step.values
        if s.normalise:
            advantages = in_units_of_returns(advantages, returns, step.agent)
        return Targets(advantages, returns)


class IppoSettings(MappoSettings):
    """Independent PPO."""

    name: str = "ippo"
    """A name of `affect_rl.algorithms.ALGORITHMS`, or ``module:Class``."""
    critic: CriticSettings = CriticSettings(sees="own")
    """The critic."""


class Ippo(Mappo):
    """MAPPO with a critic that sees what its agent sees (arXiv 2011.09533)."""

    Settings = IppoSettings
