"""The critic: what it may see, and how its value is put together."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from affect_rl.algorithms.knowledge_critic import RecursiveRidge
from affect_rl.algorithms.losses import value_loss
from affect_rl.algorithms.step import Step
from affect_rl.algorithms.value_norm import ValueNorm
from affect_rl.section import Fraction, NonNegative, PositiveFloat, Section

Sees = Literal["own", "team", "privileged"]


class CriticSettings(Section):
    """The critic of algorithms that have one."""

    sees: Sees = "privileged"
    """``own``: what the acting agent sees. ``team``: also what the agents before it wrote and what came back.
    ``privileged``: also what is known in training alone, such as the true label and the score of the line played
    without the agent. Nothing that any of them sees depends on the agent's own tokens from there on."""
    kind: Literal["shared", "separate"] = "shared"
    """``shared``: a head on the policy's trunk. ``separate``: a model of its own, which reads a prompt of its own with
    what it sees."""
    lr: PositiveFloat = 3e-4
    """Learning rate of the head or the model."""
    weight: NonNegative = 0.1
    """c_v of equation 7, for targets of deviation 1: how strongly a shared head draws on the policy's trunk."""
    clip: PositiveFloat = 0.2
    """epsilon of the clipped value loss, equations 11 and 12, in deviations of the targets."""
    normalise: bool = True
    """Give the head targets of mean 0 and deviation 1 (value normalisation)."""
    forgetting: Fraction = 0.95
    """Weight of a step in the regression when the next one comes."""


class Critic:
    """The value of a state: a regression on what is known of the turn and on what a head reads in the hidden state.

    ``V_t = w_0 + w_1 knowledge + w_2 h_t`` for each agent, where h_t is the head's output before token t. The weights
    come from earlier steps alone (`RecursiveRidge`): the value of a step never knows the step's returns. The head
    learns by gradient what the regression on knowledge leaves over, so it counts for as much as it has foreseen so
    far, and not at all while it is noise.
    """

    def __init__(self, settings: CriticSettings, agents: int) -> None:
        self.settings = settings
        self._agents = agents
        self._norm = ValueNorm(agents)
        self._ridge: RecursiveRidge | None = None  # until the first step says how many features there are

    def values(self, step: Step, head: Tensor) -> Tensor:
        """``[R]`` values at the start of a step; `head` ``[R]`` is what the head said then."""
        return self._regression(step).predict(_features(step, head), step.agent)

    def learn(self, step: Step, head: Tensor, returns: Tensor) -> Tensor:
        """Take in a step's returns ``[R]``, after its values were used; targets ``[R]`` for the head."""
        ridge = self._regression(step)
        row_weights = 1 / step.turn_lengths[step.turn].to(returns)  # a turn counts once, however long
        ridge.update(_features(step, head), returns, step.agent, row_weights)
        left = returns - ridge.predict(_features(step, torch.zeros_like(head)), step.agent)
        if not self.settings.normalise:
            return left
        self._norm.update(left, step.agent)
        return self._norm.normalise(left, step.agent)

    def loss(self, head: Tensor, old_head: Tensor, targets: Tensor, tokens: float) -> Tensor:
        """Clipped value loss of a micro-batch's head ``[R_b]``, over the minibatch's `tokens`."""
        return value_loss(head, old_head, targets, tokens, self.settings.clip)

    def _regression(self, step: Step) -> RecursiveRidge:
        features = step.knowledge.shape[1] + 1
        if self._ridge is None:
            self._ridge = RecursiveRidge(self._agents, features, forgetting=self.settings.forgetting)
        return self._ridge

    def state_dict(self) -> dict[str, Tensor]:
        """For checkpoints."""
        parts = {"norm": self._norm.state_dict()} | ({"ridge": self._ridge.state_dict()} if self._ridge else {})
        return {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        def part(name: str) -> dict[str, Tensor]:
            return {n.removeprefix(f"{name}."): t for n, t in state.items() if n.startswith(f"{name}.")}

        self._norm.load_state_dict(part("norm"))
        if ridge := part("ridge"):
            features = ridge["weights"].shape[-1] - 1
            self._ridge = RecursiveRidge(self._agents, features, forgetting=self.settings.forgetting)
            self._ridge.load_state_dict(ridge)


def _features(step: Step, head: Tensor) -> Tensor:
    """``[R, F + 1]``."""
    return torch.cat([step.knowledge[step.turn], head[:, None]], dim=1)
