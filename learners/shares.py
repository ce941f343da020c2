"""Which rank learns from what: a step's episodes are dealt out once, and each rank gets its own and no others.

Pure functions of lengths and a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from affect_rl.algorithms.batching import (
    Pass,
    Row,
    TokenSequence,
    minibatches,
    rows_of,
    schedule,
    share_episodes,
    turns_to_sequences,
)
from affect_rl.algorithms.step import Step, flatten
from affect_rl.config.learning import LearnerConfig
from affect_rl.errors import AffectError
from affect_rl.trajectory import Trajectory


class Reading(NamedTuple):
    """What one model reads of a rank's share, and in which forward passes.

    Attributes:
        rows: the rank's own.
        whole: passes over all of them.
        minibatches: passes of each minibatch.
    """

    rows: list[Row]
    whole: list[Pass]
    minibatches: list[list[Pass]]


class Minibatch(NamedTuple):
    """Behind one optimiser step, on all ranks together: the numbers of its episodes, and fused percepts in them."""

    episodes: list[int]
    percepts: int


class Share(NamedTuple):
    """A rank's share of a step.

    Attributes:
        actor: what the policy reads.
        critic: what a separate critic reads; None: there is none.
        minibatches: of all epochs, the same on all ranks.
        tokens: prompts and answers of all ranks.
    """

    actor: Reading
    critic: Reading | None
    minibatches: list[Minibatch]
    tokens: int


def deal(
    episodes: Sequence[Trajectory],
    agents: Sequence[str],
    settings: LearnerConfig,
    seed: Sequence[int],
    *,
    separate_critic: bool = False,
    adapters: Mapping[str, str] | None = None,
) -> tuple[Step, list[Share]]:
    """What all ranks know of a step, and the share of each.

    Args:
        episodes: of the step.
        agents: those that learn, in the order of play.
        settings: ranks, epochs, minibatches (at most one a sample: a sample may come twice, or be left out), tokens in
            a pass, and whether the turns of an episode share rows.
        seed: entropy of the minibatches.
        separate_critic: a separate critic reads too.
        adapters: the adapter of each agent; passes of the policy are of one adapter each. None: there is one.

    Raises:
        AffectError: there is nothing to learn from.
    """
    turns = [[turn for turn in episode.turns if turn.trained] for episode in episodes]
    sequences = turns_to_sequences(turns)
    if not sequences:
        raise AffectError("no turn of these episodes is trained; let an agent of `team` train")
    samples = [episode.sample_id for episode in episodes]
    step = flatten(sequences, agents, samples)
    first = {sample: place for place, sample in reversed([*enumerate(samples)])}
    groups = [first[samples[s.episode]] for s in sequences]  # a sample's copies stay together
    parts = [
        part
        for epoch in range(settings.epochs)
        for part in minibatches(groups, min(settings.minibatches, len(set(groups))), (*seed, epoch))
    ]  # fmt: skip
    plan = [
        Minibatch(
            sorted({sequences[i].episode for i in part}), sum(p.fused for i in part for p in sequences[i].percepts)
        )
        for part in parts
    ]
    rank_of = _ranks(sequences, plan, settings.workers)
    actor = _readings(sequences, plan, rank_of, settings, adapters)
    critic: list[Reading] | list[None] = [None] * settings.workers
    if separate_critic:
        critic = _readings(turns_to_sequences(turns, critic=True), plan, rank_of, settings)
    tokens = sum(map(len, sequences))
    return step, [Share(a, c, plan, tokens) for a, c in zip(actor, critic, strict=True)]


def _ranks(sequences: Sequence[TokenSequence], plan: Sequence[Minibatch], ranks: int) -> dict[int, int]:
    """The rank of each episode."""
    tokens: dict[int, int] = {}
    for s in sequences:
        tokens[s.episode] = tokens.get(s.episode, 0) + len(s)
    parts = {episode: [n for n, part in enumerate(plan) if episode in part.episodes] for episode in tokens}
    return dict(zip(tokens, share_episodes(list(tokens.values()), list(parts.values()), ranks), strict=True))


def _readings(
    sequences: Sequence[TokenSequence],
    plan: Sequence[Minibatch],
    rank_of: dict[int, int],
    settings: LearnerConfig,
    adapters: Mapping[str, str] | None = None,
) -> list[Reading]:
    """What each rank reads of these sequences."""
    widest = settings.tokens_per_microbatch if settings.share_prefix else 0
    rows = rows_of(sequences, [adapters[s.agent] for s in sequences] if adapters else None, widest=widest)
    kinds = [adapters[row.sequences[0].agent] for row in rows] if adapters else None
    episodes_of = [row.sequences[0].episode for row in rows]
    shares: list[list[int]] = [[] for _ in range(settings.workers)]
    for i, episode in enumerate(episodes_of):
        shares[rank_of[episode]].append(i)
    lengths = [row.width for row in rows]
    shortest = min(range(len(rows)), key=lengths.__getitem__)
    kept = [share or [shortest] for share in shares]  # passes of weight 0 need something to run over

    def passes(episodes: Sequence[int]) -> list[list[Pass]]:
        chosen = set(episodes)
        mine = [[i for i in share if episodes_of[i] in chosen] for share in shares]
        plans = schedule(lengths, mine, settings.tokens_per_microbatch, kinds)
        return [
            [Pass([own.index(i) for i in chosen_rows], kind) for chosen_rows, kind in plan]
            for plan, own in zip(plans, kept, strict=True)
        ]

    whole = passes(list(rank_of))
    parts = [passes(part.episodes) for part in plan]
    return [
        Reading([rows[i] for i in kept[rank]], whole[rank], [part[rank] for part in parts])
        for rank in range(settings.workers)
    ]
