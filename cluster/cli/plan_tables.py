"""What ``affect-rl plan`` prints: actors, memory and files of a job against what there is."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from affect_rl.config.actors import actors_of
from cluster.plan import cached_tokens, disk
from cluster.prospect import STAGES, Prospect, free_bytes, gib


def tables(prospect: Prospect) -> Iterator[Table]:
    """Actors by stage, memory by process, files."""
    yield _actors(prospect)
    yield _memory(prospect)
    yield _files(prospect)


def _actors(of: Prospect) -> Table:
    every = {stage: actors_of(of.config, stage) for stage in STAGES}
    nodes = len(of.capacity.nodes)
    where = of.capacity.name + (f", {nodes} nodes" if nodes > 1 else "")
    table = _table("actors", "each asks for", *STAGES, where)
    for actors in dict.fromkeys(actors for stage in STAGES for actors in every[stage]):
        asks = f"{actors.cpus:g} CPU" + (f", {actors.gpus:g} GPU" if actors.gpus else "")
        table.add_row(actors.role, asks, *(str(actors.count) if actors in every[stage] else "" for stage in STAGES), "")
    table.add_section()
    for kind in ("cpus", "gpus"):
        needs = [sum(actors.count * getattr(actors, kind) for actors in every[stage]) for stage in STAGES]
        table.add_row(kind.upper()[:3] + "s", "", *(f"{n:g}" for n in needs), f"{of.capacity.total(kind):g}")
    return table


def _memory(of: Prospect) -> Table:
    memory = of.memory
    table = _table("GiB of one process", *memory)
    for name in dict.fromkeys(name for own, _ in memory.values() for name in own.parts):
        table.add_row(name, *(_or_nothing(own.parts.get(name, 0)) for own, _ in memory.values()))
    table.add_section()
    table.add_row("peak", *(gib(own.peak) for own, _ in memory.values()))
    table.add_row("reached in", *(own.phase for own, _ in memory.values()))
    table.add_row("there", *(f"{gib(share * of.card)} (GPU)" if share else "CPU" for _, share in memory.values()))
    room = cached_tokens(of.config, of.model, of.card)
    sequences = room // of.config.model.context
    table.caption = f"An engine's cache holds {room:,} tokens: {sequences} sequences of model.context."
    return table


def _files(of: Prospect) -> Table:
    files, weights_dir = disk(of.config, of.model), of.config.rollout.weights_dir
    table = _table(
        "GiB of files, at most", of.config.runs_dir, weights_dir or "/dev/shm, or with several nodes runs_dir"
    )
    for name, size in files["runs_dir"].items():
        table.add_row(name, _or_nothing(size), "")
    for name, size in files["weights"].items():
        table.add_row(name, "", _or_nothing(size))
    table.add_section()
    table.add_row("together", *(gib(sum(sizes.values())) for sizes in files.values()))
    table.add_row("free", *("" if place is None else gib(free_bytes(place)) for place in (of.runs, of.weights)))
    return table


def _table(*columns: str) -> Table:
    first, *others = columns
    table = Table(first, box=box.SIMPLE_HEAD, caption_justify="left")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _or_nothing(size: float) -> str:
    return gib(size) if size else ""
