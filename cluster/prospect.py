"""A job that may be started: whether the memory of its processes and its files have room, beside its actors.

``affect-rl plan`` prints all of it, and commands that start a job refuse it for the same reasons.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from affect_rl.config.actors import Stage, actors_of, engines, learners, sft_workers
from affect_rl.config.load import Config
from affect_rl.data.dataset import MANIFEST, read_manifest
from affect_rl.errors import AffectError
from affect_rl.policy.weights import weights_places
from cluster.plan import GIB, Memory, cached_tokens, disk, engine_memory, rank_memory, training_of
from cluster.runtime.capacity import Capacity, doubt, shortages, this_machine
from cluster.sizes import PolicySizes, policy_sizes, text_config_of

logger = logging.getLogger(__name__)

STAGES: tuple[Stage, ...] = ("sft", "train", "eval")
UNKNOWN_WIDTH = 1024
USUAL_CARD_GIB = 80.0


@dataclass(frozen=True)
class Prospect:
    """A job that may be started.

    Attributes:
        config: its settings.
        capacity: what there is.
        model: sizes of its policy.
        card: bytes of a GPU.
        notes: what was assumed.
        card_known: whether `card` is more than an assumption.
        runs: where runs go, if that is a disk of this machine.
        weights: where weights are published, if that is a disk of this machine, or its memory.
    """

    config: Config
    capacity: Capacity
    model: PolicySizes
    card: int
    notes: tuple[str, ...]
    card_known: bool
    runs: Path | None
    weights: Path | None

    @classmethod
    def of(cls, config: Config, capacity: Capacity, gpu_gib: float = 0, model_config: Path | None = None) -> Self:
        """Look up what `config` leaves open.

        Args:
            config: of the job.
            capacity: what there is.
            gpu_gib: GiB of a card; 0: of this machine's, or the usual.
            model_config: published ``config.json`` of a base that is not on this machine.

        Raises:
            AffectError: nothing on this machine says how large the base is.
        """
        notes = []
        widths = UNKNOWN_WIDTH, UNKNOWN_WIDTH
        if (Path(config.data.dir) / MANIFEST).is_file():
            manifest = read_manifest(Path(config.data.dir))
            widths = manifest.audio_dim, manifest.video_dim
        else:
            notes.append(f"{config.data.dir} is not here, so features count as {UNKNOWN_WIDTH} wide")
        here = capacity.name == "this machine"
        asks = any(actors.gpus for stage in STAGES for actors in actors_of(config, stage))
        card = int(gpu_gib * GIB)
        if not card and asks and here and torch.cuda.device_count():
            card = _own_card()
        if not card and asks:
            notes.append(f"cards count as {USUAL_CARD_GIB:g} GiB; --gpu-memory says otherwise")
        if capacity.largest is None and not here:
            notes.append("what an autoscaler may add to the cluster is not known from here, only where a job starts")
        model = policy_sizes(text_config_of(config.model, model_config), config.model, *widths)
        parent = config.rollout.weights_dir
        return cls(
            config,
            capacity,
            model,
            card or int(USUAL_CARD_GIB * GIB),
            tuple(notes),
            card_known=bool(card),
            runs=Path(config.runs_dir) if here else None,
            weights=(Path(parent) if parent else max(weights_places(), key=free_bytes)) if here else None,
        )

    @property
    def title(self) -> str:
        trained = training_of(self.config, self.model, self.config.learner).trained
        model = self.config.model
        sizes = f"{_count(self.model.total)} parameters; {_count(trained)} train"
        return f"{self.config.name}: {model.base} in {model.dtype}, {sizes}"

    @property
    def memory(self) -> dict[str, tuple[Memory, float]]:
        """By what a process is, its memory and the share of a card that it has; 0: it is on the CPU."""
        config, model = self.config, self.model
        warm, learn, play = sft_workers(config.sft), learners(config.learner), engines(config.rollout)
        return {
            warm.role: (rank_memory(config, model, config.sft), min(1.0, warm.gpus)),
            learn.role: (rank_memory(config, model, config.learner), min(1.0, learn.gpus)),
            play.role: (engine_memory(config, model, self.card), min(1.0, play.gpus)),
        }

    def problems(self) -> Iterator[str]:
        """What is missing, one sentence each; none: the job fits."""
        for stage in STAGES:
            yield from shortages(stage, actors_of(self.config, stage), self.capacity)
        yield from self.memory_problems(STAGES)
        yield from self.disk_problems(STAGES, trajectories=True)

    def doubts(self) -> Iterator[str]:
        """Where a stage may have to wait, one sentence each."""
        for stage in STAGES:
            if line := doubt(stage, actors_of(self.config, stage), self.capacity):
                yield line

    def memory_problems(self, stages: Sequence[Stage]) -> Iterator[str]:
        """Cards that are too small for a process of these stages, and caches that are for a sequence."""
        config, roles = self.config, {actors.role for stage in stages for actors in actors_of(self.config, stage)}
        for role, (memory, share) in self.memory.items():
            if role in roles and share and memory.peak > share * self.card:
                most = max(memory.parts, key=memory.parts.__getitem__)
                yield (
                    f"each {role} takes {gib(memory.peak)} GiB of the {gib(share * self.card)} GiB that it has of a "
                    f"GPU; most of it is {most}, {gib(memory.parts[most])} GiB"
                )
        room = cached_tokens(config, self.model, self.card)
        if engines(config.rollout).role in roles and room < config.model.context:
            setting = "gpu_memory" if config.rollout.gpus_per_worker else "kv_cache_gib"
            yield (
                f"the KV cache of an engine holds {room:,} tokens, a sequence may have model.context="
                f"{config.model.context}; raise rollout.{setting}"
            )

    def disk_problems(self, stages: Sequence[Stage], *, trajectories: bool = False) -> Iterator[str]:
        """Disks that are too small for what these stages may still write.

        `trajectories`: count them as well, though no more than an upper bound is known.
        """
        if self.runs:
            need, free = self._to_write(stages, trajectories), free_bytes(self.runs)
            if need > free:
                yield (
                    f"runs_dir={self.config.runs_dir} may need {gib(need)} GiB, {gib(free)} GiB are free; give a "
                    "larger disk, or lower train.keep_checkpoints"
                )
        if self.weights and "train" in stages and self.config.rollout.transfer == "file":
            need, free = sum(disk(self.config, self.model)["weights"].values()), free_bytes(self.weights)
            if need > free:
                yield (
                    f"published weights need {gib(need)} GiB, {gib(free)} GiB are free in {self.weights}; set "
                    "rollout.weights_dir to a larger disk that all nodes see, or rollout.transfer=collective"
                )

    def _to_write(self, stages: Sequence[Stage], trajectories: bool) -> int:
        """Bytes of files in the run's directory, less those that are there already."""
        files = dict(disk(self.config, self.model)["runs_dir"])
        bound = files.pop("trajectories")
        warm = sum(size for name, size in files.items() if name.startswith("warm start"))
        need = {"sft": warm, "train": sum(files.values()) - warm + (bound if trajectories else 0)}
        there = {"sft": 0, "train": 0}
        run_dir = self.config.run_dir
        for path in run_dir.rglob("*"):
            if path.is_file():
                there["sft" if path.relative_to(run_dir).parts[0].startswith("sft") else "train"] += path.stat().st_size
        return sum(max(0, need[stage] - there[stage]) for stage in need if stage in stages)


def check_memory_and_disk(config: Config, stages: Sequence[Stage], *, here: bool) -> None:
    """Refuse a job for what `Prospect` finds beside CPUs and GPUs; what is not known from here is logged and let pass.

    Args:
        config: of the job, which is to start from this process.
        stages: what it is to do.
        here: whether it runs on this machine alone.

    Raises:
        AffectError: a card, a KV cache or a disk is too small.
    """
    try:
        prospect = Prospect.of(config, this_machine(config) if here else Capacity("the cluster", ()))
    except Exception as error:  # a base that is still to be fetched, or that transformers makes in a way of its own
        logger.info("memory and disk are not checked: %s", str(error).partition(";")[0])
        return
    weights = Path(config.rollout.weights_dir) if config.rollout.weights_dir else prospect.weights
    prospect = replace(prospect, runs=Path(config.runs_dir), weights=weights)
    lines = [*prospect.disk_problems(stages)]
    if prospect.card_known or not any(actors.gpus for stage in stages for actors in actors_of(config, stage)):
        lines += prospect.memory_problems(stages)
    else:
        logger.info("memory of GPUs is not checked, for their size is not known from here; `affect-rl plan` does")
    if lines:
        raise AffectError("\n".join(lines))


def free_bytes(path: Path) -> int:
    """What is free on the disk where `path` is or will be."""
    path = path.resolve()
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free


def gib(size: float) -> str:
    """With two digits."""
    return f"{size / GIB:.2f}"


def _own_card() -> int:
    """Bytes of this machine's GPU, asked by another process: whoever asks may keep memory of it."""
    code = "import torch; print(torch.cuda.get_device_properties(0).total_memory)"
    return int(subprocess.check_output([sys.executable, "-c", code], text=True))


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"
