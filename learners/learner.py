"""One rank of the MAPPO learner: the actor, its critic, the frozen reference, and the update.

A step has two parts. *Prepare*: one pass without gradients gives every token its log-prob under the
policy as it stands and under the reference, and its value; rewards and advantages follow. *Optimise*:
`epochs` passes over the episodes in random minibatches, one optimiser step each.

All ranks receive the same episodes and plan the same split. What a rank computed for its share is
summed into the others' zeros, so that each knows the whole step and all report the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from affect_rl.algorithms import mappo
from affect_rl.algorithms.batching import (
    FlatTokens,
    MicroBatch,
    TokenSequence,
    collate,
    flatten,
    minibatches,
    schedule,
    turns_to_sequences,
)
from affect_rl.algorithms.dpo import preference_advantages, preference_pairs
from affect_rl.config.load import Config
from affect_rl.errors import AffectError
from affect_rl.policy.adapters import Lora
from affect_rl.policy.directory import MANIFEST
from affect_rl.policy.model import AffectPolicy, PolicyOutput, Reference
from affect_rl.policy.weights import WeightsHandle
from affect_rl.trajectory import ROLES, Trajectory
from learners.engine import Engine, choose_device, join_group

STATE = "state.json"
LOSSES = ("policy", "value", "entropy", "balance")


class Prepared(NamedTuple):
    """What the prepare pass learned about the step's R tokens.

    Attributes:
        logprobs: ``[R]`` under the policy at the start of the step.
        reference: ``[R]`` under the frozen reference.
        values: ``[R]`` the critic's.
        load: ``[experts]`` share of the chosen slots that went to each expert.
    """

    logprobs: Tensor
    reference: Tensor
    values: Tensor
    load: Tensor


class Report(NamedTuple):
    """Statistics of optimiser steps, summed (or maximised) over passes, steps and ranks.

    Attributes:
        losses: ``[4]`` in the order of `LOSSES`.
        sums: ``[AGENTS, 5]`` in the order of `mappo.POLICY_SUMS`.
        ratio_max: ``[AGENTS]``.
    """

    losses: Tensor
    sums: Tensor
    ratio_max: Tensor

    @classmethod
    def empty(cls, device: torch.device) -> Report:
        agents, columns = len(ROLES), len(mappo.POLICY_SUMS)
        return cls(*(torch.zeros(shape, device=device) for shape in ((len(LOSSES),), (agents, columns), (agents,))))

    def add(self, losses: Sequence[Tensor], terms: mappo.PolicyTerms, weight: float) -> None:
        self.losses.add_(torch.stack([loss.detach() for loss in losses]), alpha=weight)
        self.sums.add_(terms.sums, alpha=weight)
        torch.maximum(self.ratio_max, terms.ratio_max * weight, out=self.ratio_max)


class LearnerWorker:
    """One rank. `place`, then `start` on all ranks at once; later calls also go to all ranks at once."""

    def __init__(self, config: Config, policy_dir: Path, rank: int, seed: int) -> None:
        self._config, self._settings = config, config.learner
        self._policy_dir, self._rank, self._seed = policy_dir, rank, seed
        self._updates = self._optimiser_steps = 0

    def place(self) -> tuple[str, int]:
        """Address of this process's machine, and a port that is free on it."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, address: str, port: int) -> None:
        """Join the other ranks at `address` and load the policy."""
        settings, gpu = self._settings, self._settings.gpus_per_worker > 0
        torch.manual_seed(self._seed)  # adapters start at random, and on all ranks alike
        self._device = choose_device(gpu, settings.threads, settings.workers)
        join_group(self._rank, settings.workers, address, port, gpu=gpu, timeout_s=settings.deadline_s)
        policy = self._load_policy()
        if (lora := self._config.model.lora).rank:
            policy.add_adapters(Lora(lora.rank, lora.alpha, lora.targets))
        policy.to(self._device)
        self._reference = Reference(policy)
        self._critic: Engine | None = None
        if settings.critic == "separate":
            # A parameter that no loss reaches would be reduced on some ranks and awaited on others.
            policy.value_head.requires_grad_(False)
            critic = self._load_policy()
            if not critic.config.text_config.tie_word_embeddings:
                critic.language_model.get_output_embeddings().requires_grad_(False)  # type: ignore[operator]
            self._critic = self._engine(critic)
        self._actor = self._engine(policy)

    def _load_policy(self) -> AffectPolicy:
        return AffectPolicy.load(self._policy_dir, dtype=getattr(torch, self._config.model.dtype))

    def _engine(self, policy: AffectPolicy) -> Engine:
        s = self._settings
        return Engine(
            policy, self._device, zero_stage=s.zero_stage, weight_decay=s.weight_decay, max_grad_norm=s.max_grad_norm
        )

    # -- the update --------------------------------------------------------------------------------

    def update(self, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """One training step on episodes; returns metrics, the same on every rank."""
        begun = time.perf_counter()
        settings = self._settings
        sequences = turns_to_sequences([turn for turn in t.turns if turn.trained] for t in trajectories)
        flat = FlatTokens(*(part.to(self._device) for part in flatten(sequences)))
        prepared = self._prepare(sequences, flat)
        targets = (
            self._preferences(sequences, trajectories, flat, prepared)
            if settings.algorithm == "dpo"
            else self._advantages(flat, prepared)
        )
        prepared_at = time.perf_counter()

        report, norms = Report.empty(self._device), []
        first = {t.sample_id: place for place, t in reversed([*enumerate(trajectories)])}
        groups = [first[trajectories[s.group].sample_id] for s in sequences]  # a sample's copies stay together
        for epoch in range(settings.epochs):
            for chosen in minibatches(groups, settings.minibatches, (self._seed, self._updates, epoch)):
                norms.append(self._optimise(sequences, flat, prepared, targets, chosen, report))
        self._updates += 1
        dist.all_reduce(report.losses)
        dist.all_reduce(report.sums)
        dist.all_reduce(report.ratio_max, dist.ReduceOp.MAX)

        tokens = sum(map(len, sequences))
        train_s = time.perf_counter() - prepared_at
        return {
            **_prepare_metrics(flat, prepared, targets),
            **_optimise_metrics(report, len(norms)),
            "learner/grad_norm": sum(n[0] for n in norms) / len(norms),
            "learner/critic_grad_norm": sum(n[1] for n in norms) / len(norms),
            "learner/lr": self._lr(settings.lr, self._optimiser_steps - 1),
            "learner/tokens": float(tokens),
            "learner/prepare_s": prepared_at - begun,
            "learner/optimise_s": train_s,
            "learner/tokens_per_s": tokens * settings.epochs / train_s,
        }

    @torch.no_grad()
    def _prepare(self, sequences: Sequence[TokenSequence], flat: FlatTokens) -> Prepared:
        temperature = self._config.episode.temperature
        seen = torch.zeros(3, len(flat.roles), device=self._device)
        load = torch.zeros(self._actor.policy.fusion.shape.experts, device=self._device)
        for batch in self._passes(sequences, flat, range(len(sequences))):
            output = self._actor(batch.tokens, temperature, with_entropies=False)
            reference = self._reference.logprobs(batch.tokens, temperature)
            values = self._values(batch, output)
            seen[:, batch.places] += batch.weight * torch.stack([output.logprobs, reference, values])
            load += batch.weight * (output.weights > 0).sum(dim=0)
        dist.all_reduce(seen)
        dist.all_reduce(load)
        logprobs, reference, values = seen
        return Prepared(logprobs, reference, values, load / load.sum().clamp(min=1))

    def _advantages(self, flat: FlatTokens, prepared: Prepared) -> mappo.Advantages:
        s = self._settings
        rewards = mappo.token_rewards(flat.rewards, prepared.logprobs, prepared.reference, flat.lengths, s.kl_weight)
        targets = mappo.gae(rewards, prepared.values, flat.lengths, s.gamma, s.lam)
        if s.normalise_advantages:
            targets = targets._replace(advantages=mappo.normalise(targets.advantages, flat.roles))
        return targets

    def _preferences(
        self,
        sequences: Sequence[TokenSequence],
        trajectories: Sequence[Trajectory],
        flat: FlatTokens,
        prepared: Prepared,
    ) -> mappo.Advantages:
        """DPO has no critic: its values are their own targets."""
        pairs = preference_pairs(sequences, [t.sample_id for t in trajectories])
        advantages = preference_advantages(
            prepared.logprobs, prepared.reference, flat.roles, flat.lengths, pairs, self._settings.preference_weight
        )
        return mappo.Advantages(advantages, prepared.values)

    def _optimise(
        self,
        sequences: Sequence[TokenSequence],
        flat: FlatTokens,
        prepared: Prepared,
        targets: mappo.Advantages,
        chosen: Sequence[int],
        report: Report,
    ) -> tuple[float, float]:
        """One optimiser step on the sequences `chosen`; returns the gradient norms of actor and critic."""
        s = self._settings
        mine = torch.zeros(len(sequences), dtype=torch.bool, device=self._device)
        mine[list(chosen)] = True
        my_tokens = mine.repeat_interleave(flat.lengths)
        if s.algorithm == "dpo" and not targets.advantages[my_tokens].any():
            return 0.0, 0.0  # nothing was preferred; a step would follow the optimiser's momentum alone
        tokens = flat.roles[my_tokens].bincount(minlength=len(ROLES))
        percepts = torch.tensor(sum(p.fused for i in chosen for p in sequences[i].prompt.percepts))
        for batch in self._passes(sequences, flat, chosen):
            at = batch.places
            behaviour, advantages, roles = flat.logprobs[at], targets.advantages[at], flat.roles[at]
            output = self._actor(batch.tokens, self._config.episode.temperature)
            terms = mappo.policy_terms(output.logprobs, output.entropies, behaviour, advantages, roles, tokens, s.clip)
            values = self._values(batch, output)
            value = mappo.value_loss(values, prepared.values[at], targets.returns[at], tokens, s.value_clip)
            balance = mappo.balance_loss(output.router, prepared.load, percepts)
            loss = terms.loss + self._config.model.fusion.load_balance * balance
            if s.entropy_weight:  # else its way back through the vocabulary would cost time for nothing
                loss = loss - s.entropy_weight * terms.entropy
            if self._critic:
                self._critic.backward(batch.weight * value)
            else:
                loss = loss + s.value_weight * value
            self._actor.backward(batch.weight * loss)
            report.add((terms.loss, value, terms.entropy, balance), terms, batch.weight)
        norm = self._actor.step(self._lr(s.lr, self._optimiser_steps))
        critic_norm = self._critic.step(self._lr(s.critic_lr, self._optimiser_steps)) if self._critic else 0.0
        self._optimiser_steps += 1
        return norm, critic_norm

    def _values(self, batch: MicroBatch, output: PolicyOutput) -> Tensor:
        """The critic's values ``[R]``; without a separate one they are in the actor's output."""
        return self._critic(batch.tokens, with_entropies=False).values if self._critic else output.values

    def _passes(
        self, sequences: Sequence[TokenSequence], flat: FlatTokens, chosen: Sequence[int]
    ) -> Iterator[MicroBatch]:
        """This rank's forward passes over the sequences `chosen`."""
        lengths = list(map(len, sequences))
        plan = schedule(lengths, chosen, self._settings.workers, self._settings.tokens_per_microbatch)
        policy = self._actor.policy
        for rows in plan[self._rank]:
            batch = collate(sequences, flat, rows, policy.fusion.shape, policy.tokenizer.pad_token_id)
            yield batch.to(self._device)

    def _lr(self, peak: float, step: int) -> float:
        warmup = self._settings.warmup
        return peak * min(1.0, (step + 1) / warmup) if warmup else peak

    # -- what leaves the learner -------------------------------------------------------------------

    def publish(self, version: int, directory: Path) -> WeightsHandle | None:
        """Write the weights for the engines (rank 0; None elsewhere)."""
        with self._actor.gathered():
            if self._rank == 0:
                return self._actor.policy.publish(version, directory)
        return None

    def save_policy(self, directory: Path) -> None:
        """Write or replace a policy directory, adapters beside their base. A separate critic stays behind."""
        with self._actor.gathered():
            if self._rank == 0:
                self._actor.policy.save(directory, replace=True)

    def save_checkpoint(self, directory: Path) -> None:
        """Write everything `load_checkpoint` needs, whole or not at all."""
        partial = directory.with_name(directory.name + ".partial")
        if self._rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            for name in self._engines():
                (partial / name).mkdir(parents=True)
            (partial / STATE).write_text(json.dumps(self._state(), indent=1) + "\n")
        dist.barrier()
        for name, engine in self._engines().items():
            engine.save(partial / name)
        dist.barrier()
        if self._rank == 0:
            partial.rename(directory)

    def load_checkpoint(self, directory: Path) -> None:
        """Go on exactly where the checkpoint was written.

        Raises:
            AffectError: it is none, or belongs to another policy, seed or layout of ranks.
        """
        if not (directory / STATE).is_file():
            raise AffectError(f"{directory}: no {STATE}, so this is not a learner checkpoint")
        state, own = json.loads((directory / STATE).read_text()), self._state()
        counters = {name: state.pop(name, 0) for name in ("updates", "optimiser_steps")}
        for name, value in state.items():
            if own.get(name) != value:
                raise AffectError(
                    f"{directory}: written with {name}={value}, but this learner has {name}={own.get(name)}; "
                    "resume with the config and the policy that the run was started with"
                )
        for name, engine in self._engines().items():
            engine.load(directory / name)
        self._updates, self._optimiser_steps = counters["updates"], counters["optimiser_steps"]

    def _engines(self) -> dict[str, Engine]:
        return {"actor": self._actor} | ({"critic": self._critic} if self._critic else {})

    def _state(self) -> dict[str, int | str]:
        """Counters, from which all randomness follows, and what must not change between run and resumption."""
        s = self._settings
        reference = hashlib.sha256((self._policy_dir / MANIFEST).read_bytes()).hexdigest()
        return {
            "updates": self._updates,
            "optimiser_steps": self._optimiser_steps,
            "seed": self._seed,
            "reference": reference,
            "workers": s.workers,
            "zero_stage": s.zero_stage,
            "critic": s.critic,
            "lora_rank": self._config.model.lora.rank,
        }


def _prepare_metrics(flat: FlatTokens, prepared: Prepared, targets: mappo.Advantages) -> dict[str, float]:
    """How far engine, learner and reference are apart, and how well the critic foresees returns."""
    gap = prepared.logprobs - flat.logprobs
    count = mappo.per_agent_sums(torch.ones_like(gap), flat.roles).clamp(min=1)
    kl = mappo.per_agent_sums(prepared.logprobs - prepared.reference, flat.roles) / count
    explained = mappo.explained_variance(prepared.values, targets.returns, flat.roles)
    metrics = {
        "logprob_gap/max": float(gap.abs().max()),
        "logprob_gap/mean": float(gap.abs().mean()),
        "ratio/first": float(gap.exp()[(gap.exp() - 1).abs().argmax()]),
    }
    for index, role in enumerate(ROLES):
        metrics |= {f"kl/{role}": float(kl[index]), f"{role}/explained_variance": float(explained[index])}
    return metrics


def _optimise_metrics(report: Report, steps: int) -> dict[str, float]:
    """Losses and per-agent statistics, averaged over the optimiser steps."""
    metrics = {f"loss/{name}": value / steps for name, value in zip(LOSSES, report.losses.tolist(), strict=True)}
    for role, sums, ratio_max in zip(ROLES, report.sums.tolist(), report.ratio_max.tolist(), strict=True):
        tokens, *others = sums
        metrics |= {f"{role}/{name}": x / max(tokens, 1) for name, x in zip(mappo.POLICY_SUMS[1:], others, strict=True)}
        metrics[f"{role}/ratio_max"] = ratio_max
    return metrics
