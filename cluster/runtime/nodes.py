"""What becomes of the nodes of the cluster that this process is connected to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from affect_rl.config.actors import Actors

T = TypeVar("T")


def ending_nodes() -> set[str]:
    """Ids of the nodes that Ray drains: a cloud has announced to take them away, or an autoscaler no longer needs them.

    Ray Train asks the same for its own notices; there is no public way.
    """
    return set(ray._private.state.state.get_draining_nodes())


def node_of(actor: ActorHandle) -> str:
    """Id of an actor's node; empty: it has none at the moment."""
    found = ray._private.state.actors(actor._actor_id.hex())
    return str(found.get("Address", {}).get("NodeID", ""))


def free_places(actors: Actors) -> int:
    """How many more of these actors the cluster has room for now, leaving out nodes that end."""
    ending, places = ending_nodes(), 0
    for node, free in ray._private.state.available_resources_per_node().items():
        if node not in ending:
            places += min(int(free.get(kind, 0) / need) for kind, need in actors.resources.items() if need)
    return places


def on_largest_node(work: Callable[..., T], *args: object) -> T:
    """Do `work` in a process of its own on the node with the most memory, and return what it returns.

    A driver is often on a small node, or in the pod of a head that has no more than Ray needs. No CPUs are asked for:
    the job's actors may have reserved all.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    largest = max(alive, key=lambda node: node["Resources"].get("memory", 0))
    there = NodeAffinitySchedulingStrategy(largest["NodeID"], soft=True)
    return ray.get(ray.remote(num_cpus=0, scheduling_strategy=there)(work).remote(*args))  # type: ignore[no-any-return]


class Wish:
    """Room for one more actor than the cluster has.

    A placement group that waits is demand, to which an autoscaler answers with a node.

    Args:
        actors: the kind of actor.
    """

    def __init__(self, actors: Actors) -> None:
        self._actors = actors
        self._group: PlacementGroup | None = None

    def granted(self) -> bool:
        """Whether there is room now, which is free for the actor from here on. If not, the cluster has been asked."""
        if self._group is None:
            self._group = placement_group([self._actors.resources])
        if not self._group.wait(timeout_seconds=0):
            return False
        self.drop()
        return True

    def drop(self) -> None:
        """Wish for nothing any more."""
        if self._group is not None:
            remove_placement_group(self._group)
        self._group = None


class Notices:
    """Says once of each node whose end is announced that a checkpoint is due, if the learner or the driver is there.

    Args:
        actors: the learner's ranks.
    """

    def __init__(self, actors: Iterable[ActorHandle]) -> None:
        self._nodes = {node_of(actor) for actor in actors} | {ray.get_runtime_context().get_node_id()}
        self._known: set[str] = set()

    def __call__(self) -> bool:
        """Whether there is a new notice."""
        new = (ending_nodes() & self._nodes) - self._known
        self._known |= new
        return bool(new)
