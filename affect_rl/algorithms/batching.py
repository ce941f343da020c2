"""From turns to padded tensors: which sequences share an optimiser step, a rank and a forward pass.

Supervised training and reinforcement learning use the same functions: a demonstration is a turn without log-probs and
reward. Everything is a pure function of lengths and a seed, so that whoever plans comes to the same plan.

The answer tokens of all sequences of a step, one sequence after the other, form one flat axis ``[R]``. What is known of
each token lies there (`affect_rl.algorithms.step.Step`); a `MicroBatch` says where its tokens lie on it.
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
from affect_rl.policy.batches import Packing, TokenBatch
from affect_rl.policy.fusion import FusionShape, collate_percepts
from affect_rl.trajectory import Percept, Prompt, Turn


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    """Prompts and answers of an agent, as training sees them: one turn, or several of which each continues the last.

    Attributes:
        episode: where it comes from; sequences of one episode share a rank and a minibatch. The turns of one agent in
            one episode are a *chain*, whether they lie in one sequence or in several.
        agent: who answers.
        token_ids: prompts and answers ``[L]``.
        mask: True on the T tokens of the answers ``[L]``.
        percepts: what fills the placeholders of the prompts, in order.
        lengths: answer tokens of each of the sequence's turns ``[n]``, T in sum.
        prefix: see `Prompt.prefix`, of the first prompt.
        start: place of its first answer token on the flat axis; the others follow.
        rewards: reward of each turn ``[n]``; 0 for a demonstration.
        temperatures: at which each turn was sampled ``[n]``.
        logprobs: behaviour log-probs ``[T]``; empty for a demonstration.
        knowledge: what a critic may know beside the prompt, for each turn ``[n][F]``.
    """

    episode: int
    agent: str
    token_ids: tuple[int, ...]
    mask: tuple[bool, ...]
    percepts: tuple[Percept, ...]
    lengths: tuple[int, ...]
    prefix: int = 0
    start: int = 0
    rewards: tuple[float, ...] = (0.0,)
    temperatures: tuple[float, ...] = (1.0,)
    logprobs: tuple[float, ...] = ()
    knowledge: tuple[tuple[float, ...], ...] = ((),)

    def __len__(self) -> int:
        """Tokens of prompts and answers together."""
        return len(self.token_ids)

    @property
    def answer_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the first prompt."""
        return self.token_ids[: self.mask.index(True)]


class Row(NamedTuple):
    """Sequences that go through the model side by side; what they begin with is computed once.

    Attributes:
        sequences: of one episode and one kind.
        shared: tokens that all of them begin with, the first percept included; 0 if there is one sequence.
    """

    sequences: tuple[TokenSequence, ...]
    shared: int = 0

    @property
    def width(self) -> int:
        """Tokens of the row."""
        return self.shared + sum(len(s) - self.shared for s in self.sequences)


class Pass(NamedTuple):
    """A planned forward pass.

    Attributes:
        rows: which rows; none: a pass that only keeps this rank in step with the others.
        kind: what its sequences have in common, such as the name of their adapter.
    """

    rows: list[int]
    kind: str = ""


class MicroBatch(NamedTuple):
    """One forward pass.

    Attributes:
        tokens: the padded rows.
        places: ``[R_b]`` place of each answer token on the step's flat axis.
        weight: 1, or 0 for a pass that only keeps this rank in step with the others.
    """

    tokens: TokenBatch
    places: Tensor
    weight: float

    def to(self, device: torch.device | str) -> MicroBatch:
        return MicroBatch(self.tokens.to(device), self.places.to(device), self.weight)


# -- sequences -------------------------------------------------------------------------------------


def turns_to_sequences(episodes: Iterable[Sequence[Turn]], *, critic: bool = False) -> list[TokenSequence]:
    """The turns of episodes, played or demonstrated: chain after chain, the turns of a chain in their order.

    A turn whose prompt begins with all that its agent has read and written so far goes on in the same sequence. So
    what it has in common with the turn before is computed once.

    Args:
        episodes: turns of each episode; those that are not to be learned from left out.
        critic: put what a separate critic reads in the prompts' place; the flat axis is the same.

    Raises:
        AffectError: a turn has an empty prompt or answer, or not one log-prob for each token.
    """
    sequences: list[TokenSequence] = []
    start = 0
    for episode, turns in enumerate(episodes):
        for agent in dict.fromkeys(turn.agent for turn in turns):  # in the order of play
            chain = sorted((turn for turn in turns if turn.agent == agent), key=lambda turn: turn.number)
            first = len(sequences)
            for turn in chain:
                one = _sequence(episode, turn, start, critic=critic)
                start += one.answer_tokens
                joined = _joined(sequences[-1], one) if len(sequences) > first else None
                if joined is None:
                    sequences.append(one)
                else:
                    sequences[-1] = joined
    return sequences


def _sequence(episode: int, turn: Turn, start: int, *, critic: bool) -> TokenSequence:
    prompt: Prompt = turn.critic_prompt or turn.prompt if critic else turn.prompt
    answer, logprobs = turn.generation.token_ids, turn.generation.logprobs
    where = f"turn {turn.number} of {turn.agent} in episode {episode}"
    if not prompt.token_ids or not answer:
        raise AffectError(f"{where} has an empty prompt or answer; leave it out")
    if logprobs and len(logprobs) != len(answer):
        raise AffectError(
            f"{where} has {len(answer)} tokens but {len(logprobs)} log-probs; it needs one for each token"
        )
    return TokenSequence(
        episode, turn.agent, prompt.token_ids + answer, (False,) * len(prompt.token_ids) + (True,) * len(answer),
        prompt.percepts, (len(answer),), prompt.prefix, start, (turn.reward,), (turn.temperature,), logprobs,
        (turn.knowledge,),
    )  # fmt: skip


def _joined(before: TokenSequence, turn: TokenSequence) -> TokenSequence | None:
    """The sequence `before` gone on with by a turn whose prompt begins with all of it; None: it does not."""
    shared, percepts = len(before), len(before.percepts)
    if (
        turn.prompt[:shared] != before.token_ids
        or bool(turn.logprobs) != bool(before.logprobs)
        or not all(map(_same, turn.percepts, before.percepts))
        or len(turn.percepts) < percepts
    ):
        return None
    return TokenSequence(
        before.episode, before.agent, turn.token_ids, before.mask + turn.mask[shared:], turn.percepts,
        before.lengths + turn.lengths, before.prefix, before.start, before.rewards + turn.rewards,
        before.temperatures + turn.temperatures, before.logprobs + turn.logprobs, before.knowledge + turn.knowledge,
    )  # fmt: skip


def _same(one: Percept, other: Percept) -> bool:
    """Whether two percepts are the same features, which may have been copied on their way."""
    if one is other:
        return True
    arrays = ("audio", "video", "audio_support", "video_support")
    pairs = [(getattr(one, name), getattr(other, name)) for name in arrays]
    return one.fused == other.fused and all(
        (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs
    )


def rows_of(sequences: Sequence[TokenSequence], kinds: Sequence[str] | None = None, *, widest: int = 0) -> list[Row]:
    """The rows that sequences become, in their order.

    Args:
        sequences: those of an episode follow one another.
        kinds: kind of every sequence; different ones never share a row.
        widest: put sequences of one episode that begin alike into one row of at most so many tokens; 0: each has its
            own.
    """
    rows: list[Row] = []
    before: tuple[int, str] | None = None
    for n, sequence in enumerate(sequences):
        of = (sequence.episode, kinds[n] if kinds else "")
        alone = Row((sequence,))
        shared = _common(rows[-1].sequences[0], sequence) if widest and of == before else 0
        together = Row((*rows[-1].sequences, sequence), shared) if shared else alone
        if shared and together.width <= widest:
            rows[-1] = together
        else:
            rows.append(alone)
        before = of
    return rows


def _common(one: TokenSequence, other: TokenSequence) -> int:
    """Tokens of the prefix that two sequences have in common; 0: none, or not all of it."""
    shared = one.prefix
    if not shared or shared != other.prefix or one.token_ids[:shared] != other.token_ids[:shared]:
        return 0
    # Each needs a token of its own prompt, for that predicts its first answer token.
    apart = shared < min(len(one.prompt), len(other.prompt))
    return shared if apart and _same(one.percepts[0], other.percepts[0]) else 0


# -- plans -----------------------------------------------------------------------------------------


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


def share_episodes(tokens: Sequence[int], parts: Sequence[Sequence[int]], ranks: int) -> list[int]:
    """Give each episode to one rank for a whole step, so that ranks have about equal work in all of its parts.

    The longest first, each to the rank that has least to do in the parts that it belongs to.

    Args:
        tokens: tokens of each episode ``[E]``.
        parts: of each episode ``[E]``, the numbers of the parts that it belongs to: the minibatches of all epochs.
        ranks: how many there are.

    Returns:
        The rank of each episode ``[E]``. There are no idle ranks where there are as many episodes.
    """
    work = np.zeros((ranks, 1 + max((max(p, default=0) for p in parts), default=0)), dtype=np.int64)
    whole = np.zeros(ranks, dtype=np.int64)
    rank_of = [0] * len(tokens)
    for episode in sorted(range(len(tokens)), key=lambda e: (-tokens[e], e)):
        mine = list(parts[episode])
        rank = rank_of[episode] = int((whole + work[:, mine].sum(axis=1)).argmin())
        whole[rank] += tokens[episode]
        work[rank, mine] += tokens[episode]
    return rank_of


def schedule(
    lengths: Sequence[int], shares: Sequence[Sequence[int]], budget: int, kinds: Sequence[str] | None = None
) -> list[list[Pass]]:
    """The forward passes of each rank over its share.

    Sharded training communicates inside forward and backward, so all ranks must run equally many passes, and the n-th
    with the same adapter: ranks with fewer get empty ones.

    Args:
        lengths: tokens of every sequence of the step.
        shares: indices of each rank's sequences.
        budget: see `micro_batches`.
        kinds: kind of every sequence; different ones never share a pass. None: all are alike.
    """
    kinds = [""] * len(lengths) if kinds is None else kinds
    schedules: list[list[Pass]] = [[] for _ in shares]
    for kind in sorted({kinds[i] for share in shares for i in share}):
        plans = [micro_batches(lengths, [i for i in share if kinds[i] == kind], budget) for share in shares]
        passes = max(len(plan) for plan in plans)
        for whole, plan in zip(schedules, plans, strict=True):
            whole += [Pass(rows, kind) for rows in plan + [[]] * (passes - len(plan))]
    return schedules


def collate(rows: Sequence[Row], chosen: Sequence[int], shape: FusionShape, pad_id: int) -> MicroBatch:
    """Pad the rows `chosen`; an empty list makes a pass of weight 0 over the shortest row."""
    weight = 1.0 if chosen else 0.0
    batch = [rows[n] for n in chosen] or [min(rows, key=lambda row: row.width)]
    height, width = len(batch), max(row.width for row in batch)
    ids = torch.full((height, width), pad_id, dtype=torch.long)
    response = torch.zeros(height, width, dtype=torch.bool)
    positions, reader = torch.zeros(2, height, width, dtype=torch.long)
    for n, row in enumerate(batch):
        place = 0
        for number, sequence in enumerate(row.sequences):
            own = slice(row.shared if number else 0, len(sequence))
            here = slice(place, place + own.stop - own.start)
            ids[n, here] = torch.tensor(sequence.token_ids[own])
            response[n, here] = torch.tensor(sequence.mask[own])
            positions[n, here] = torch.arange(own.start, own.stop)
            reader[n, max(place, row.shared) : here.stop] = number + 1
            place = here.stop
    sequences = [s for row in batch for s in row.sequences]
    percepts = [p for row in batch for n, s in enumerate(row.sequences) for p in (s.percepts[1:] if n else s.percepts)]
    packed = len(sequences) > height
    tokens = TokenBatch(
        ids,
        response,
        collate_percepts(percepts, shape.audio_dim, shape.video_dim),
        Packing(positions, reader) if packed else None,
    )
    places = torch.cat([torch.arange(s.start, s.start + s.answer_tokens) for s in sequences])
    return MicroBatch(tokens, places, weight)
