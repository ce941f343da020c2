"""Running mean and deviation of what a value head is to predict, agent by agent."""

from __future__ import annotations

import torch
from torch import Tensor

from affect_rl.algorithms.step import sum_by


class ValueNorm:
    """Debiased moving averages of targets and their squares (MAPPO, arXiv 2103.01955, section 5.1).

    A head learns best on targets of deviation 1, and agents differ in the scale of their returns. Where an agent does
    not play, its averages stay as they are.
    """

    def __init__(self, agents: int, decay: float = 0.9) -> None:
        """`decay`: how much of an average is left after a step."""
        self._decay = decay
        self._moments = torch.zeros(agents, 2, dtype=torch.float64)
        self._seen = torch.zeros(agents, dtype=torch.float64)  # weight of what the averages hold: 1 - decay ** steps

    def update(self, targets: Tensor, agent: Tensor) -> None:
        """Take in a step's targets ``[R]``; `agent` ``[R]`` says whose they are."""
        x, agent, agents = targets.detach().double().cpu(), agent.cpu(), len(self._seen)
        count = sum_by(torch.ones_like(x), agent, agents)
        means = sum_by(torch.stack([x, x**2], dim=-1), agent, agents) / count.clamp(min=1)[:, None]
        keep = torch.where(count > 0, self._decay, 1.0).double()
        self._moments = keep[:, None] * self._moments + (1 - keep)[:, None] * means
        self._seen = keep * self._seen + (1 - keep)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each agent, ``[A]``; 0 and 1 before it has played."""
        seen = self._seen > 0
        first, second = (self._moments / self._seen.clamp(min=1e-12)[:, None]).unbind(-1)
        deviation = (second - first**2).clamp(min=1e-4).sqrt()
        return torch.where(seen, first, 0.0), torch.where(seen, deviation, 1.0)

    def normalise(self, targets: Tensor, agent: Tensor) -> Tensor:
        """Targets ``[R]`` with mean 0 and deviation 1, as far as the averages know them."""
        mean, deviation = (x.to(targets) for x in self.statistics())
        return (targets - mean[agent]) / deviation[agent]

    def state_dict(self) -> dict[str, Tensor]:
        return {"moments": self._moments, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._moments, self._seen = state["moments"].clone(), state["seen"].clone()
