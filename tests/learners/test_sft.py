"""The supervised warm start on one rank."""

from __future__ import annotations

import pytest
import torch

from affect_rl.batching import collate, flatten, turns_to_sequences
from affect_rl.config import SftConfig
from benchmarks.workload import random_episodes, tiny_policy
from learners.engine import Engine
from learners.sft import learning_rate, sft_steps

SETTINGS = SftConfig(steps=40, batch_samples=4, lr=1e-2, warmup=4, tokens_per_microbatch=128)


def engine(device: torch.device) -> Engine:
    return Engine(tiny_policy(), device, zero_stage=1, weight_decay=0.0, max_grad_norm=1.0)


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(SETTINGS, step) for step in range(41)]
    assert rates[0] == pytest.approx(0.0025)
    assert max(rates) == rates[3] == rates[4] == pytest.approx(1e-2)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[22] == pytest.approx(5e-3)
    assert rates[40] == pytest.approx(0)


def test_sft_learns_its_demonstrations_and_repeats_itself(device: torch.device) -> None:
    sequences = turns_to_sequences(e.turns for e in random_episodes(tiny_policy(), 4))
    runs = [list(sft_steps(engine(device), sequences, SETTINGS, balance_weight=0.01, seed=3)) for _ in range(2)]
    assert runs[0] == runs[1]
    first, last = runs[0][0], runs[0][-1]
    assert last["loss"] < 0.4 * first["loss"]
    assert {f"{role}/{name}" for role in ("planner", "filter", "generator") for name in ("loss", "accuracy")} < set(last)
    assert last["generator/accuracy"] > 0.6


def test_first_loss_is_the_mean_cross_entropy(device: torch.device) -> None:
    sequences = turns_to_sequences(e.turns for e in random_episodes(tiny_policy(), 4))
    policy, flat = tiny_policy(), flatten(sequences)
    batch = collate(sequences, flat, range(len(sequences)), policy.fusion.shape, 0)
    expected = -policy(batch.tokens).logprobs.mean().item()
    first = next(sft_steps(engine(device), sequences, SETTINGS, balance_weight=0.0, seed=0))
    assert first["loss"] == pytest.approx(expected, abs=1e-5)
