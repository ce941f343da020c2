"""What a cluster has against what a job asks for: known before the first actor is started.

Ray itself would let an actor wait for ever that fits on no node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import ray
import torch
from joblib import cpu_count

from affect_rl.config.actors import Actors, Stage, actors_of, logical_cpus
from affect_rl.config.load import Config
from affect_rl.errors import AffectError

_KINDS = (("GPU", "gpus"), ("CPU", "cpus"))


@dataclass(frozen=True, slots=True)
class Node:
    """Logical CPUs and GPUs of a node."""

    cpus: float
    gpus: float = 0

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> Node:
        """From resources by Ray's names."""
        return cls(resources.get("CPU", 0), resources.get("GPU", 0))


@dataclass(frozen=True, slots=True)
class Capacity:
    """What there is, whether or not others use it at the moment.

    Attributes:
        name: what to call it.
        nodes: its nodes.
        largest: all resources that an autoscaler may bring it to; None: it does not grow.
    """

    name: str
    nodes: tuple[Node, ...]
    largest: Node | None = None

    def total(self, kind: str) -> float:
        """All of ``cpus`` or ``gpus``."""
        there = sum(getattr(node, kind) for node in self.nodes)
        return max(there, getattr(self.largest, kind)) if self.largest else there


@dataclass(slots=True)
class _Room:
    """What is free on a node. A fraction of a GPU lies on one card."""

    node: Node
    cpus: float = field(init=False)
    cards: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.cpus, self.cards = self.node.cpus, [1.0] * int(self.node.gpus)

    def take(self, actor: Actors) -> bool:
        """Put one actor here; False: there is no room."""
        share, count = (1.0, int(actor.gpus)) if actor.gpus >= 1 else (actor.gpus, 1 if actor.gpus else 0)
        chosen = [n for n, free in enumerate(self.cards) if free >= share - 1e-9][:count]
        if actor.cpus > self.cpus or len(chosen) < count:
            return False
        self.cpus -= actor.cpus
        for n in chosen:
            self.cards[n] -= share
        return True


def this_machine(config: Config) -> Capacity:
    """What a Ray started on this machine would offer, see `cluster.runtime.session.ray_session`."""
    cpus = config.cluster.num_cpus or max(logical_cpus(config), cpu_count())
    return Capacity("this machine", (Node(cpus, torch.cuda.device_count()),))


def connected_cluster() -> Capacity:
    """What the cluster has that this process is connected to, and what its autoscaler may add."""
    nodes = tuple(Node.of(node["Resources"]) for node in ray.nodes() if node["Alive"])
    # Ray Train asks the same to know how far a cluster can grow; there is no public way.
    largest = ray._private.state.state.get_max_resources_from_cluster_config()
    return Capacity("the cluster", nodes, Node.of(largest) if largest else None)


def cluster_at(address: str) -> Capacity:
    """What a running cluster has, asked without joining it.

    Args:
        address: ``auto``, that of its head as ``HOST:PORT``, or of its dashboard as ``http://HOST:8265``.

    Raises:
        AffectError: it does not answer.
    """
    from ray.util.state import list_nodes

    try:
        nodes = list_nodes(address=address, filters=[("state", "=", "ALIVE")], timeout=5, raise_on_missing_output=False)
    except Exception as error:  # Ray raises a kind of its own for each layer
        reason = str(error).strip().splitlines()[0]
        raise AffectError(
            f"--address {address}: no answer from a Ray cluster ({reason}); give HOST:PORT of its head, or "
            "http://HOST:8265 of its dashboard"
        ) from error
    return Capacity("the cluster", tuple(Node.of(node.resources_total) for node in nodes))


def shortages(config: Config, stage: Stage, capacity: Capacity, beside: Sequence[Actors] = ()) -> Iterator[str]:
    """What a stage of a job lacks, one sentence each; none: it fits.

    Args:
        config: of the job.
        stage: which part of it.
        capacity: what there is.
        beside: actors that are there already and stay.
    """
    actors = sorted([*actors_of(config, stage), *beside], key=lambda a: (-a.gpus, -a.cpus))
    short = False
    for kind, attribute in _KINDS:
        asking = [a for a in actors if getattr(a, attribute)]
        need, have = sum(a.count * getattr(a, attribute) for a in asking), capacity.total(attribute)
        if need > have:
            short = True
            named = ", ".join(f"{a.count} x {getattr(a, attribute):g} for each {a.role}" for a in asking)
            yield (
                f"{stage} needs {_amount(need, kind)} ({named}), {capacity.name} has {have:g}"
                f"{_on_nodes(capacity)}; lower {', '.join(_levers(asking, kind))}{_or_more(capacity)}"
            )
    if not short and not capacity.largest and (homeless := _homeless(actors, capacity.nodes)):
        asks = f"{_amount(homeless.cpus, 'CPU')} and {_amount(homeless.gpus, 'GPU')}"
        each = ", ".join(f"{_amount(n.cpus, 'CPU')} and {_amount(n.gpus, 'GPU')}" for n in capacity.nodes)
        yield (
            f"{stage}: each {homeless.role} needs {asks} on one node, and beside the others there is no room for "
            f"{homeless.count}; the nodes have {each}; change {', '.join(homeless.settings)}, or take larger nodes"
        )


def check_resources(config: Config, stages: Sequence[Stage], capacity: Capacity, beside: Sequence[Actors] = ()) -> None:
    """Raise `AffectError` unless every stage of a job finds the CPUs and GPUs that its actors ask for."""
    if found := [line for stage in stages for line in shortages(config, stage, capacity, beside)]:
        raise AffectError("\n".join(found))


def _homeless(actors: Sequence[Actors], nodes: Sequence[Node]) -> Actors | None:
    """The first actors that find no place, the largest placed first; each goes to the first node with room."""
    rooms = [_Room(node) for node in nodes]
    for one in actors:
        if not all(any(room.take(one) for room in rooms) for _ in range(one.count)):
            return one
    return None


def _levers(actors: Sequence[Actors], kind: str) -> list[str]:
    """The settings that say how many CPUs or GPUs actors ask for."""
    other = "gpus" if kind == "CPU" else "threads"
    return [name for name in dict.fromkeys(name for a in actors for name in a.settings) if other not in name]


def _amount(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _on_nodes(capacity: Capacity) -> str:
    if capacity.largest:
        return " with all that its autoscaler may add"
    return f" on {_amount(len(capacity.nodes), 'node')}" if capacity.name != "this machine" else ""


def _or_more(capacity: Capacity) -> str:
    return ", or join a cluster (cluster.address)" if capacity.name == "this machine" else ", or add nodes"
