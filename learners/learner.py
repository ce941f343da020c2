"""One rank of the learner: the policy, its critic, the frozen reference, and the update.

A step has two parts. *Prepare*: passes without gradients give every token its log-prob under the policy as it stands
and under the reference, and its value if the algorithm has a critic; the algorithm makes advantages of them.
*Optimise*: `epochs` passes over the episodes in random minibatches, one optimiser step each.

A rank gets its share of the episodes and the numbers of all (`learners.shares`). What it computed for its share is
summed into the others' zeros, so that each knows the whole step and all report the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from affect_rl.algorithms import make_algorithm
from affect_rl.algorithms.algorithm import Part, Targets
from affect_rl.algorithms.batching import MicroBatch, TokenSequence, collate
from affect_rl.algorithms.critic import Critic
from affect_rl.algorithms.losses import balance_loss, token_weights
from affect_rl.algorithms.step import Step
from affect_rl.config.load import Config
from affect_rl.errors import AffectError
from affect_rl.policy.model import MANIFEST, AffectPolicy, Lora, Reference
from affect_rl.policy.weights import WeightsHandle, publish_weights
from affect_rl.team.knowledge import columns
from learners.engine import Engine, choose_device, join_group
from learners.report import Report, prepare_metrics
from learners.shares import Minibatch, Share

STATE = "state.json"
CRITIC = "critic.safetensors"


class Prepared(NamedTuple):
    """What the passes without gradients found.

    Attributes:
        step: with the learner's and the reference's log-probs and the critic's values.
        entropies: ``[R]`` of the distributions that the tokens were drawn from.
        head: ``[R]`` what the critic's head said; 0 without a critic.
        load: ``[experts]`` share of the chosen slots that went to each expert.
    """

    step: Step
    entropies: Tensor
    head: Tensor
    load: Tensor


class Goal(NamedTuple):
    """What is to be learned: the algorithm's targets, and those of the critic's head ``[R]``."""

    targets: Targets
    head: Tensor


class LearnerWorker:
    """One rank. `place`, then `start` on all ranks at once; later calls also go to all ranks at once."""

    def __init__(self, config: Config, policy_dir: Path, rank: int, seed: int) -> None:
        self._config, self._settings = config, config.learner
        self._policy_dir, self._rank, self._seed = policy_dir, rank, seed
        self._algorithm = make_algorithm(config.algorithm)
        self._agents = config.team.trained
        self._optimiser_steps = 0

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
        self._entropy = torch.tensor([self._config.team[a].entropy for a in self._agents], device=self._device)
        critic = self._config.algorithm.critic_settings if self._algorithm.needs_critic else None
        self._critic = Critic(critic, len(self._agents)) if critic else None
        self._separate: Engine | None = None
        self._shared = critic is not None and critic.kind == "shared"
        self._known = columns(critic.sees) if critic else []
        if not self._shared:  # a parameter that no loss reaches would be reduced on some ranks and awaited on others
            policy.value_head.requires_grad_(False)
        if critic and not self._shared:
            model = self._load_policy()
            if not model.config.text_config.tie_word_embeddings:
                model.language_model.get_output_embeddings().requires_grad_(False)  # type: ignore[operator]
            self._separate = self._engine(model)
        self._actor = self._engine(policy)

    def _load_policy(self) -> AffectPolicy:
        return AffectPolicy.load(self._policy_dir, dtype=getattr(torch, self._config.model.dtype))

    def _engine(self, policy: AffectPolicy) -> Engine:
        s = self._settings
        return Engine(
            policy, self._device, zero_stage=s.zero_stage, weight_decay=s.weight_decay, max_grad_norm=s.max_grad_norm,
            group_of=lambda name: "critic" if name.startswith("value_head.") else "policy",
        )  # fmt: skip

    # -- the update --------------------------------------------------------------------------------

    def update(self, step: Step, share: Share) -> dict[str, float]:
        """One training step; `step` holds the numbers of all ranks. Returns metrics, the same on every rank."""
        begun = time.perf_counter()
        step = replace(step, knowledge=step.knowledge[:, self._known])
        prepared = self._prepare(step.to(self._device), share)
        targets = self._algorithm.targets(prepared.step)
        if self._critic:
            assert targets.returns is not None
            goal = Goal(targets, self._critic.learn(prepared.step, prepared.head, targets.returns))
        else:
            goal = Goal(targets, prepared.head)
        prepared_at = time.perf_counter()
        report = Report(self._agents)
        norms = [self._optimise(n, part, share, prepared, goal, report) for n, part in enumerate(share.minibatches)]
        optimise_s = time.perf_counter() - prepared_at
        return {
            **prepare_metrics(prepared.step, targets, prepared.entropies),
            **report.metrics(len(norms), self._device),
            "learner/grad_norm": sum(actor for actor, _ in norms) / len(norms),
            "learner/critic_grad_norm": sum(critic for _, critic in norms) / len(norms),
            "learner/lr": self._lr(self._settings.lr, self._optimiser_steps - 1),
            "learner/tokens": float(share.tokens),
            "learner/prepare_s": prepared_at - begun,
            "learner/optimise_s": optimise_s,
            "learner/tokens_per_s": share.tokens * self._settings.epochs / optimise_s,
        }

    @torch.no_grad()
    def _prepare(self, step: Step, share: Share) -> Prepared:
        seen = torch.zeros(4, len(step.agent), device=self._device)
        load = torch.zeros(self._actor.policy.fusion.shape.experts, device=self._device)
        for batch in self._passes(share.actor.sequences, share.actor.whole):
            at = batch.places
            output = self._actor(batch.tokens, step.temperature[at], entropies=True, values=self._shared)
            reference = self._reference.logprobs(batch.tokens, step.temperature[at])
            head = output.values if self._shared else torch.zeros_like(reference)
            found = torch.stack([output.logprobs, reference, output.entropies, head])
            seen[:, at] += batch.weight * found
            load += batch.weight * (output.weights > 0).sum(dim=0)
        if self._separate and share.critic:
            for batch in self._passes(share.critic.sequences, share.critic.whole):
                seen[3, batch.places] += batch.weight * self._read(self._separate, batch)
        dist.all_reduce(seen)
        dist.all_reduce(load)
        old, reference, entropies, head = seen
        step = replace(step, old=old, reference=reference)
        if self._critic:
            step = replace(step, values=self._critic.values(step, head))
        return Prepared(step, entropies, head, load / load.sum().clamp(min=1))

    def _optimise(
        self, number: int, part: Minibatch, share: Share, prepared: Prepared, goal: Goal, report: Report
    ) -> tuple[float, float]:
        """One optimiser step on a minibatch; returns the gradient norms of the policy and of a separate critic."""
        step = prepared.step
        chosen = torch.isin(step.episode, torch.tensor(part.episodes, device=self._device))[step.chain][step.turn]
        if not self._algorithm.learns(goal.targets, chosen):
            return 0.0, 0.0
        weights, entropy_weights = self._algorithm.weights(step, chosen), token_weights(step, chosen, "tokens")
        tokens, explores = float(chosen.sum()), bool(self._entropy.any())
        for batch in self._passes(share.actor.sequences, share.actor.minibatches[number]):
            at = batch.places
            output = self._actor(batch.tokens, step.temperature[at], entropies=explores, values=self._shared)
            terms = self._algorithm.loss(step, goal.targets, Part(at, output.logprobs, weights[at]))
            balance = balance_loss(output.router, prepared.load, part.percepts)
            loss, parts = terms.loss + self._config.model.fusion.load_balance * balance, {"balance": balance}
            if explores:  # else its way back through the vocabulary would cost time for nothing
                parts["entropy"] = (entropy_weights[at] * self._entropy[step.agent[at]] * output.entropies).sum()
                loss = loss - parts["entropy"]
            if self._shared and self._critic:
                parts["value"] = self._critic.loss(output.values, prepared.head[at], goal.head[at], tokens)
                loss = loss + self._critic.settings.weight * parts["value"]
            self._actor.backward(batch.weight * loss)
            report.add({**terms.parts, **parts}, batch.weight, terms.statistics)
        rates = {"policy": self._lr(self._settings.lr, self._optimiser_steps), "critic": 0.0}
        critic_norm = 0.0
        if self._critic:
            rates["critic"] = self._lr(self._critic.settings.lr, self._optimiser_steps)
        if self._separate and self._critic and share.critic:
            for batch in self._passes(share.critic.sequences, share.critic.minibatches[number]):
                at = batch.places
                value = self._critic.loss(self._read(self._separate, batch), prepared.head[at], goal.head[at], tokens)
                self._separate.backward(batch.weight * value)
                report.add({"value": value}, batch.weight)
            critic_norm = self._separate.step(rates["critic"])
        norm = self._actor.step(rates)
        self._optimiser_steps += 1
        return norm, critic_norm

    def _read(self, critic: Engine, batch: MicroBatch) -> Tensor:
        """What a separate critic's head says of a batch ``[R_b]``."""
        return critic(batch.tokens, logprobs=False, values=True).values

    def _passes(self, sequences: Sequence[TokenSequence], plan: Sequence[Sequence[int]]) -> Iterator[MicroBatch]:
        """This rank's forward passes."""
        policy = self._actor.policy
        for rows in plan:
            yield collate(sequences, rows, policy.fusion.shape, policy.tokenizer.pad_token_id).to(self._device)

    def _lr(self, peak: float, step: int) -> float:
        warmup = self._settings.warmup
        return peak * min(1.0, (step + 1) / warmup) if warmup else peak

    # -- what leaves the learner -------------------------------------------------------------------

    def publish(self, version: int, directory: Path) -> WeightsHandle | None:
        """Write the weights for the engines (rank 0; None elsewhere)."""
        with self._actor.gathered():
            if self._rank == 0:
                return publish_weights(self._actor.policy.export(), version, directory)
        return None

    def save_policy(self, directory: Path) -> None:
        """Write or replace a policy directory, adapters merged. A separate critic stays behind."""
        with self._actor.gathered():
            if self._rank == 0:
                self._actor.policy.save(directory, replace=True)

    def save_checkpoint(self, directory: Path, updates: int) -> None:
        """Write everything `load_checkpoint` needs, whole or not at all; `updates`: how many there have been."""
        partial = directory.with_name(directory.name + ".partial")
        if self._rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            for name in self._engines():
                (partial / name).mkdir(parents=True)
            counters = {"updates": updates, "optimiser_steps": self._optimiser_steps}
            (partial / STATE).write_text(json.dumps(counters | self._state(), indent=1) + "\n")
            if self._critic:
                save_file(self._critic.state_dict(), partial / CRITIC)
        dist.barrier()
        for name, engine in self._engines().items():
            engine.save(partial / name)
        dist.barrier()
        if self._rank == 0:
            partial.rename(directory)

    def load_checkpoint(self, directory: Path) -> int:
        """Go on exactly where the checkpoint was written; returns how many updates there have been.

        Raises:
            AffectError: it is none, or belongs to another policy, seed, algorithm or layout of ranks.
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
        if self._critic:
            self._critic.load_state_dict(load_file(directory / CRITIC))
        self._optimiser_steps = counters["optimiser_steps"]
        return counters["updates"]

    def _engines(self) -> dict[str, Engine]:
        return {"actor": self._actor} | ({"critic": self._separate} if self._separate else {})

    def _state(self) -> dict[str, int | str]:
        """What must not change between a run and its resumption."""
        s, critic = self._settings, self._critic
        return {
            "seed": self._seed,
            "reference": hashlib.sha256((self._policy_dir / MANIFEST).read_bytes()).hexdigest(),
            "workers": s.workers,
            "zero_stage": s.zero_stage,
            "algorithm": self._config.algorithm.name,
            "critic": critic.settings.kind if critic else "none",
            "lora_rank": self._config.model.lora.rank,
        }
