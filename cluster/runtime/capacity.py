"""What a cluster has against what a job asks for: known before the first actor is started.

Ray itself would let an actor wait for ever that fits on no node.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import ray
import torch
from joblib import cpu_count

from affect_rl.config.actors import Actors, Stage, actors_of, logical_cpus
from affect_rl.config.load import Config
from affect_rl.errors import AffectError

logger = logging.getLogger(__name__)

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
    """What a running cluster has at the moment, asked without joining it; what it may grow to is known only inside.

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
    return Capacity("the cluster as it is now", tuple(Node.of(node.resources_total) for node in nodes))


def shortages(stage: str, wanted: Sequence[Actors], capacity: Capacity) -> Iterator[str]:
    """What actors that live at the same time are certain to lack, one sentence each.

    Args:
        stage: what they do.
        wanted: the actors.
        capacity: what there is.
    """
    actors = sorted(wanted, key=lambda a: (-a.gpus, -a.cpus))
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
    if short or capacity.largest:
        return
    for one in actors:
        if not _packs([one], capacity.nodes):
            yield (
                f"{stage}: each {one.role} needs {_amount(one.cpus, 'CPU')} and {_amount(one.gpus, 'GPU')} on one "
                f"node, and there is no room for {one.count}; the nodes have {_each(capacity.nodes)}; change "
                f"{', '.join(one.settings)}, or take larger nodes"
            )


def doubt(stage: str, wanted: Sequence[Actors], capacity: Capacity) -> str:
    """A sentence if actors of several kinds may find no room beside each other, though none is short; else empty.

    Whether there is a way to place them all is not searched for to the end, and Ray does not search either.
    """
    if any(shortages(stage, wanted, capacity)) or capacity.largest or _packs(wanted, capacity.nodes):
        return ""
    return (
        f"{stage} may have to wait: {_asked(wanted)} are hard to place beside each other on nodes with "
        f"{_each(capacity.nodes)}; if it does wait, ask for less, or take larger nodes"
    )


def fits(wanted: Sequence[Actors], capacity: Capacity) -> bool:
    """Whether actors are certain to find room."""
    return not any(shortages("", wanted, capacity)) and not doubt("", wanted, capacity)


def check_actors(stages: Mapping[str, Sequence[Actors]], capacity: Capacity) -> None:
    """Raise `AffectError` unless the actors of every stage find their CPUs and GPUs; log where that is in doubt."""
    if found := [line for stage, wanted in stages.items() for line in shortages(stage, wanted, capacity)]:
        raise AffectError("\n".join(found))
    for stage, wanted in stages.items():
        if line := doubt(stage, wanted, capacity):
            logger.warning("%s", line)


def check_resources(config: Config, stages: Sequence[Stage], capacity: Capacity) -> None:
    """`check_actors` of stages of a job."""
    check_actors({stage: actors_of(config, stage) for stage in stages}, capacity)


def _packs(actors: Sequence[Actors], nodes: Sequence[Node]) -> bool:
    """Whether one of a few simple ways to place actors has room for all; for actors of one kind any way is as good.

    Those with most GPUs, or most CPUs, come first; each goes to the first node, the fullest or the emptiest that has
    room.
    """
    orders: Sequence[Callable[[Actors], tuple[float, float]]] = (
        lambda a: (-a.gpus, -a.cpus),
        lambda a: (-a.cpus, -a.gpus),
    )
    choices: Sequence[Callable[[_Room], tuple[float, float]]] = (
        lambda room: (0, 0),
        lambda room: (sum(room.cards), room.cpus),
        lambda room: (-sum(room.cards), -room.cpus),
    )
    return any(_placed(sorted(actors, key=order), nodes, choice) for order in orders for choice in choices)


def _placed(actors: Sequence[Actors], nodes: Sequence[Node], choice: Callable[[_Room], tuple[float, float]]) -> bool:
    rooms = [_Room(node) for node in nodes]
    each = (one for one in actors for _ in range(one.count))
    return all(any(room.take(one) for room in sorted(rooms, key=choice)) for one in each)


def _asked(actors: Sequence[Actors]) -> str:
    return ", ".join(f"{a.count} x {a.cpus:g} CPU{f' and {a.gpus:g} GPU' if a.gpus else ''} ({a.role})" for a in actors)


def _each(nodes: Sequence[Node]) -> str:
    return ", ".join(f"{_amount(n.cpus, 'CPU')} and {_amount(n.gpus, 'GPU')}" for n in nodes)


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
