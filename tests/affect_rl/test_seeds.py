"""Seeds that follow from a seed."""

from __future__ import annotations

from affect_rl.seeds import derived_seed


def test_seeds_of_episodes_differ() -> None:
    seeds = {derived_seed(seed, "train", step, place) for seed in range(3) for step in range(20) for place in range(20)}
    assert len(seeds) == 3 * 20 * 20


def test_a_seed_is_the_same_in_every_process() -> None:
    assert (derived_seed(0), derived_seed(3, "train", 5, 7, 0)) == (872845860, 3322573443)
