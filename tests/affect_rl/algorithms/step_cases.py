"""Steps of random numbers, for tests of the mathematics."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from affect_rl.algorithms.step import Step

AGENTS = ("planner", "filter", "generator")


def random_step(
    chains: Sequence[Sequence[int]],
    *,
    agent: Sequence[int] | None = None,
    sample: Sequence[int] | None = None,
    knowledge: int = 0,
    seed: int = 0,
) -> Step:
    """A step of chains, each with the lengths of its turns; chain c is by agent c % 3 of sample c // 3 unless told."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    count = len(chains)
    lengths = torch.tensor([length for chain in chains for length in chain])
    chain = torch.tensor([c for c, turns in enumerate(chains) for _ in turns])
    chain_agent = torch.tensor([c % 3 for c in range(count)] if agent is None else list(agent))
    chain_sample = torch.tensor([c // 3 for c in range(count)] if sample is None else list(sample))
    turn = torch.arange(len(lengths)).repeat_interleave(lengths)
    tokens = int(lengths.sum())
    behaviour = draw(tokens) - 3
    return Step(
        agents=AGENTS, agent=chain_agent[chain][turn], turn=turn, turn_lengths=lengths, chain=chain,
        episode=torch.arange(count), sample=chain_sample, prompt=chain_sample * 3 + chain_agent,
        rewards=draw(len(lengths)), temperature=torch.ones(tokens), knowledge=draw(len(lengths), knowledge),
        behaviour=behaviour, old=behaviour + 0.2 * draw(tokens), reference=behaviour + 0.3 * draw(tokens),
        values=draw(tokens),
    )  # fmt: skip
