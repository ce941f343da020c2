"""The update of one rank: what the algorithm makes of a step, and the optimiser steps.

A step has two parts. *Prepare*: passes without gradients give every token its log-prob under the policy as it stands
and under the reference, and its value if the algorithm has a critic; the algorithm makes advantages of them.
*Optimise*: `epochs` passes over the episodes in random minibatches, one optimiser step each.

A rank gets its share of the episodes and the numbers of all (`learners.shares`). What it computed for its share is
summed into the others' zeros, so that each knows the whole step and all report the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from affect_rl.algorithms import make_algorithm
from affect_rl.algorithms.algorithm import Part, Targets
from affect_rl.algorithms.batching import MicroBatch, Pass, Row, collate
from affect_rl.algorithms.critic import Critic
from affect_rl.algorithms.losses import balance_loss, token_weights
from affect_rl.algorithms.step import Step
from affect_rl.config.load import Config
from affect_rl.errors import AffectError
from affect_rl.policy.reference import Reference
from affect_rl.team.knowledge import columns
from learners.engine import Engine
from learners.report import Report, prepare_metrics
from learners.shares import Share


@dataclass(frozen=True)
class Models:
    """What a rank trains, and what it compares with.

    Attributes:
        actor: the policy.
        reference: the frozen policy that the run started from, or the base of its adapters.
        critic: puts values together; None: the algorithm has none.
        critic_model: model of a separate critic; None: the head is on the policy's trunk, or there is no critic.
    """

    actor: Engine
    reference: Reference
    critic: Critic | None = None
    critic_model: Engine | None = None

    @property
    def shared(self) -> bool:
        """Whether the critic's head is on the policy's trunk."""
        return self.critic is not None and self.critic_model is None

    def engines(self) -> dict[str, Engine]:
        """What is trained, by name."""
        return {"actor": self.actor} | ({"critic": self.critic_model} if self.critic_model else {})


@dataclass(frozen=True)
class Prepared:
    """All that the optimiser steps need to know of a step.

    Attributes:
        step: with the learner's and the reference's log-probs and the critic's values.
        entropies: ``[R]`` of the distributions that the tokens were drawn from.
        head: ``[R]`` what the critic's head said; 0 without a critic.
        load: ``[experts]`` share of the chosen slots that went to each expert.
        targets: advantages and returns.
        head_targets: ``[R]`` what the critic's head is to say; 0 without a critic.
    """

    step: Step
    entropies: Tensor
    head: Tensor
    load: Tensor
    targets: Targets
    head_targets: Tensor


class Updater:
    """Makes updates.

    Attributes:
        optimiser_steps: how many there have been, over the whole run.
        advantages: what the tokens of the last update were learned with, see `Step.by_turn`.
    """

    def __init__(self, config: Config, models: Models, device: torch.device) -> None:
        self._config, self._settings, self._models, self._device = config, config.learner, models, device
        self._algorithm = make_algorithm(config.algorithm)
        self._entropy = torch.tensor([config.team[agent].entropy for agent in config.team.trained], device=device)
        critic = config.algorithm.critic_settings
        self._known = columns(critic.sees) if critic else []
        self.optimiser_steps = 0
        self.advantages: dict[tuple[int, str, int], list[float]] = {}

    def update(self, step: Step, share: Share) -> dict[str, float]:
        """One training step; `step` holds the numbers of all ranks. Returns metrics, the same on every rank."""
        begun = time.perf_counter()
        step = replace(step, knowledge=step.knowledge[:, self._known])
        prepared = self._prepare(step.to(self._device), share)
        self.advantages = prepared.step.by_turn(prepared.targets.advantages)
        prepared_at = time.perf_counter()
        report, norms = Report(step.agents), [(0.0, 0.0)] * len(share.minibatches)
        for number, part in enumerate(share.minibatches):
            episodes = torch.tensor(part.episodes, device=self._device)
            chosen = torch.isin(prepared.step.episode, episodes)[prepared.step.chain][prepared.step.turn]
            if self._algorithm.learns(prepared.targets, chosen) or self._explores(prepared.step, chosen):
                critic_norm = self._critic_step(prepared, share, number, chosen, report)
                norms[number] = self._policy_step(prepared, share, number, chosen, report), critic_norm
                self.optimiser_steps += 1
        optimise_s = time.perf_counter() - prepared_at
        return {
            **prepare_metrics(prepared.step, prepared.targets, prepared.entropies),
            **report.metrics(len(norms), self._device),
            "learner/grad_norm": sum(actor for actor, _ in norms) / len(norms),
            "learner/critic_grad_norm": sum(critic for _, critic in norms) / len(norms),
            "learner/lr": self._rate(self._settings.lr, self.optimiser_steps - 1),
            "learner/tokens": float(share.tokens),
            "learner/prepare_s": prepared_at - begun,
            "learner/optimise_s": optimise_s,
            "learner/tokens_per_s": share.tokens * self._settings.epochs / optimise_s,
        }

    @torch.no_grad()
    def gap(self, step: Step, share: Share) -> tuple[float, float]:
        """Mean and largest distance of the policy's log-probs from the engine's; the same on every rank."""
        seen = torch.zeros(len(step.agent), device=self._device)
        temperature = step.temperature.to(self._device)
        for batch in self._passes(share.actor.rows, share.actor.whole):
            output = self._models.actor(batch.tokens, temperature[batch.places])
            seen[batch.places] += batch.weight * output.logprobs
        dist.all_reduce(seen)
        distance = (seen.cpu() - step.behaviour).abs()
        return float(distance.mean()), float(distance.max())

    @torch.no_grad()
    def _prepare(self, step: Step, share: Share) -> Prepared:
        """Look at the whole step, and learn the critic's regression from it."""
        models = self._models
        seen = torch.zeros(4, len(step.agent), device=self._device)
        load = torch.zeros(models.actor.policy.fusion.shape.experts, device=self._device)
        for batch in self._passes(share.actor.rows, share.actor.whole):
            at = batch.places
            output = models.actor(batch.tokens, step.temperature[at], entropies=True, values=models.shared)
            reference = models.reference.logprobs(batch.tokens, step.temperature[at])
            head = output.values if models.shared else torch.zeros_like(reference)
            found = torch.stack([output.logprobs, reference, output.entropies, head])
            seen[:, at] += batch.weight * found
            load += batch.weight * (output.weights > 0).sum(dim=0)
        if models.critic_model and share.critic:
            for batch in self._passes(share.critic.rows, share.critic.whole):
                seen[3, batch.places] += batch.weight * _read(models.critic_model, batch)
        dist.all_reduce(seen)
        dist.all_reduce(load)
        if not seen.isfinite().all():  # one such number would stay in the critic's averages for ever
            raise AffectError(
                "learner: a log-prob or value of this step is not a finite number, so the policy has diverged; begin a "
                "run of another `name` with a lower learner.lr, or with model.dtype=float32"
            )
        old, reference, entropies, head = seen
        values = models.critic.values(step, head) if models.critic else None
        step = replace(step, old=old, reference=reference, values=values)
        targets = self._algorithm.targets(step)
        head_targets = torch.zeros_like(head)
        if models.critic:
            assert targets.returns is not None, "an algorithm with a critic gives it returns to learn"
            head_targets = models.critic.learn(step, head, targets.returns)
        return Prepared(step, entropies, head, load / load.sum().clamp(min=1), targets, head_targets)

    def _policy_step(self, known: Prepared, share: Share, number: int, chosen: Tensor, report: Report) -> float:
        """One optimiser step of the policy on the tokens `chosen` ``[R]`` of a minibatch; returns its gradient norm."""
        step, models, critic = known.step, self._models, self._models.critic
        weights, equal = self._algorithm.weights(step, chosen), token_weights(step, chosen, "tokens")
        explores, tokens = bool(self._entropy.any()), float(chosen.sum())
        for batch in self._passes(share.actor.rows, share.actor.minibatches[number]):
            at = batch.places
            output = models.actor(batch.tokens, step.temperature[at], entropies=explores, values=models.shared)
            terms = self._algorithm.loss(step, known.targets, Part(at, output.logprobs, weights[at]))
            balance = balance_loss(output.router, known.load, share.minibatches[number].percepts)
            loss, parts = terms.loss + self._config.model.fusion.load_balance * balance, {"balance": balance}
            if explores:  # else its way back through the vocabulary would cost time for nothing
                parts["entropy"] = (equal[at] * self._entropy[step.agent[at]] * output.entropies).sum()
                loss = loss - parts["entropy"]
            if models.shared and critic:
                parts["value"] = critic.loss(output.values, known.head[at], known.head_targets[at], tokens)
                loss = loss + critic.settings.weight * parts["value"]
            models.actor.backward(batch.weight * loss)
            report.add({**terms.parts, **parts}, batch.weight, terms.statistics)
        return models.actor.step(self._rates(step, chosen))

    def _explores(self, step: Step, chosen: Tensor) -> bool:
        """Whether an agent with an entropy bonus wrote any of the tokens `chosen` ``[R]``.

        Where all answers earn the same there is nothing else to learn, and the bonus has most to do.
        """
        return bool(self._entropy[step.agent[chosen]].any())

    def _rates(self, step: Step, chosen: Tensor) -> dict[str, float]:
        """Learning rates of the policy's groups of parameters.

        An adapter whose agents have no tokens in the minibatch rests: momentum and weight decay would move it.
        """
        critic = self._models.critic
        rates = {"policy": self._settings.lr, "critic": critic.settings.lr if critic else 0.0}
        active = {step.agents[n] for n in step.agent[chosen].unique().tolist()}
        for agent, adapter in self._config.team.adapters.items():
            own = self._config.team[agent].lr
            lr = self._settings.lr if own is None else own
            group = f"adapter {adapter}"
            rates[group] = max(rates.get(group, 0.0), lr if agent in active else 0.0)
        return {group: self._rate(peak) for group, peak in rates.items()}

    def _critic_step(self, known: Prepared, share: Share, number: int, chosen: Tensor, report: Report) -> float:
        """One optimiser step of a separate critic; returns its gradient norm, 0 without one."""
        critic, model, tokens = self._models.critic, self._models.critic_model, float(chosen.sum())
        if critic is None or model is None or share.critic is None:
            return 0.0
        for batch in self._passes(share.critic.rows, share.critic.minibatches[number]):
            at = batch.places
            value = critic.loss(_read(model, batch), known.head[at], known.head_targets[at], tokens)
            model.backward(batch.weight * value)
            report.add({"value": value}, batch.weight)
        return model.step(self._rate(critic.settings.lr))

    def _passes(self, rows: Sequence[Row], plan: Sequence[Pass]) -> Iterator[MicroBatch]:
        """This rank's forward passes."""
        policy = self._models.actor.policy
        for chosen, adapter in plan:
            batch = collate(rows, chosen, policy.fusion.shape, policy.tokenizer.pad_token_id).to(self._device)
            # The caller's backward pass runs inside as well: recomputed activations need the same adapter.
            with policy.use_adapter(adapter) if adapter else nullcontext():
                yield batch

    def _rate(self, peak: float, step: int | None = None) -> float:
        """Learning rate of an optimiser step (None: the next one) after linear warm-up."""
        warmup, step = self._settings.warmup, self.optimiser_steps if step is None else step
        return peak * min(1.0, (step + 1) / warmup) if warmup else peak


def _read(critic: Engine, batch: MicroBatch) -> Tensor:
    """What a separate critic's head says of a batch ``[R_b]``."""
    return critic(batch.tokens, logprobs=False, values=True).values
