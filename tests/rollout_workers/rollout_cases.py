"""Tiny policies, prompts whose percepts have unlike shapes, and the distance between engine and learner."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from affect_rl.config.services import RolloutConfig
from affect_rl.policy.batches import TokenBatch
from affect_rl.policy.fusion import collate_percepts
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.slots import SlotConfig
from affect_rl.policy.tokens import tiny_language_model, train_tokenizer
from affect_rl.trajectory import Generation, Percept, Prompt
from rollout_workers.vllm.engine import RolloutEngine

AUDIO_DIM, VIDEO_DIM, SOFT_TOKENS, CONTEXT = 7, 5, 2, 256
SETTINGS = RolloutConfig(max_num_seqs=32, max_batched_tokens=1024, kv_cache_gib=0.1, threads=1, deadline_s=60)


# A slot of each connector, and one that mixes both modalities.
SLOTS = (
    SlotConfig(name="multi", source="joint", connector="attention"),
    SlotConfig(name="audio", source="audio", connector="attention"),
    SlotConfig(name="patches", source="video", connector="linear", tokens=2, stack=2),
    SlotConfig(name="speech", source="audio", connector="mlp", width=16),
    SlotConfig(name="both", source="joint", connector="qformer", tokens=2, width=16, heads=2, positions=8),
)


def make_policy(
    *, tied: bool = True, key_value_heads: int = 2, slots: tuple[SlotConfig, ...] = (), noise: float = 0.1
) -> AffectPolicy:
    """With `noise` all parameters are random, those that start at zero as well, so that each shows in the output."""
    tokenizer = train_tokenizer(["so glad to see you again, my friend", "what a terrible, sad day it was"] * 20, 400)
    model = tiny_language_model(tokenizer, layers=2, dim=64, heads=2, context=CONTEXT, seed=0)
    if not tied or key_value_heads != 2:
        model.config.tie_word_embeddings, model.config.num_key_value_heads = tied, key_value_heads
        model = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    return wrapped(model, tokenizer, slots=slots, noise=noise)


def wrapped(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, slots: tuple[SlotConfig, ...] = (), noise: float = 0.1
) -> AffectPolicy:
    """A policy around a language model."""
    policy = AffectPolicy.create(
        model,
        tokenizer,
        audio_dim=AUDIO_DIM,
        video_dim=VIDEO_DIM,
        dim=32,
        heads=4,
        soft_tokens=SOFT_TOKENS,
        experts=4,
        top_k=2,
        slots=slots,
    )
    rng = np.random.default_rng(0)
    policy.fusion.fit_scale([features(rng, 50, AUDIO_DIM)], [features(rng, 50, VIDEO_DIM)])
    return perturbed(policy, noise)


@torch.no_grad()
def perturbed(policy: AffectPolicy, scale: float) -> AffectPolicy:
    """Add noise to all parameters that train and to feature statistics, in place."""
    generator = torch.Generator().manual_seed(1)
    for tensor in (*(p for p in policy.parameters() if p.requires_grad), *policy.fusion.buffers()):
        tensor.add_(torch.randn(tensor.shape, generator=generator).abs() * scale)
    return policy.eval()


def features(rng: np.random.Generator, frames: int, dim: int) -> np.ndarray:
    return rng.normal(1, 2, (frames, dim)).astype(np.float32)


def make_prompts(policy: AffectPolicy, count: int, seed: int = 0) -> list[Prompt]:
    """Prompts with 0 to 2 percepts, in which each modality and each support is absent now and then."""
    rng = np.random.default_rng(seed)
    words = [i for i in range(3, len(policy.tokenizer)) if i != policy.config.percept_token_id]

    def maybe(dim: int) -> np.ndarray | None:
        return features(rng, int(rng.integers(1, 9)), dim) if rng.random() < 0.7 else None

    def prompt(percepts: int) -> Prompt:
        token_ids = rng.choice(words, rng.integers(1, 9)).tolist()
        for _ in range(percepts):
            token_ids += [policy.config.percept_token_id] * policy.fusion.shape.tokens
            token_ids += rng.choice(words, rng.integers(0, 40)).tolist()
        dims = (AUDIO_DIM, VIDEO_DIM, AUDIO_DIM, VIDEO_DIM)
        shown = [Percept(*map(maybe, dims), fused=bool(rng.random() < 0.5)) for _ in range(percepts)]
        return Prompt(tuple(token_ids), tuple(shown))

    return [prompt(i % 3) for i in range(count)]


@torch.no_grad()
def logprob_gaps(
    policy: AffectPolicy, prompts: Sequence[Prompt], answers: Sequence[Generation], temperature: float = 1.0
) -> list[np.ndarray]:
    """Per answer: how far the engine's log-probs ``[T]`` are from the policy's, prompts in one padded batch."""
    expected = policy(token_batch(prompts, answers), temperature).logprobs.numpy()
    ends = np.cumsum([len(answer.token_ids) for answer in answers])
    return [np.abs(part - answer.logprobs) for part, answer in zip(np.split(expected, ends[:-1]), answers, strict=True)]


def token_batch(prompts: Sequence[Prompt], answers: Sequence[Generation]) -> TokenBatch:
    """Prompts with answers, padded."""
    rows = [prompt.token_ids + answer.token_ids for prompt, answer in zip(prompts, answers, strict=True)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, len(prompt.token_ids) : len(row)] = True
    percepts = collate_percepts([p for prompt in prompts for p in prompt.percepts], AUDIO_DIM, VIDEO_DIM)
    return TokenBatch(ids, mask, percepts)


async def answer_all(
    engine: RolloutEngine, prompts: list[Prompt], *, temperature: float = 1.0, max_tokens: int = 20, seed: int = 0
) -> list[Generation]:
    """Ask everything at once."""
    calls = [
        engine.generate(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed + i)
        for i, prompt in enumerate(prompts)
    ]
    return list(await asyncio.gather(*calls))
