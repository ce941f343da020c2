"""Supervised warm start on demonstrations: the training itself, on all ranks at once.

`learners.sft_worker` runs it on each rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from affect_rl.algorithms.batching import (
    TokenSequence,
    collate,
    group_batches,
    rows_of,
    schedule,
    split_ranks,
)
from affect_rl.algorithms.step import flatten
from affect_rl.config.learning import SftConfig
from affect_rl.policy.batches import TokenBatch
from affect_rl.policy.fusion import load_balance
from learners.engine import Engine


def learning_rate(settings: SftConfig, step: int) -> float:
    """Linear warm-up, a plateau, and a linear fall towards 0 (arXiv 2404.06395, section 4); steps from 0."""
    rise = (step + 1) / max(1, settings.warmup)
    fall = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return settings.lr * min(1.0, rise, fall)


def sft_steps(
    engine: Engine,
    sequences: Sequence[TokenSequence],
    settings: SftConfig,
    *,
    balance_weight: float,
    seed: int,
    done: int = 0,
) -> Iterator[dict[str, float]]:
    """Train on demonstrations, one optimiser step an iteration; run on all ranks at once.

    The loss is the mean over agents of the cross entropy of their answers' tokens (a planner writes three
    times what a generator does, and is not three times as important), plus `prompt_weight` times the
    cross entropy of the prompts' text, plus the load-balance loss of MB-MoE averaged over its percepts.
    Tokens are counted over the step on all ranks.

    Args:
        engine: the policy.
        sequences: demonstrations; those of one group (a sample) stay together.
        settings: steps, batch, learning rate.
        balance_weight: weight of the load-balance loss.
        seed: of the order of samples.
        done: steps that were made before, and are not made again.

    Yields:
        ``loss``, ``balance``, ``lr``, ``grad_norm`` and, per agent, ``<agent>/loss`` and ``<agent>/accuracy``
        (share of answer tokens that the policy would have chosen greedily, given those before).
    """
    agents = list(dict.fromkeys(s.agent for s in sequences))
    author, lengths = flatten(sequences, agents).agent.to(engine.device), list(map(len, sequences))
    policy, rank, world = engine.policy, dist.get_rank(), dist.get_world_size()
    each = rows_of(sequences)
    percept_id = policy.config.percept_token_id
    batches = group_batches([s.episode for s in sequences], settings.batch_samples, seed)
    for step, chosen in enumerate(itertools.islice(batches, done, settings.steps), done):
        counts = torch.zeros(len(agents), device=engine.device)
        for i in chosen:
            counts[agents.index(sequences[i].agent)] += sequences[i].answer_tokens
        share = 1 / (counts.clamp(min=1) * (counts > 0).sum())  # [A] weight of an answer token by agent
        prompts = sum(_text_tokens(sequences[i], percept_id) for i in chosen)
        percepts = max(1, sum(p.fused for i in chosen for p in sequences[i].percepts))
        sums = torch.zeros(len(agents) + 1, 3, device=engine.device)  # tokens, loss, greedy; last row: balance
        shares = split_ranks(lengths, chosen, world)
        for rows, _ in schedule(lengths, shares, settings.tokens_per_microbatch)[rank]:
            batch = collate(each, rows, policy.fusion.shape, policy.tokenizer.pad_token_id).to(engine.device)
            answers = batch.tokens.response_mask
            learned = answers | _prompt_text(batch.tokens, percept_id) if settings.prompt_weight else answers
            output = engine(batch.tokens._replace(response_mask=learned), greedy=True)
            is_answer, all_logprobs = answers[learned], output.logprobs
            logprobs, agent = all_logprobs[is_answer], author[batch.places]
            balance = load_balance(output.router, output.weights) * output.router.shape[0] / percepts
            loss = balance_weight * balance - (share[agent] * logprobs).sum()
            if settings.prompt_weight:
                loss = loss - settings.prompt_weight * all_logprobs[~is_answer].sum() / prompts
            engine.backward(batch.weight * loss)
            greedy = output.greedy[is_answer].float()
            seen = torch.stack([torch.ones_like(logprobs), -logprobs, greedy], dim=-1)
            sums.index_add_(0, agent, batch.weight * seen.detach())
            sums[-1, 1] += batch.weight * balance.detach()
        lr = learning_rate(settings, step)
        norm = engine.step(lr)
        dist.all_reduce(sums)
        yield {**_metrics(sums, agents), "step": float(step + 1), "lr": lr, "grad_norm": norm}


def _text_tokens(sequence: TokenSequence, percept_id: int) -> int:
    """Tokens of the prompts that a language model can learn to predict: text, after the first token."""
    pairs = zip(sequence.token_ids[1:], sequence.mask[1:], strict=True)
    return sum(token != percept_id and not answer for token, answer in pairs)


def _prompt_text(tokens: TokenBatch, percept_id: int) -> torch.Tensor:
    """Mask ``[B, L]`` of the prompts' text: before the end of the last answer, no placeholder, not the first token."""
    answers = tokens.response_mask
    before_an_answer = answers.flip(1).cumsum(dim=1).flip(1) > 0
    mask = before_an_answer & ~answers & (tokens.input_ids != percept_id)
    mask[:, 0] = False
    return mask


def _metrics(sums: torch.Tensor, agents: Sequence[str]) -> dict[str, float]:
    *rows, (_, balance, _) = sums.tolist()
    metrics = {"loss": sum(row[1] for row in rows) / sum(row[0] for row in rows), "balance": balance}
    for agent, (tokens, loss, greedy) in zip(agents, rows, strict=True):
        if tokens:
            metrics |= {f"{agent}/loss": loss / tokens, f"{agent}/accuracy": greedy / tokens}
    return metrics
