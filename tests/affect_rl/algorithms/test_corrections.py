"""An engine that is not quite the learner: what a correction makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from step_cases import random_step
from torch import Tensor

from affect_rl.algorithms import ALGORITHMS, read_algorithm
from affect_rl.algorithms.algorithm import Part, Targets
from affect_rl.algorithms.corrections import Masked, NoCorrection, Truncated
from affect_rl.algorithms.step import Step


def test_weights_by_hand() -> None:
    behaviour = torch.zeros(5)
    old = torch.tensor([0.3, 0.9, 1.0, 1.8, 9.0]).log()
    anchor, weight = NoCorrection()(old, behaviour)
    assert anchor is behaviour and weight.tolist() == [1] * 5
    anchor, weight = Truncated(limit=1.5)(old, behaviour)
    assert anchor is old
    torch.testing.assert_close(weight, torch.tensor([0.3, 0.9, 1.0, 1.5, 1.5]))
    anchor, weight = Masked(low=0.5, high=5)(old, behaviour)
    assert anchor is old
    torch.testing.assert_close(weight, torch.tensor([0.0, 0.9, 1.0, 1.8, 0.0]))


def policy_gradient(step: Step, correction: str, drift: Tensor) -> tuple[float, Tensor]:
    """Loss and gradient of an optimiser step that finds the policy `drift` away from where the step began."""
    algorithm = ALGORITHMS["reinforce++"](
        read_algorithm({"name": "reinforce++", "kl_weight": 0, "correction": {"name": correction}})
    )
    everything = torch.arange(len(step.agent))
    logprobs = (step.old + drift).requires_grad_()
    weights = algorithm.weights(step, torch.ones_like(step.agent).bool())
    loss = algorithm.loss(step, algorithm.targets(step), Part(everything, logprobs, weights)).loss
    return float(loss.detach()), torch.autograd.grad(loss, logprobs)[0]


@pytest.mark.parametrize("correction", ["truncated", "masked"])
def test_noise_between_engine_and_learner_is_not_clipped_as_if_the_policy_had_moved(correction: str) -> None:
    """SmolLM2 in bfloat16 differs by up to 0.5 a token before any update."""
    step = random_step([[20], [25], [30]] * 20)
    rng = torch.Generator().manual_seed(1)
    noise, drift = torch.randn(2, len(step.agent), generator=rng, dtype=torch.float64)
    clean, drift = replace(step, behaviour=step.old), 0.02 * drift
    noisy = replace(step, behaviour=step.old + 0.25 * noise)
    loss, gradient = policy_gradient(clean, "none", drift)
    corrected_loss, corrected = policy_gradient(noisy, correction, drift)
    blind_loss, blind = policy_gradient(noisy, "none", drift)
    assert torch.dist(corrected, gradient) < 0.3 * gradient.norm() < 0.6 * torch.dist(blind, gradient)
    assert abs(corrected_loss - loss) < 0.3 * abs(blind_loss - loss)

    def silenced(other: Tensor) -> float:
        """Share of tokens that have lost their gradient."""
        return float(((other == 0) & (gradient != 0)).double().mean())

    assert silenced(corrected) < 0.01 and silenced(blind) > 0.2


def test_the_correction_makes_up_for_another_sampler() -> None:
    """Tokens of an engine with other weights: the expected gradient is that of the learner's own tokens."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=rng, dtype=torch.float64)
    engine = logits + 0.3 * torch.randn(5, generator=rng, dtype=torch.float64)
    reward = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    old, behaviour = logits.log_softmax(-1), engine.log_softmax(-1)
    point = logits.clone().requires_grad_()
    (true,) = torch.autograd.grad(-(point.softmax(-1) * reward).sum(), point)

    def expected(correction: Truncated | NoCorrection) -> Tensor:
        anchor, weight = correction(old, behaviour)
        point = logits.clone().requires_grad_()
        ratio = (point.log_softmax(-1) - anchor).exp().clamp(0.8, 1.2)
        loss = -(behaviour.exp() * weight * ratio * reward).sum()
        return torch.autograd.grad(loss, point)[0]

    torch.testing.assert_close(expected(Truncated(limit=100)), true)
    assert torch.dist(expected(NoCorrection()), true) > 0.05 * true.norm()


def test_dpo_starts_from_a_ratio_of_one_whoever_sampled() -> None:
    step = random_step([[2], [3], [4], [2], [3], [4]])
    algorithm = ALGORITHMS["dpo"](read_algorithm({"name": "dpo"}))
    everything = torch.arange(len(step.agent))
    weights = algorithm.weights(step, torch.ones_like(step.agent).bool())
    terms = algorithm.loss(step, Targets(torch.ones_like(step.old)), Part(everything, step.old, weights))
    assert terms.statistics.ratio_max.tolist() == [1, 1, 1]
