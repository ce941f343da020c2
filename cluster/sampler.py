"""Which samples a step is played on: a pure function of the seed and the step, so that resuming needs no state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from affect_rl.sample import AffectSample


class StepSampler:
    """Deals the training samples in a new random order each epoch; an epoch's remainder opens the next step.

    Args:
        samples: the training split.
        per_step: episodes in a step.
        seed: of the orders.
        copies: episodes of each sample in a step; divides `per_step`.
    """

    def __init__(self, samples: Sequence[AffectSample], per_step: int, seed: int, copies: int = 1) -> None:
        self.samples, self.per_step, self.seed, self.copies = samples, per_step // copies, seed, copies

    def batch(self, step: int) -> list[AffectSample]:
        """The samples of a step (from 0), copies next to each other."""
        positions = range(step * self.per_step, (step + 1) * self.per_step)
        places = [divmod(position, len(self.samples)) for position in positions]
        orders = {epoch: self._order(epoch) for epoch in {epoch for epoch, _ in places}}
        return [self.samples[int(orders[epoch][place])] for epoch, place in places for _ in range(self.copies)]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.samples))
