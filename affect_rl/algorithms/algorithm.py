"""What an algorithm is: from a step's tokens to advantages, from a micro-batch of them to a loss.

To write one, derive from `Algorithm` in any module that can be imported and name it in the configuration as
``algorithm: {name: module:Class}``. Most need `targets` alone:

    class Plain(Algorithm):
        "REINFORCE without a baseline."

        def targets(self, step):
            return Targets(returns_to_go(token_rewards(step, 0.0), step.chain_lengths))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from affect_rl.algorithms.corrections import Corrected, Correction, Truncated
from affect_rl.algorithms.critic import CriticSettings
from affect_rl.algorithms.losses import Clipped, Loss, Statistics, k3, statistics, token_weights
from affect_rl.algorithms.step import Step
from affect_rl.section import Section


class CommonSettings(Section):
    """Settings that every algorithm has."""

    name: str
    """A name of `affect_rl.algorithms.ALGORITHMS`, or ``module:Class``."""

    @property
    def title(self) -> str:
        """What tables call a policy that was trained by it."""
        return self.name.rpartition(":")[2] if ":" in self.name else self.name.upper()

    @property
    def critic_settings(self) -> CriticSettings | None:
        """The critic's settings; None: the algorithm has none."""
        return getattr(self, "critic", None)

    @property
    def separate_critic(self) -> bool:
        """Whether there is a critic with a model of its own."""
        return self.critic_settings is not None and self.critic_settings.kind == "separate"


class AlgorithmSettings(CommonSettings):
    """Settings of most algorithms; an algorithm's class may add its own."""

    loss: Loss = Clipped()
    """How advantages become a loss."""
    correction: Correction = Truncated()
    """What is done about engine and learner giving a token different log-probs."""


class Targets(NamedTuple):
    """What the policy and the critic are to learn.

    Attributes:
        advantages: ``[R]``.
        returns: ``[R]`` what the values should have been; None: there is no critic.
    """

    advantages: Tensor
    returns: Tensor | None = None


class Part(NamedTuple):
    """The R_b tokens of a micro-batch.

    Attributes:
        places: ``[R_b]`` where they lie on the step's axis.
        logprobs: ``[R_b]`` under the policy, with gradient.
        weights: ``[R_b]`` of `Algorithm.weights`.
    """

    places: Tensor
    logprobs: Tensor
    weights: Tensor


class Terms(NamedTuple):
    """A micro-batch's part of the loss.

    Attributes:
        loss: scalar to lower.
        parts: scalars to report by name, each before its weight; always the same names.
        statistics: see `affect_rl.algorithms.losses.Statistics`.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    statistics: Statistics


class Algorithm(ABC):
    """One algorithm.

    Attributes:
        needs_critic: `Step.values` are to be there; the settings then have a field `critic`.
        min_copies: how often each sample must be played in a step.
        Settings: class of its settings.
    """

    needs_critic: ClassVar[bool] = False
    min_copies: ClassVar[int] = 1
    Settings: ClassVar[type[CommonSettings]] = AlgorithmSettings

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.needs_critic != ("critic" in cls.Settings.model_fields):
            raise TypeError(
                f"{cls.__name__}.needs_critic is {cls.needs_critic}; that of an algorithm whose Settings have a field "
                "`critic: CriticSettings` is True, that of others False"
            )

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def targets(self, step: Step) -> Targets:
        """Advantages, and with a critic its targets, of the whole step; the same on every rank."""

    def weights(self, step: Step, chosen: Tensor) -> Tensor:
        """Weight of each token in the loss of a minibatch ``[R]``; `chosen` ``[R]`` (bool) are its tokens."""
        return token_weights(step, chosen, self.settings.loss.average)

    def loss(self, step: Step, targets: Targets, part: Part) -> Terms:
        """A sum over the micro-batch's tokens, so that it does not depend on how the minibatch was split.

        ``-sum_i mean_t w_t surrogate_t`` over agents i, plus the KL penalty of algorithms that have it in the loss.
        """
        at, turn, agent = part.places, step.turn[part.places], step.agent[part.places]
        anchor, weight = (x[at] for x in self.corrected(step))
        surrogate = self.settings.loss(part.logprobs, anchor, targets.advantages[at], turn)
        policy = -(part.weights * weight * surrogate.objective).sum()
        seen = statistics(surrogate, part.logprobs, anchor, weight, agent, len(step.agents))
        if not self.kl_weight:
            return Terms(policy, {"policy": policy}, seen)
        kl = (part.weights * k3(part.logprobs, step.reference[at])).sum()
        return Terms(policy + self.kl_weight * kl, {"policy": policy, "kl": kl}, seen)

    def corrected(self, step: Step) -> Corrected:
        """What the ratio is against, and the weight before it; ``[R]`` each."""
        return self.settings.correction(step.old, step.behaviour)

    @property
    def kl_weight(self) -> float:
        """Weight of KL(policy || reference) in the loss; 0: it is not there."""
        return 0.0

    def learns(self, targets: Targets, chosen: Tensor) -> bool:
        """Whether a minibatch has anything to learn from; else a step would follow the optimiser's momentum alone."""
        return targets.returns is not None or bool(self.kl_weight) or bool(targets.advantages[chosen].any())
