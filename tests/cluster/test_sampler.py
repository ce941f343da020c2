"""The sampler is a function of seed and step, and deals every sample once an epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.sampler import StepSampler


@given(st.integers(1, 20), st.integers(1, 15), st.integers(0, 5))
def test_every_sample_is_dealt_once_an_epoch(samples: int, per_step: int, seed: int) -> None:
    sampler = StepSampler(range(samples), per_step, seed)  # type: ignore[arg-type]
    dealt = [s for step in range(3 * samples) for s in sampler.batch(step)]
    for epoch in range(3):
        assert set(Counter(dealt[epoch * samples : (epoch + 1) * samples]).values()) == {1}


def test_a_step_is_the_same_whenever_it_is_asked_for() -> None:
    one, other = (StepSampler(range(50), 8, seed=3) for _ in range(2))  # type: ignore[arg-type]
    forwards = [one.batch(step) for step in range(20)]
    assert [other.batch(step) for step in reversed(range(20))] == forwards[::-1]
    assert StepSampler(range(50), 8, seed=4).batch(0) != forwards[0]  # type: ignore[arg-type]


class CountingSampler(StepSampler):
    """Remembers which epochs' orders it drew."""

    def __init__(self, samples: int, per_step: int) -> None:
        super().__init__(range(samples), per_step, seed=3)  # type: ignore[arg-type]
        self.drawn: list[int] = []

    def _order(self, epoch: int) -> np.ndarray:
        self.drawn.append(epoch)
        return super()._order(epoch)


def test_a_step_draws_the_order_of_an_epoch_once() -> None:
    sampler = CountingSampler(samples=10, per_step=8)
    assert sampler.batch(0) == [9, 6, 0, 2, 1, 4, 7, 5] and sampler.drawn == [0]
    assert sampler.batch(1) == [3, 8, 4, 1, 2, 8, 5, 0] and sorted(sampler.drawn) == [0, 0, 1]


def test_copies_lie_next_to_each_other() -> None:
    sampler = StepSampler(range(10), 6, seed=3, copies=3)  # type: ignore[arg-type]
    dealt = [s for step in range(5) for s in sampler.batch(step)]
    assert dealt == [s for s in dealt[::3] for _ in range(3)]
    assert sorted(dealt[::3]) == list(range(10))
