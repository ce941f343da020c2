"""Recursive ridge regression: the part of a critic that learns from numbers, at once.

What a critic may know beside the prompt are some forty numbers of a turn (`Turn.knowledge`), and a step has a few
hundred turns. Gradient steps at a policy's learning rate need hundreds of steps to find in them what least squares
finds in one. So each agent has a linear regression of returns on knowledge in closed form: LSTD(1) (Boyan, 2002), with
exponential forgetting, because the policy moves.

How strongly to shrink depends on how much there is to know, which differs from agent to agent and is not known
beforehand. Several strengths are fitted side by side, and an agent is judged by the one that would have foreseen its
returns best so far (prequential error, Dawid 1984): a step's returns are compared with what earlier steps said, and
only then learned from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PENALTIES = (1e9, 1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)
"""Strengths of shrinkage, in turns, the strongest first: it is the one without experience, and says the mean."""


class RecursiveRidge:
    """For each of A agents ``y = w_0 + w x``, from weighted sums of past steps. Deterministic; on the CPU in float64.

    ``w = argmin sum_n c_n (y_n - w_0 - w x_n)^2 + penalty sum_f (w_f d_f)^2`` with the deviations d of the features:
    they count alike whatever their scale, and the constant is not shrunk.
    """

    def __init__(
        self, agents: int, features: int, *, forgetting: float, penalties: Sequence[float] = PENALTIES
    ) -> None:
        """`forgetting`: weight of a step's rows when the next one comes; 1: all steps count alike."""
        size = features + 2  # 1, x, y
        self._forgetting, self._penalties = forgetting, tuple(penalties)
        self._sums = torch.zeros(agents, size, size, dtype=torch.float64)
        self._errors = torch.zeros(agents, len(self._penalties), dtype=torch.float64)
        self._weights = torch.zeros(agents, len(self._penalties), features + 1, dtype=torch.float64)

    @property
    def weights(self) -> Tensor:
        """``[A, 1 + F]`` constant and weights in use."""
        return self._weights[torch.arange(len(self._errors)), self._errors.argmin(dim=1)]

    def predict(self, features: Tensor, agent: Tensor) -> Tensor:
        """``[n]`` from features ``[n, F]`` and their agents ``[n]``; 0 before the first update."""
        weights = self.weights[agent.cpu()]
        x = features.detach().double().cpu()
        return (weights[:, 0] + (weights[:, 1:] * x).sum(dim=-1)).to(features)

    def update(self, features: Tensor, targets: Tensor, agent: Tensor, row_weights: Tensor) -> None:
        """Judge what is known by a step's rows, then learn from them.

        Args:
            features: ``[n, F]``.
            targets: ``[n]``.
            agent: ``[n]``.
            row_weights: ``[n]`` how much each row counts.
        """
        x, y, c = (t.detach().double().cpu() for t in (features, targets, row_weights))
        rows, agent = torch.cat([torch.ones_like(y)[:, None], x, y[:, None]], dim=1), agent.cpu()
        for one in agent.unique().tolist():
            mine, counts = rows[agent == one], c[agent == one, None]
            if self._sums[one, 0, 0] > 0:
                self._errors[one] = self._forgetting * self._errors[one] + self._left_over(one, mine, counts)
            self._sums[one] = self._forgetting * self._sums[one] + (mine * counts).T @ mine
            self._weights[one] = torch.stack([_ridge(self._sums[one], penalty) for penalty in self._penalties])

    def _left_over(self, one: int, rows: Tensor, counts: Tensor) -> Tensor:
        """``[penalties]`` spread of what the weights of each penalty leave of an agent's returns.

        Not their mean: a constant that all of an agent's advantages have in common is taken out of them later.
        """
        left = rows[:, -1:] - rows[:, :-1] @ self._weights[one].T
        return (counts * (left - (counts * left).sum(0) / counts.sum()) ** 2).sum(0)

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self._sums, "errors": self._errors, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._sums, self._errors, self._weights = (state[name].clone() for name in ("sums", "errors", "weights"))


def _ridge(sums: Tensor, penalty: float) -> Tensor:
    """Constant and weights ``[1 + F]`` from the second moments of (1, x, y), ``[F + 2, F + 2]``."""
    count, means = sums[0, 0], sums[0, 1:] / sums[0, 0]
    centred = sums[1:, 1:] - count * torch.outer(means, means)
    spread = (centred.diagonal()[:-1] / count).clamp(min=0).sqrt()
    used = spread > 1e-6 * (1 + means[:-1].abs())  # what has never varied explains nothing
    scale = torch.where(used, 1 / spread.clamp(min=1e-12), 0.0)
    gram = scale[:, None] * centred[:-1, :-1] * scale + penalty * torch.eye(len(scale), dtype=sums.dtype)
    weights = scale * torch.linalg.solve(gram, scale * centred[:-1, -1])
    return torch.cat([(means[-1] - weights @ means[:-1])[None], weights])
