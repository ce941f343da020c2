"""All that is known of the tokens of one training step, as tensors."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from affect_rl.errors import AffectError

if TYPE_CHECKING:
    from affect_rl.algorithms.batching import TokenSequence


@dataclass(frozen=True)
class Step:
    """R answer tokens of N turns in C chains by A agents.

    The tokens of a turn are contiguous, and so are the turns of a chain: those of one agent in one episode, in their
    order. Credit runs along chains.

    Attributes:
        agents: names of the agents, in the order of play ``[A]``.
        agent: ``[R]`` index of the agent that wrote the token.
        turn: ``[R]`` index of its turn.
        turn_lengths: ``[N]`` tokens of each turn, all positive.
        chain: ``[N]`` index of each turn's chain.
        episode: ``[C]`` index of each chain's episode.
        sample: ``[C]`` index of each chain's sample: copies of a sample share it.
        prompt: ``[C]`` index of the prompt that the chain begins with: chains that share it answer the same question.
        rewards: ``[N]`` reward of each turn, paid at its last token.
        temperature: ``[R]`` at which the token was sampled.
        knowledge: ``[N, F]`` what a critic may know of each turn beside its prompt.
        behaviour: ``[R]`` log-probs under the engine's policy, which sampled the tokens.
        old: ``[R]`` log-probs under the learner's policy at the start of the step; the behaviour's until the learner
            has looked.
        reference: ``[R]`` log-probs under the frozen reference; likewise.
        values: ``[R]`` the critic's value of the state before the token; None: there is no critic.
    """

    agents: tuple[str, ...]
    agent: Tensor
    turn: Tensor
    turn_lengths: Tensor
    chain: Tensor
    episode: Tensor
    sample: Tensor
    prompt: Tensor
    rewards: Tensor
    temperature: Tensor
    knowledge: Tensor
    behaviour: Tensor
    old: Tensor
    reference: Tensor
    values: Tensor | None = None

    @cached_property
    def chain_lengths(self) -> Tensor:
        """``[C]`` tokens of each chain."""
        return self.turn_lengths.new_zeros(len(self.episode)).index_add(0, self.chain, self.turn_lengths)

    @cached_property
    def turn_agent(self) -> Tensor:
        """``[N]`` index of each turn's agent."""
        return self.agent[self.turn_lengths.cumsum(0) - 1]

    @cached_property
    def turn_number(self) -> Tensor:
        """``[N]`` place of each turn in its chain, from 0."""
        turns = torch.bincount(self.chain, minlength=len(self.episode))
        return torch.arange(len(self.chain), device=self.chain.device) - (turns.cumsum(0) - turns)[self.chain]

    @cached_property
    def chain_agent(self) -> Tensor:
        """``[C]`` index of each chain's agent."""
        return self.agent[self.chain_lengths.cumsum(0) - 1]

    @cached_property
    def chain_rewards(self) -> Tensor:
        """``[C]`` sum of the rewards of each chain."""
        return self.rewards.new_zeros(len(self.episode)).index_add(0, self.chain, self.rewards)

    def over_chains(self, x: Tensor) -> Tensor:
        """Sums over the tokens of each chain, ``[R]`` to ``[C]``."""
        return x.new_zeros(len(self.episode)).index_add(0, self.chain[self.turn], x)

    def over_turns(self, x: Tensor) -> Tensor:
        """Sums over the tokens of each turn, ``[R]`` to ``[N]``."""
        return x.new_zeros(len(self.chain)).index_add(0, self.turn, x)

    def over_agents(self, x: Tensor) -> Tensor:
        """Sums over each agent's tokens, ``[R, ...]`` to ``[A, ...]``."""
        return sum_by(x, self.agent, len(self.agents))

    def by_turn(self, x: Tensor) -> dict[tuple[int, str, int], list[float]]:
        """Numbers of the tokens ``[R]`` by the turn that they stand in: its episode, its agent, which of its turns."""
        episodes, agents = self.episode[self.chain].tolist(), [self.agents[n] for n in self.turn_agent.tolist()]
        turns = zip(episodes, agents, self.turn_number.tolist(), strict=True)
        return dict(zip(turns, [part.tolist() for part in x.split(self.turn_lengths.tolist())], strict=True))

    def to(self, device: torch.device | str) -> Step:
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in held.items() if isinstance(x, Tensor)}
        return replace(self, **moved)


def sum_by(x: Tensor, index: Tensor, count: int) -> Tensor:
    """Sums of the rows of `x` ``[n, ...]`` that share an index: ``[count, ...]``."""
    return x.new_zeros(count, *x.shape[1:]).index_add(0, index, x)


def flatten(
    sequences: Sequence[TokenSequence], agents: Sequence[str], samples: Sequence[Hashable] | None = None
) -> Step:
    """Put the answer tokens of all sequences of a step on one axis.

    Args:
        sequences: all of them, as `turns_to_sequences` orders them.
        agents: names of the agents, in the order of play.
        samples: what tells the samples of the episodes apart; None: each episode has one of its own.

    Raises:
        AffectError: a sequence is by another agent.
    """
    if strange := {s.agent for s in sequences} - set(agents):
        raise AffectError(f"turns of {', '.join(sorted(strange))} to learn from, but {', '.join(agents)} are trained")
    samples = range(1 + max((s.episode for s in sequences), default=0)) if samples is None else samples
    firsts: dict[tuple[int, str], TokenSequence] = {}  # the sequence that each chain begins with
    for s in sequences:
        firsts.setdefault((s.episode, s.agent), s)
    places = {chain: place for place, chain in enumerate(firsts)}
    turns = [(s, n) for s in sequences for n in range(len(s.lengths))]
    lengths = torch.tensor([s.lengths[n] for s, n in turns], dtype=torch.long)
    agent = torch.tensor([agents.index(s.agent) for s, _ in turns], dtype=torch.long)
    width = max((len(s.knowledge[n]) for s, n in turns), default=0)
    behaviour = torch.tensor([p for s in sequences for p in s.logprobs or (0.0,) * s.answer_tokens])
    # A turn that was played greedily has log-probs at temperature 1.
    temperature = torch.tensor([s.temperatures[n] or 1.0 for s, n in turns])
    return Step(
        agents=tuple(agents),
        agent=agent.repeat_interleave(lengths),
        turn=torch.arange(len(turns)).repeat_interleave(lengths),
        turn_lengths=lengths,
        chain=torch.tensor([places[s.episode, s.agent] for s, _ in turns], dtype=torch.long),
        episode=torch.tensor([episode for episode, _ in firsts], dtype=torch.long),
        sample=_numbered([samples[episode] for episode, _ in firsts]),
        prompt=_numbered([_question(s, samples[s.episode]) for s in firsts.values()]),
        rewards=torch.tensor([s.rewards[n] for s, n in turns]),
        temperature=temperature.repeat_interleave(lengths),
        knowledge=torch.tensor(
            [s.knowledge[n] + (0.0,) * (width - len(s.knowledge[n])) for s, n in turns]
        ).reshape(len(turns), width),
        behaviour=behaviour,
        old=behaviour,
        reference=behaviour,
    )  # fmt: skip


def _question(sequence: TokenSequence, sample: Hashable) -> Hashable:
    """What tells first prompts apart.

    The same token ids are not enough: the features of a clip stand behind placeholders, and other clips may have the
    same words; and dropout may withhold a modality from one of a sample's episodes.
    """
    shown = tuple((p.audio is None, p.video is None) for p in sequence.percepts)
    return sample, sequence.agent, sequence.prompt, shown


def _numbered(names: Sequence[Hashable]) -> Tensor:
    """Equal names become equal numbers."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names], dtype=torch.long)
