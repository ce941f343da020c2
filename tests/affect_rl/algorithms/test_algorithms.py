"""Algorithms by name: what their settings accept, what they make of a step, and one written outside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from step_cases import random_step

from affect_rl.algorithms import ALGORITHMS, make_algorithm, read_algorithm
from affect_rl.algorithms.advantages import returns_to_go, token_rewards
from affect_rl.algorithms.algorithm import Algorithm, AlgorithmSettings, Part, Targets
from affect_rl.algorithms.losses import Gspo
from affect_rl.algorithms.mappo import IppoSettings, MappoSettings
from affect_rl.algorithms.step import Step
from affect_rl.section import NonNegative


class BaselineSettings(AlgorithmSettings):
    """Settings of `Baseline`."""

    baseline: NonNegative = 0.0
    """What is taken from every return."""


class Baseline(Algorithm):
    """REINFORCE with a constant baseline."""

    Settings = BaselineSettings

    def targets(self, step: Step) -> Targets:
        returns = returns_to_go(token_rewards(step, 0.0), step.chain_lengths)
        return Targets(returns - self.settings.baseline)


OWN = f"{__name__}:Baseline"


def test_settings_are_read_by_name() -> None:
    assert read_algorithm({}) == MappoSettings()
    assert read_algorithm({"name": "mappo", "critic": {"lr": 1e-3}}).critic_settings.sees == "privileged"  # type: ignore[union-attr]
    ippo = read_algorithm({"name": "ippo", "critic": {"lr": 1e-3}})
    assert isinstance(ippo, IppoSettings) and ippo.critic.sees == "own" and ippo.critic.lr == 1e-3
    assert read_algorithm({"name": "grpo"}).critic_settings is None
    assert read_algorithm({"name": "grpo", "loss": {"name": "gspo"}}).loss == Gspo()
    assert read_algorithm(ippo) is ippo
    assert read_algorithm(ippo.model_dump()) == ippo


def test_a_class_of_one_s_own_is_read_by_module_and_name() -> None:
    settings = read_algorithm({"name": OWN, "baseline": 2})
    assert settings == BaselineSettings(name=OWN, baseline=2)
    assert isinstance(make_algorithm(settings), Baseline)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"name": "grop"}, "no algorithm `grop`; did you mean `grpo`"),
        ({"name": "torch:Tensor"}, "`torch:Tensor` does not derive from affect_rl.algorithms.algorithm:Algorithm"),
        ({"name": "no.such:Thing"}, "`no.such:Thing` cannot be imported"),
        (
            {"name": "grpo", "gamma": 1},
            r"unknown key `algorithm\.gamma`; known keys: name, loss, correction, kl_weight",
        ),
        ({"clipp": 1, "normalize": True}, "unknown key `algorithm.normalize`; did you mean `normalise`"),
        ({"critic": {"seees": "own"}}, "unknown key `algorithm.critic.seees`; did you mean `sees`"),
        ({"name": "dpo", "critic": {}}, "unknown key `algorithm.critic`"),
        ({"name": "dpo", "correction": {"name": "none"}}, "unknown key `algorithm.correction`"),
        ({"name": "dpo", "loss": {"average": "sequences"}}, "unknown key `algorithm.loss.average`"),
        ({"name": "dpo", "loss": {"name": "gspo"}}, "algorithm.loss.name: Input should be 'clipped'"),
        ({"loss": {"clipp": 1}}, "unknown key `algorithm.loss.clipp`; did you mean `clip`"),
        ({"loss": {"name": "gspo", "dual_clip": 3}}, "unknown key `algorithm.loss.dual_clip`"),
        ({"loss": {"name": "gsp"}}, "algorithm.loss: .*'gsp'.*'gspo'"),
        ({"loss": {"clip": -1}}, r"algorithm\.loss\.clip: .*greater than 0 \(given: -1\)"),
        ({"correction": {"name": "masked", "low": -1}}, r"algorithm\.correction\.low: "),
        (3, "expected settings such as `name: mappo`, not 3"),
    ],
)
def test_errors_name_the_key_and_the_nearest_known_one(tree: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_algorithm(tree)


def test_a_critic_needs_settings() -> None:
    with pytest.raises(TypeError, match=r"Critical\.needs_critic is True; .* field `critic: CriticSettings`"):

        class Critical(Baseline):
            needs_critic = True


def targets(step: Step, **tree: Any) -> Targets:
    return make_algorithm(read_algorithm(tree)).targets(step)


COPIES = {"agent": [0, 1, 0, 1, 0, 1], "sample": [0, 0, 0, 0, 1, 1]}


@pytest.fixture
def step() -> Step:
    """Two copies of a sample and one of another, two agents; the first agent speaks twice."""
    return random_step([[2, 3], [3], [1, 2], [4], [2, 1], [3]], **COPIES)


def kl(step: Step) -> torch.Tensor:
    return step.old - step.reference


def test_mappo_s_returns_are_what_is_left_of_the_rewards(step: Step) -> None:
    got = targets(step, kl_weight=0.1, normalise=False)
    expected = []
    for c in range(6):
        tokens = (step.chain[step.turn] == c).nonzero()[:, 0].tolist()
        rewards = [float(-0.1 * kl(step)[t]) for t in tokens]
        for n in (step.chain == c).nonzero()[:, 0].tolist():
            rewards[max(i for i, t in enumerate(tokens) if step.turn[t] == n)] += float(step.rewards[n])
        expected += [sum(rewards[i:]) for i in range(len(tokens))]
    assert got.returns is not None and step.values is not None
    np.testing.assert_allclose(got.returns, expected)
    np.testing.assert_allclose(got.advantages, got.returns - step.values)
    normalised = targets(step, kl_weight=0.1).advantages
    for agent in (0, 1):
        mine = step.agent == agent
        unit = max(x[mine].std(correction=0) for x in (got.returns, got.advantages))
        centred = got.advantages[mine] - got.advantages[mine].mean()
        np.testing.assert_allclose(normalised[mine], centred / unit, rtol=1e-6)


def test_what_a_critic_has_explained_is_not_made_large_again(step: Step) -> None:
    returns = targets(step, kl_weight=0.1).returns
    assert returns is not None
    nearly_known = replace(step, values=returns + 0.01 * torch.randn(len(returns), dtype=returns.dtype))
    assert float(targets(nearly_known, kl_weight=0.1).advantages.abs().max()) < 0.2


def test_a_critic_that_is_wrong_about_equal_rewards_makes_no_large_advantages(step: Step) -> None:
    equal = replace(step, rewards=torch.ones_like(step.rewards))
    advantages = targets(equal, kl_weight=1e-4).advantages
    for agent in (0, 1):
        assert float(advantages[step.agent == agent].std(correction=0)) == pytest.approx(1, rel=1e-3)


def test_groups_of_grpo_and_rloo_are_samples_and_agents(step: Step) -> None:
    r = step.chain_rewards
    first = (step.chain[step.turn] == 0).nonzero()[0, 0]
    both = torch.stack([r[0], r[2]])
    plain = targets(step, name="grpo", scale_by_deviation=False).advantages
    scaled = targets(step, name="grpo").advantages
    rloo = targets(step, name="rloo", kl_weight=0, normalise=False).advantages
    torch.testing.assert_close(plain[first], r[0] - both.mean())
    torch.testing.assert_close(scaled[first], (r[0] - both.mean()) / both.std(correction=0), rtol=1e-5, atol=0)
    torch.testing.assert_close(rloo[first], r[0] - r[2])
    alone = step.sample[step.chain][step.turn] == 1
    for advantages in (plain, scaled, rloo):
        assert not advantages[alone].any()
        assert (advantages[step.chain[step.turn] == 0] == advantages[first]).all()


def test_rloo_charges_an_answer_for_its_kl(step: Step) -> None:
    cost = step.over_chains(kl(step))
    got = targets(step, name="rloo", kl_weight=0.3, normalise=False).advantages
    rewards = step.chain_rewards - 0.3 * cost
    torch.testing.assert_close(got[0], rewards[0] - rewards[2])


def test_reinforce_is_normalised_over_the_step(step: Step) -> None:
    got = targets(step, name="reinforce++", kl_weight=0.1).advantages
    rewards = returns_to_go(token_rewards(step, 0.1), step.chain_lengths)
    for agent in (0, 1):
        mine = rewards[step.agent == agent]
        expected = (mine - mine.mean()) / mine.std(correction=0)
        torch.testing.assert_close(got[step.agent == agent], expected)


@pytest.mark.parametrize("name", [*ALGORITHMS, OWN])
def test_every_algorithm_lowers_its_loss_by_raising_what_was_good(step: Step, name: str) -> None:
    algorithm = make_algorithm(read_algorithm({"name": name}))
    step = step if algorithm.needs_critic else replace(step, values=None)
    found = algorithm.targets(step)
    assert (found.returns is not None) == algorithm.needs_critic == (algorithm.settings.critic_settings is not None)
    assert found.advantages.shape == step.old.shape and found.advantages.any()
    logprobs = step.old.clone().requires_grad_()
    chosen = torch.ones_like(step.agent).bool()
    assert algorithm.learns(found, chosen)
    part = Part(torch.arange(len(step.agent)), logprobs, algorithm.weights(step, chosen))
    settings = {"kl_weight": 0.0} if algorithm.kl_weight else {}
    plain = make_algorithm(read_algorithm({"name": name, **settings}))
    (gradient,) = torch.autograd.grad(plain.loss(step, found, part).loss, logprobs)
    assert (gradient * found.advantages <= 0).all() and gradient.any()
