"""One rank of the learner: its models, and what becomes of them between updates."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed import Store  # type: ignore[attr-defined]

from affect_rl.algorithms.critic import Critic
from affect_rl.algorithms.step import Step
from affect_rl.config.load import Config
from affect_rl.errors import AffectError
from affect_rl.files import room_on_disk
from affect_rl.memory import release_memory
from affect_rl.network import open_store
from affect_rl.policy.adapters import Lora
from affect_rl.policy.directory import MANIFEST
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.publication import Announcement, Publication
from affect_rl.policy.reference import Reference
from affect_rl.policy.transfer import CollectiveTransfer, Meeting, TransferError
from affect_rl.policy.weights import WeightsHandle, new_weights_dir, write_publication
from affect_rl.timeline import Span, Spans
from learners.engine import Engine, choose_device
from learners.meeting import Seat, join_group, node_address
from learners.shares import Share
from learners.update import Models, Updater

logger = logging.getLogger(__name__)

STATE = "state.json"
CRITIC = "critic.safetensors"


def parameter_group(name: str) -> str:
    """The group of parameters with a learning rate of their own: ``critic``, ``adapter <name>`` or ``policy``."""
    if name.startswith("value_head."):
        return "critic"
    return f"adapter {name.split('.')[-2]}" if ".lora_" in name else "policy"


class LearnerWorker:
    """One rank. `place` on all, `open_store` on the first, `start` on all at once; later calls are to all at once."""

    def __init__(self, config: Config, policy_dir: Path, rank: int, seed: int) -> None:
        self._config, self._settings = config, config.learner
        self._policy_dir, self._rank, self._seed = policy_dir, rank, seed
        self._weights_dirs: dict[str, Path] = {}
        self._group: CollectiveTransfer | None = None
        self._store: Store | None = None
        self._spans = Spans()

    def __repr__(self) -> str:
        return f"learner-{self._rank}"  # in Ray's dashboard and logs

    def place(self) -> str:
        """Address of this rank's node."""
        return node_address()

    def open_store(self) -> int:
        """Open the store where all ranks meet; returns its port."""
        self._store = open_store(self._settings.deadline_s)
        return self._store.port

    def start(self, seat: Seat) -> None:
        """Join the other ranks and load the policy."""
        settings, gpu = self._settings, self._settings.gpus_per_worker > 0
        self._rank = seat.rank  # another than at first, if a rank before it found no place
        torch.manual_seed(self._seed)  # adapters start at random, and on all ranks alike
        self._device = choose_device(gpu, settings.threads, seat.neighbours)
        join_group(seat, gpu=gpu, timeout_s=settings.deadline_s, store=self._store)
        policy = self._load_policy()
        if (lora := self._config.model.lora).rank:
            names = list(dict.fromkeys(self._config.team.adapters.values()))
            policy.add_adapters(Lora(lora.rank, lora.alpha, lora.targets), names)
        policy.to(self._device)
        reference = Reference(policy)
        critic = self._config.algorithm.critic_settings
        separate = self._engine(self._critic_model()) if self._config.algorithm.separate_critic else None
        if critic is None or separate:
            # A parameter that no loss reaches would be reduced on some ranks and awaited on others.
            policy.value_head.requires_grad_(False)
        self._critic = Critic(critic, len(self._config.team.trained)) if critic else None
        self._models = Models(self._engine(policy), reference, self._critic, separate)
        self._updater = Updater(self._config, self._models, self._device)

    def _load_policy(self) -> AffectPolicy:
        return AffectPolicy.load(self._policy_dir, dtype=getattr(torch, self._config.model.dtype), verify=False)

    def _critic_model(self) -> AffectPolicy:
        model = self._load_policy()
        if not model.config.text_config.tie_word_embeddings:
            model.language_model.get_output_embeddings().requires_grad_(False)  # type: ignore[operator]
        return model

    def _engine(self, policy: AffectPolicy) -> Engine:
        s = self._settings
        return Engine(
            policy, self._device, zero_stage=s.zero_stage, weight_decay=s.weight_decay, max_grad_norm=s.max_grad_norm,
            group_of=parameter_group,
            checkpoint_activations=self._config.model.unless_tiny(s.checkpoint_activations),
        )  # fmt: skip

    def update(self, step: Step, share: Share) -> dict[str, float]:
        """One training step, see `learners.update`; returns metrics, the same on every rank."""
        begun = time.time()
        metrics = self._updater.update(step, share)
        self._spans.add("prepare", begun, metrics["learner/prepare_s"])
        self._spans.add("optimise", begun + metrics["learner/prepare_s"], metrics["learner/optimise_s"])
        release_memory()  # the engines, whose turn it is, may be on this machine
        return metrics

    def advantages(self) -> dict[tuple[int, str, int], list[float]]:
        """What the tokens of the last update were learned with, by turn, see `Step.by_turn`; the same on every rank."""
        return self._updater.advantages

    def gap(self, step: Step, share: Share) -> tuple[float, float]:
        """How far the log-probs of a step's tokens are from the engine's, see `learners.update`."""
        return self._updater.gap(step, share)

    def spans(self) -> list[Span]:
        """What this rank has done since this was asked last."""
        return self._spans.fetch()

    # -- what leaves the learner -------------------------------------------------------------------

    def publish(self, version: int, parent: str, mark: str) -> WeightsHandle | None:
        """Write the weights for the engines (rank 0; None elsewhere), in a directory under `parent`.

        `parent`, `mark`: see `new_weights_dir`.
        """
        with self._spans("publish"):
            publication = self._publication(version)
            if self._rank:
                publication.pass_by()
                return None
            if parent not in self._weights_dirs:
                self._weights_dirs[parent] = new_weights_dir(mark, parent, publication.announcement().bytes)
            return write_publication(publication, self._weights_dirs[parent])

    def announce(self, version: int) -> Announcement:
        """What `send` will send; the engines may play on meanwhile."""
        with self._spans("announce weights"):
            publication = self._publication(version)
            publication.count()
            return publication.announcement()

    def open_meeting(self) -> tuple[str, int]:
        """Address of this rank's node, and the port of a new store at which the next group meets."""
        self._leave_group()
        self._meeting_store = open_store(self._settings.deadline_s)
        return node_address(), self._meeting_store.port

    def join_group(self, meeting: Meeting) -> bool:
        """Meet the engines for `send` (rank 0 alone); False: not all came in time."""
        try:
            self._group = CollectiveTransfer(meeting, node_address(), self._meeting_store)
        except TransferError as error:
            logger.warning("%s", error)
        return self._group is not None

    def send(self, version: int) -> bool:
        """Broadcast the weights to the engines, bucket by bucket (all ranks gather, rank 0 sends); False: it broke off,
        and the group is left."""
        with self._spans("send weights"):
            publication = self._publication(version)
            if self._rank or self._group is None:
                publication.pass_by()
                return self._rank > 0
            buckets = publication.buckets()
            try:
                self._group.send(publication.announcement(), buckets)
            except TransferError as error:
                logger.warning("%s", error)
                self._leave_group()  # those who wait for this rank then know at once
                for _ in buckets:  # the other ranks gather on
                    pass
            return self._group is not None

    def withdraw(self) -> None:
        """Delete what was published and leave the engines' group."""
        self._leave_group()
        for directory in self._weights_dirs.values():
            shutil.rmtree(directory, ignore_errors=True)

    def _leave_group(self) -> None:
        if self._group:
            self._group.close()
        self._group = None

    def _publication(self, version: int) -> Publication:
        return self._models.actor.policy.publication(version, self._models.actor.gather)

    def save_policy(self, directory: Path) -> None:
        """Write or replace a policy directory, adapters beside their base. A separate critic stays behind."""
        with self._models.actor.gathered():
            if self._rank == 0:
                self._models.actor.policy.save(directory, replace=True)

    def save_checkpoint(self, directory: Path, updates: int) -> None:
        """Write everything `load_checkpoint` needs, whole or not at all; `updates`: how many there have been."""
        partial = directory.with_name(directory.name + ".partial")
        with room_on_disk(partial):
            self._write_checkpoint(partial, updates)
        if self._rank == 0:
            partial.rename(directory)

    def _write_checkpoint(self, partial: Path, updates: int) -> None:
        if self._rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            for name in self._models.engines():
                (partial / name).mkdir(parents=True)
            counters = {"updates": updates, "optimiser_steps": self._updater.optimiser_steps}
            (partial / STATE).write_text(json.dumps(counters | self._state(), indent=1) + "\n")
            if self._critic:
                save_file(self._critic.state_dict(), partial / CRITIC)
        dist.barrier()
        for name, engine in self._models.engines().items():
            engine.save(partial / name)
        dist.barrier()

    def load_checkpoint(self, directory: Path) -> int:
        """Go on exactly where the checkpoint was written; returns how many updates there have been.

        Raises:
            AffectError: it is none, or belongs to another policy, seed, algorithm or ZeRO stage.
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
        for name, engine in self._models.engines().items():
            engine.load(directory / name)
        if self._critic:
            self._critic.load_state_dict(load_file(directory / CRITIC))
        self._updater.optimiser_steps = counters["optimiser_steps"]
        return counters["updates"]

    def _state(self) -> dict[str, int | str]:
        """What must not change between a run and its resumption."""
        s, critic = self._settings, self._critic
        return {
            "seed": self._seed,
            "reference": hashlib.sha256((self._policy_dir / MANIFEST).read_bytes()).hexdigest(),
            "zero_stage": s.zero_stage,
            "algorithm": self._config.algorithm.name,
            "critic": critic.settings.kind if critic else "none",
            "lora_rank": self._config.model.lora.rank,
        }
