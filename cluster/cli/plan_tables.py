"""What ``affect-rl plan`` prints: actors, memory and files of a job against what there is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from rich import box
from rich.table import Table

from affect_rl.config.actors import Stage, actors_of, engines, learners, sft_workers
from affect_rl.config.load import Config
from affect_rl.data.dataset import MANIFEST, read_manifest
from cluster.plan import GIB, Memory, cached_tokens, disk, engine_memory, rank_memory, training_of
from cluster.runtime.capacity import Capacity, shortages
from cluster.sizes import PolicySizes, policy_sizes, text_config_of

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
    """

    config: Config
    capacity: Capacity
    model: PolicySizes
    card: int
    notes: tuple[str, ...]

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
        if not gpu_gib:
            own = capacity.name == "this machine" and torch.cuda.device_count() > 0
            gpu_gib = torch.cuda.get_device_properties(0).total_memory / GIB if own else USUAL_CARD_GIB
            if not own and any(actors.gpus for stage in STAGES for actors in actors_of(config, stage)):
                notes.append(f"cards count as {USUAL_CARD_GIB:g} GiB; --gpu-memory says otherwise")
        model = policy_sizes(text_config_of(config.model, model_config), config.model, *widths)
        return cls(config, capacity, model, int(gpu_gib * GIB), tuple(notes))

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
        config = self.config
        for stage in STAGES:
            yield from shortages(stage, actors_of(config, stage), self.capacity)
        for role, (memory, share) in self.memory.items():
            if share and memory.peak > share * self.card:
                most = max(memory.parts, key=memory.parts.__getitem__)
                yield (
                    f"each {role} takes {_gib(memory.peak)} GiB of the {_gib(share * self.card)} GiB that it has of a "
                    f"GPU; most of it is {most}, {_gib(memory.parts[most])} GiB"
                )
        if (room := cached_tokens(config, self.model, self.card)) < config.model.context:
            setting = "gpu_memory" if config.rollout.gpus_per_worker else "kv_cache_gib"
            yield (
                f"the KV cache of an engine holds {room:,} tokens, a sequence may have model.context="
                f"{config.model.context}; raise rollout.{setting}"
            )
        need, free = sum(disk(config, self.model)["runs_dir"].values()), self._free
        if free is not None and need > free:
            yield f"runs_dir={config.runs_dir} may need {_gib(need)} GiB, {_gib(free)} GiB are free; give a larger disk"

    def tables(self) -> Iterator[Table]:
        """Actors by stage, memory by process, files."""
        yield self._actors()
        yield self._memory()
        yield self._files()

    def _actors(self) -> Table:
        every = {stage: actors_of(self.config, stage) for stage in STAGES}
        nodes = len(self.capacity.nodes)
        where = self.capacity.name + (f", {nodes} nodes" if nodes > 1 else "")
        table = _table("actors", "each asks for", *STAGES, where)
        for actors in dict.fromkeys(actors for stage in STAGES for actors in every[stage]):
            asks = f"{actors.cpus:g} CPU" + (f", {actors.gpus:g} GPU" if actors.gpus else "")
            table.add_row(
                actors.role, asks, *(str(actors.count) if actors in every[stage] else "" for stage in STAGES), ""
            )
        table.add_section()
        for kind in ("cpus", "gpus"):
            needs = [sum(actors.count * getattr(actors, kind) for actors in every[stage]) for stage in STAGES]
            table.add_row(kind.upper()[:3] + "s", "", *(f"{n:g}" for n in needs), f"{self.capacity.total(kind):g}")
        return table

    def _memory(self) -> Table:
        memory = self.memory
        table = _table("GiB of one process", *memory)
        for name in dict.fromkeys(name for of, _ in memory.values() for name in of.parts):
            table.add_row(name, *(_gib(of.parts.get(name, 0)) for of, _ in memory.values()))
        table.add_section()
        table.add_row("peak", *(_gib(of.peak) for of, _ in memory.values()))
        table.add_row("reached in", *(of.phase for of, _ in memory.values()))
        table.add_row(
            "there", *(f"{_gib(share * self.card)} (GPU)" if share else "CPU" for _, share in memory.values())
        )
        room = cached_tokens(self.config, self.model, self.card)
        sequences = room // self.config.model.context
        table.caption = f"An engine's cache holds {room:,} tokens: {sequences} sequences of model.context."
        return table

    def _files(self) -> Table:
        files, weights_dir = disk(self.config, self.model), self.config.rollout.weights_dir
        table = _table(
            "GiB of files, at most", self.config.runs_dir, weights_dir or "/dev/shm, or with several nodes runs_dir"
        )
        for name, size in files["runs_dir"].items():
            table.add_row(name, _gib(size), "")
        for name, size in files["weights"].items():
            table.add_row(name, "", _gib(size))
        table.add_section()
        table.add_row("together", *(_gib(sum(sizes.values())) for sizes in files.values()))
        if self._free is not None:
            table.add_row("free", _gib(self._free), "")
        return table

    @property
    def _free(self) -> int | None:
        """Bytes that are free where runs go; None: that is not known from here."""
        if self.capacity.name != "this machine":
            return None
        runs = Path(self.config.runs_dir).resolve()
        return shutil.disk_usage(next(path for path in (runs, *runs.parents) if path.exists())).free


def _table(*columns: str) -> Table:
    first, *others = columns
    table = Table(first, box=box.SIMPLE_HEAD, caption_justify="left")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size else ""


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"
