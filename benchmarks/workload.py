"""Random episodes on a tiny policy: work for the learner's tests and benchmarks without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from affect_rl.algorithms.batching import collate, flatten, micro_batches, turns_to_sequences
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.tokens import tiny_language_model, train_tokenizer
from affect_rl.trajectory import ROLES, Generation, Percept, Prompt, Role, Trajectory, Turn

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
) -> list[Trajectory]:
    """Episodes of random tokens, with the policy's own log-probs as behaviour log-probs.

    Args:
        policy: whose vocabulary, fusion sizes and log-probs to use.
        count: episodes.
        seed: of lengths, tokens, features and rewards.
        prompt: range of prompt lengths in tokens, soft tokens included.
        answer: range of answer lengths in tokens.
        temperature: of the log-probs.
    """
    rng = np.random.default_rng(seed)
    episodes = [
        Trajectory(
            sample_id=f"sample-{number}",
            labels=("joy",),
            turns=tuple(_random_turn(policy, role, rng, prompt, answer) for role in ROLES),
            queries={}, candidates={}, kept={}, support_ids=(), predicted=("joy",), rationale="",
        )
        for number in range(count)
    ]  # fmt: skip
    return _with_logprobs(policy, episodes, temperature)


def _random_turn(
    policy: AffectPolicy, role: Role, rng: np.random.Generator, prompt: tuple[int, int], answer: tuple[int, int]
) -> Turn:
    def features(dim: int) -> np.ndarray | None:
        present = rng.random() < 0.8
        return rng.normal(size=(int(rng.integers(1, 6)), dim)).astype(np.float32) if present else None

    def words(length: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, policy.config.text_config.vocab_size, size=length).tolist())

    fused = role == "generator"
    supports = (features(AUDIO_DIM), features(VIDEO_DIM)) if fused else (None, None)
    percept = Percept(features(AUDIO_DIM), features(VIDEO_DIM), *supports, fused)
    places = (policy.config.percept_token_id,) * policy.fusion.shape.tokens
    length = int(rng.integers(*prompt)) - len(places)
    tokens = words(int(rng.integers(*answer)))
    return Turn(
        role,
        Prompt(words(1) + places + words(length), (percept,)),
        Generation(tokens, (0.0,) * len(tokens), (0,) * len(tokens), "", finished=True),
        problem=None,
        reward=float(rng.random()),
    )


@torch.no_grad()
def _with_logprobs(policy: AffectPolicy, episodes: Sequence[Trajectory], temperature: float) -> list[Trajectory]:
    sequences = turns_to_sequences(e.turns for e in episodes)
    flat = flatten(sequences)
    logprobs = torch.zeros(len(flat.roles))
    for rows in micro_batches(list(map(len, sequences)), range(len(sequences)), 8192):
        batch = collate(sequences, flat, rows, policy.fusion.shape, policy.tokenizer.pad_token_id)
        logprobs[batch.places] = policy(batch.tokens, temperature).logprobs
    each = iter(logprobs.split(flat.lengths.tolist()))

    def scored(turn: Turn) -> Turn:
        return replace(turn, generation=replace(turn.generation, logprobs=tuple(next(each).tolist())))

    return [replace(e, turns=tuple(scored(turn) for turn in e.turns)) for e in episodes]
