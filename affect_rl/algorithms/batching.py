"""From turns to tensors: which sequences share an optimiser step, a rank and a forward pass.

Supervised training and MAPPO use the same functions: a demonstration is a turn without log-probs and
reward. Everything is a pure function of lengths and a seed, so that every rank computes the whole plan
by itself and all ranks agree without a word.

The answer tokens of all sequences of a step, one sequence after the other, form one flat axis ``[R]``.
What is known of each token lives there (`FlatTokens`); a `MicroBatch` says where its tokens lie on it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from affect_rl.errors import AffectError
from affect_rl.policy.fusion import FusionShape, collate_percepts
from affect_rl.policy.model import TokenBatch
from affect_rl.trajectory import ROLES, Prompt, Role, Turn


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    """A prompt and its answer, as training sees them.

    Attributes:
        group: sequences of one group (an episode) always share a minibatch.
        role: which agent answers.
        prompt: what it sees; at least one token.
        response: the answer's token ids ``[T]``, at least one.
        logprobs: behaviour log-probs ``[T]``; empty for a demonstration.
        reward: terminal reward; 0 for a demonstration.
    """

    group: int
    role: Role
    prompt: Prompt
    response: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    reward: float = 0.0

    def __post_init__(self) -> None:
        if not self.prompt.token_ids or not self.response:
            raise AffectError(f"a {self.role} turn of group {self.group} has an empty prompt or answer; leave it out")
        if self.logprobs and len(self.logprobs) != len(self.response):
            counts = f"{len(self.response)} tokens but {len(self.logprobs)} log-probs"
            raise AffectError(f"a {self.role} turn of group {self.group} has {counts}; it needs one for each token")

    def __len__(self) -> int:
        """Tokens of prompt and answer together."""
        return len(self.prompt.token_ids) + len(self.response)


class FlatTokens(NamedTuple):
    """What is known of the R answer tokens of S sequences, one sequence after the other.

    Attributes:
        logprobs: ``[R]`` behaviour log-probs (0 for demonstrations).
        roles: ``[R]`` index into `ROLES`.
        lengths: ``[S]`` answer tokens of each sequence.
        rewards: ``[S]`` terminal rewards.
    """

    logprobs: Tensor
    roles: Tensor
    lengths: Tensor
    rewards: Tensor


class MicroBatch(NamedTuple):
    """One forward pass.

    Attributes:
        tokens: the padded sequences.
        places: ``[R_b]`` place of each answer token on the step's flat axis.
        weight: 1, or 0 for a pass that only keeps this rank in step with the others.
    """

    tokens: TokenBatch
    places: Tensor
    weight: float

    def to(self, device: torch.device | str) -> MicroBatch:
        return MicroBatch(self.tokens.to(device), self.places.to(device), self.weight)


def turns_to_sequences(episodes: Iterable[Sequence[Turn]]) -> list[TokenSequence]:
    """The turns of episodes, played or demonstrated; each episode is a group of its own."""
    return [
        TokenSequence(group, turn.role, turn.prompt, turn.generation.token_ids, turn.generation.logprobs, turn.reward)
        for group, turns in enumerate(episodes)
        for turn in turns
    ]


def flatten(sequences: Sequence[TokenSequence]) -> FlatTokens:
    """Put the answer tokens of all sequences on one axis."""
    lengths = torch.tensor([len(s.response) for s in sequences], dtype=torch.long)
    roles = torch.tensor([ROLES.index(s.role) for s in sequences], dtype=torch.long)
    logprobs = [s.logprobs or (0.0,) * len(s.response) for s in sequences]
    return FlatTokens(
        torch.tensor([p for row in logprobs for p in row], dtype=torch.float32),
        roles.repeat_interleave(lengths),
        lengths,
        torch.tensor([s.reward for s in sequences], dtype=torch.float32),
    )


def minibatches(groups: Sequence[int], count: int, seed: Sequence[int]) -> list[list[int]]:
    """Split sequences into `count` random minibatches, whole groups at a time.

    Args:
        groups: the group of each sequence.
        count: minibatches; group counts differ by at most one between them.
        seed: entropy of the shuffle; the same seed gives the same split.

    Returns:
        Indices of sequences, ascending, for each minibatch.

    Raises:
        AffectError: there are fewer groups than minibatches.
    """
    names = np.unique(np.asarray(groups))
    if len(names) < count:
        raise AffectError(f"{len(names)} samples cannot fill learner.minibatches={count}; lower it or play more")
    part_of: dict[int, int] = {}
    for part, chosen in enumerate(np.array_split(np.random.default_rng(list(seed)).permutation(names), count)):
        part_of |= dict.fromkeys(chosen.tolist(), part)
    parts: list[list[int]] = [[] for _ in range(count)]
    for index, group in enumerate(groups):
        parts[part_of[group]].append(index)
    return parts


def group_batches(groups: Sequence[int], size: int, seed: int) -> Iterator[list[int]]:
    """Endless random batches of `size` groups: epoch after epoch, each in an order of its own.

    The rest of an epoch that fills no batch is left to the next; fewer groups than `size` are one batch.

    Yields:
        Indices of sequences, ascending.
    """
    for epoch in itertools.count():
        count = max(1, len(set(groups)) // size)
        names = np.random.default_rng([seed, epoch]).permutation(np.unique(np.asarray(groups)))
        for part in range(count):
            chosen = set(names[part * size : (part + 1) * size].tolist())
            yield [index for index, group in enumerate(groups) if group in chosen]


def micro_batches(lengths: Sequence[int], chosen: Sequence[int], budget: int) -> list[list[int]]:
    """Pack sequences into forward passes of at most `budget` padded tokens.

    Longest first: neighbours have like lengths, hence little padding, and memory peaks at once.

    Args:
        lengths: tokens of every sequence of the step.
        chosen: indices of those to pack.
        budget: rows times the longest row.

    Raises:
        AffectError: a sequence alone exceeds the budget.
    """
    ordered = sorted(chosen, key=lambda i: (-lengths[i], i))
    if ordered and lengths[ordered[0]] > budget:
        longest = lengths[ordered[0]]
        raise AffectError(f"a sequence of {longest} tokens exceeds tokens_per_microbatch={budget}; raise it")
    batches: list[list[int]] = []
    for index in ordered:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def split_ranks(lengths: Sequence[int], chosen: Sequence[int], ranks: int) -> list[list[int]]:
    """Share sequences out so that ranks get about equally many tokens: the longest left to the idlest."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for index in sorted(chosen, key=lambda i: (-lengths[i], i)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(index)
        heapq.heappush(loads, (load + lengths[index], rank))
    return shares


def schedule(lengths: Sequence[int], chosen: Sequence[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """The forward passes of each rank for one optimiser step.

    Sharded training communicates inside forward and backward, so all ranks must run equally many
    passes: ranks with fewer get empty ones at the end.
    """
    plans = [micro_batches(lengths, share, budget) for share in split_ranks(lengths, chosen, ranks)]
    passes = max(len(plan) for plan in plans)
    return [plan + [[]] * (passes - len(plan)) for plan in plans]


def collate(
    sequences: Sequence[TokenSequence], flat: FlatTokens, rows: Sequence[int], shape: FusionShape, pad_id: int
) -> MicroBatch:
    """Pad the sequences `rows`; an empty list makes a pass of weight 0 over the shortest sequence."""
    weight = 1.0 if rows else 0.0
    rows = rows or [min(range(len(sequences)), key=lambda i: len(sequences[i]))]
    chosen = [sequences[row] for row in rows]
    width = max(map(len, chosen))
    ids = torch.full((len(chosen), width), pad_id, dtype=torch.long)
    response = torch.zeros(len(chosen), width, dtype=torch.bool)
    for row, sequence in enumerate(chosen):
        ids[row, : len(sequence)] = torch.tensor(sequence.prompt.token_ids + sequence.response)
        response[row, len(sequence.prompt.token_ids) : len(sequence)] = True
    percepts = collate_percepts([p for s in chosen for p in s.prompt.percepts], shape.audio_dim, shape.video_dim)
    ends = flat.lengths.cumsum(0)
    places = torch.cat([torch.arange(int(ends[row] - flat.lengths[row]), int(ends[row])) for row in rows])
    return MicroBatch(TokenBatch(ids, response, percepts), places, weight)
