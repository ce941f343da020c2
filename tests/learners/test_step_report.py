"""What an update reports of a step, from numbers that can be told beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from affect_rl.algorithms.algorithm import Targets
from affect_rl.config.learning import LearnerConfig
from benchmarks.workload import AGENTS, random_episodes, tiny_policy
from learners.report import prepare_metrics
from learners.shares import deal


def test_only_agents_that_play_are_reported_and_averaged() -> None:
    """As in a step of `train.in_turn`, in which one of them may have nothing to learn from."""
    assert AGENTS == ("planner", "filter", "generator")
    episodes = [
        replace(episode, turns=tuple(turn for turn in episode.turns if turn.agent != "filter"))
        for episode in random_episodes(tiny_policy(), 4)
    ]
    step, _ = deal(episodes, AGENTS, LearnerConfig(minibatches=1), (0, 0))
    apart = torch.tensor([0.1, float("nan"), 0.3])[step.agent]
    step = replace(
        step, old=step.behaviour + 0.5, reference=step.behaviour + 0.5 - apart, values=torch.zeros(len(apart))
    )
    returns = torch.arange(len(apart), dtype=torch.float32)
    metrics = prepare_metrics(step, Targets(returns, returns), torch.tensor([2.0, float("nan"), 4.0])[step.agent])
    assert metrics == pytest.approx(
        {
            "kl/planner": 0.1, "kl/generator": 0.3, "kl/mean": 0.2,
            "planner/entropy": 2.0, "generator/entropy": 4.0,
            "planner/explained_variance": 0.0, "generator/explained_variance": 0.0,
            "logprob_gap/max": 0.5, "logprob_gap/mean": 0.5, "ratio/first": 2.718282**0.5,
        },
        abs=1e-5,
    )  # fmt: skip
