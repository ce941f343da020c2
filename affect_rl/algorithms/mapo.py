"""Mixed advantage policy optimisation (arXiv 2603.06194): credit for each turn of a dialogue without a critic."""

from __future__ import annotations

from affect_rl.algorithms.advantages import mixed
from affect_rl.algorithms.algorithm import Algorithm, AlgorithmSettings, Targets
from affect_rl.algorithms.step import Step
from affect_rl.section import Fraction, NonNegative


class MapoSettings(AlgorithmSettings):
    """Mixed advantage policy optimisation."""

    name: str = "mapo"
    """A name of `affect_rl.algorithms.ALGORITHMS`, or ``module:Class``."""
    gamma: Fraction = 1.0
    """Discount per turn."""
    mix: Fraction = 0.5
    """Share of the turn-level advantage; the rest is the batch-level one."""
    kl_weight: NonNegative = 0.05
    """beta: weight of the KL penalty in the loss."""


class Mapo(Algorithm):
    """Turn-level and batch-level advantages mixed, see `affect_rl.algorithms.advantages.mixed`."""

    min_copies = 2
    Settings = MapoSettings

    def targets(self, step: Step) -> Targets:
        return Targets(mixed(step, self.settings.gamma, self.settings.mix))

    @property
    def kl_weight(self) -> float:
        return self.settings.kl_weight
