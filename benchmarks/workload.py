"""Random episodes on a tiny policy: work for the learner's tests and benchmarks without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from affect_rl.algorithms.batching import collate, micro_batches, rows_of, turns_to_sequences
from affect_rl.algorithms.step import flatten
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.tokens import tiny_language_model, train_tokenizer
from affect_rl.team.knowledge import NAMES
from affect_rl.trajectory import Generation, Output, Percept, Prompt, Trajectory, Turn

AGENTS = ("planner", "filter", "generator")
AUDIO_DIM, VIDEO_DIM = 6, 5
WORDS = ("a calm voice", "she laughs loudly", "he frowns at the news", "trembling hands and a quiet answer")


def tiny_policy(
    *, layers: int = 2, dim: int = 32, heads: int = 2, fusion_dim: int = 16, vocabulary: int = 300, seed: int = 0
) -> AffectPolicy:
    """A policy of random weights; the value head is random too, so that values differ."""
    tokenizer = train_tokenizer(WORDS, 300)
    # Enough rare words to give the vocabulary, and with it the head, the asked size.
    tokenizer.add_tokens([f"word{number}" for number in range(vocabulary - len(tokenizer))])
    model = tiny_language_model(tokenizer, layers=layers, dim=dim, heads=heads, context=2048, seed=seed)
    policy = AffectPolicy.create(
        model,
        tokenizer,
        audio_dim=AUDIO_DIM,
        video_dim=VIDEO_DIM,
        dim=fusion_dim,
        heads=2,
        soft_tokens=2,
        experts=4,
        top_k=2,
    )
    torch.nn.init.normal_(policy.value_head.weight, std=0.02)
    return policy.eval()


def random_episodes(
    policy: AffectPolicy,
    count: int,
    *,
    seed: int = 0,
    prompt: tuple[int, int] = (8, 24),
    answer: tuple[int, int] = (3, 9),
    temperature: float = 1.0,
    agents: Sequence[str] = AGENTS,
    copies: int = 1,
    rounds: int = 1,
    knowledge: int = len(NAMES),
    critic_prompts: bool = False,
) -> list[Trajectory]:
    """Episodes of random tokens, with the policy's own log-probs as behaviour log-probs.

    Args:
        policy: whose vocabulary, fusion sizes and log-probs to use.
        count: episodes.
        seed: of lengths, tokens, features and rewards.
        prompt: range of prompt lengths in tokens, soft tokens included.
        answer: range of answer lengths in tokens.
        temperature: of the log-probs.
        agents: who plays; the last one's percepts are fused.
        copies: episodes of each sample; the first agent's first prompt is the same in all of them.
        rounds: turns of the first agent; each but the first goes on where the one before ended.
        knowledge: numbers that a critic may know of a turn; the first one is close to the reward.
        critic_prompts: give a separate critic three tokens more than the agent.
    """
    rng = np.random.default_rng(seed)
    episodes = []
    for number in range(count):
        sample = number // copies
        shared = np.random.default_rng([seed, sample])
        turns = [_random_turn(policy, agents[0], shared, rng, prompt, answer, fused=len(agents) == 1)]
        for round_ in range(1, rounds):
            turns.append(_next_turn(policy, turns[-1], rng, round_, answer))
        turns += [
            _random_turn(policy, agent, rng, rng, prompt, answer, fused=agent == agents[-1]) for agent in agents[1:]
        ]
        turns = [replace(t, knowledge=_random_knowledge(t.reward, knowledge, rng)) for t in turns]
        turns = [replace(t, temperature=temperature) for t in turns]
        if critic_prompts:
            told = [Prompt(t.prompt.token_ids + _words(policy, rng, 3), t.prompt.percepts) for t in turns]
            turns = [replace(t, critic_prompt=prompt) for t, prompt in zip(turns, told, strict=True)]
        episodes.append(Trajectory(f"sample-{sample}", ("joy",), tuple(turns), Output("joy", ("joy",))))
    return _with_logprobs(policy, episodes)


def with_common_prefix(policy: AffectPolicy, episodes: Sequence[Trajectory]) -> list[Trajectory]:
    """The same, where all prompts of an episode begin with what was the first one's."""

    def longer(first: Prompt, prompt: Prompt) -> Prompt:
        return Prompt(first.token_ids + prompt.token_ids, first.percepts + prompt.percepts, len(first.token_ids))

    def behind(first: Prompt, turn: Turn) -> Turn:
        told = turn.critic_prompt
        return replace(turn, prompt=longer(first, turn.prompt), critic_prompt=longer(first, told) if told else None)

    return _with_logprobs(
        policy, [replace(e, turns=tuple(behind(e.turns[0].prompt, turn) for turn in e.turns)) for e in episodes]
    )


def _words(policy: AffectPolicy, rng: np.random.Generator, length: int) -> tuple[int, ...]:
    return tuple(rng.integers(3, policy.config.text_config.vocab_size, size=length).tolist())


def _answer(policy: AffectPolicy, rng: np.random.Generator, answer: tuple[int, int]) -> Generation:
    tokens = _words(policy, rng, int(rng.integers(*answer)))
    return Generation(tokens, (0.0,) * len(tokens), (0,) * len(tokens), "", finished=True)


def _random_turn(
    policy: AffectPolicy,
    agent: str,
    asked_by: np.random.Generator,
    rng: np.random.Generator,
    prompt: tuple[int, int],
    answer: tuple[int, int],
    *,
    fused: bool,
) -> Turn:
    """A turn whose prompt comes from `asked_by` and whose answer from `rng`."""

    def features(dim: int) -> np.ndarray | None:
        present = asked_by.random() < 0.8
        return asked_by.normal(size=(int(asked_by.integers(1, 6)), dim)).astype(np.float32) if present else None

    supports = (features(AUDIO_DIM), features(VIDEO_DIM)) if fused else (None, None)
    percept = Percept(features(AUDIO_DIM), features(VIDEO_DIM), *supports, fused)
    places = (policy.config.percept_token_id,) * policy.fusion.shape.tokens
    length = int(asked_by.integers(*prompt)) - len(places)
    tokens = _words(policy, asked_by, 1) + places + _words(policy, asked_by, length)
    return Turn(agent, Prompt(tokens, (percept,)), _answer(policy, rng, answer), None, reward=float(rng.random()))


def _next_turn(
    policy: AffectPolicy, before: Turn, rng: np.random.Generator, number: int, answer: tuple[int, int]
) -> Turn:
    tokens = before.prompt.token_ids + before.generation.token_ids + _words(policy, rng, 3)
    prompt = Prompt(tokens, before.prompt.percepts)
    return Turn(before.agent, prompt, _answer(policy, rng, answer), None, number, reward=float(rng.random()))


def _random_knowledge(reward: float, count: int, rng: np.random.Generator) -> tuple[float, ...]:
    numbers = rng.random(count)
    if count:
        numbers[0] = reward + 0.1 * rng.normal()
    return tuple(numbers.tolist())


@torch.no_grad()
def _with_logprobs(policy: AffectPolicy, episodes: Sequence[Trajectory]) -> list[Trajectory]:
    sequences = turns_to_sequences(e.turns for e in episodes)
    step = flatten(sequences, list(dict.fromkeys(s.agent for s in sequences)))
    logprobs = torch.zeros(len(step.agent))
    for rows in micro_batches(list(map(len, sequences)), range(len(sequences)), 8192):
        batch = collate(rows_of(sequences), rows, policy.fusion.shape, policy.tokenizer.pad_token_id)
        logprobs[batch.places] = policy(batch.tokens, step.temperature[batch.places]).logprobs
    each = iter(logprobs.split(step.turn_lengths.tolist()))

    def scored(turn: Turn) -> Turn:
        return replace(turn, generation=replace(turn.generation, logprobs=tuple(next(each).tolist())))

    # Turns lie on the flat axis agent after agent; those of an episode are made in that order.
    return [replace(e, turns=tuple(scored(turn) for turn in e.turns)) for e in episodes]
