"""Where a job's actors go: placement groups, which Ray gives whole or not at all, so no job holds half of its own.

A group has a bundle an actor, so all ranks of an engine lie on one node; ranks of a learner are numbered node by node.
Inside a trial of Ray Tune the trial's group is used, which Tune made and ends.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import ray
from ray.util import get_current_placement_group
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from affect_rl.config.actors import Actors
from affect_rl.errors import AffectError

logger = logging.getLogger(__name__)

SAY_S = 15.0
"""Between two log lines of a job that waits."""

_Bundle = tuple[PlacementGroup, int]
_LABELS = {"engine": "rollout"}


class NoRoomError(AffectError):
    """Other jobs left no room in time."""


class Placement:
    """The bundles of a job by the kind of actor that they are for.

    Args:
        run: name of the run; `name` makes it unique, for names of actors are global.
        deadline_s: how long to wait for room.
    """

    def __init__(self, run: str, deadline_s: float) -> None:
        self.name = f"{run}-{uuid.uuid4().hex[:4]}"
        self._deadline_s = deadline_s
        self._own: list[PlacementGroup] = []
        self._numbers = count()
        self._bundles: dict[Actors, list[_Bundle]] = {}
        self._started: Counter[str] = Counter()

    @property
    def reserved(self) -> list[Actors]:
        """Actors that there are bundles for."""
        return list(self._bundles)

    def reserve(self, wanted: Iterable[Actors], within_s: float = math.inf) -> None:
        """Take bundles for those of the actors that there are none for, all of them or none.

        `within_s`: how long to wait for room, where that is less than ``cluster.deadline_s``.

        Raises:
            NoRoomError: other jobs left no room in time.
            AffectError: the trial's group has none.
        """
        missing = [actors for actors in wanted if actors not in self._bundles]
        if not missing:
            return
        group = get_current_placement_group()
        if group is None:
            group = _group(self.name, next(self._numbers), missing, min(within_s, self._deadline_s))
            self._own.append(group)
        self._bundles |= _dealt(group, missing, {bundle for held in self._bundles.values() for bundle in held})

    def __call__(self, actors: Actors) -> list[dict[str, Any]]:
        """Arguments of ``.options(...)`` for each actor; those beyond the bundles go where there is room."""
        options: list[dict[str, Any]] = []
        bundles = _by_node(self._bundles.get(actors, []))
        for n in range(actors.count):
            given: dict[str, Any] = {**actors.options, "name": self._name_of(actors, n)}
            if n < len(bundles):
                group, index = bundles[n]
                given["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=index
                )
            options.append(given)
        return options

    def _name_of(self, actors: Actors, n: int) -> str:
        """Unique, also while Ray still ends the one before."""
        name = f"{self.name}-{_LABELS.get(actors.role, actors.role)}-{n}"
        self._started[name] += 1
        return name if self._started[name] == 1 else f"{name}.{self._started[name]}"

    def release(self) -> None:
        """Give the bundles back, which ends actors that are still there."""
        for group in self._own:
            remove_placement_group(group)
        self._own, self._bundles = [], {}


def resources(wanted: Sequence[Actors]) -> list[dict[str, float]]:
    """A bundle an actor."""
    return [actors.resources for actors in wanted for _ in range(actors.count)]


def _group(name: str, number: int, wanted: Sequence[Actors], deadline_s: float) -> PlacementGroup:
    """A group that is there; while it is not, log lines say what is needed and what is free.

    `number`: which group of the job it is, for Ray wants each to have a name of its own.
    """
    group = placement_group(resources(wanted), strategy="PACK", name=f"{name}-{number}")
    began, said = time.monotonic(), 0.0
    try:
        while not group.wait(timeout_seconds=1):
            waited = time.monotonic() - began
            message = f"{name} needs {_need(wanted)}, free are {_free()}"
            if waited > deadline_s:
                raise NoRoomError(
                    f"{message}; others left no room within cluster.deadline_s={deadline_s:g}: raise it, ask for "
                    f"less ({', '.join(dict.fromkeys(s for a in wanted for s in a.settings))}), or add nodes"
                )
            if not said or waited - said >= SAY_S:
                said = waited
                logger.info("waiting for room: %s", message)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def _dealt(group: PlacementGroup, wanted: Sequence[Actors], used: set[_Bundle]) -> dict[Actors, list[_Bundle]]:
    """A bundle of a group for each actor.

    Raises:
        AffectError: it has too few that are large enough.
    """
    free = [n for n in range(group.bundle_count) if (group, n) not in used]
    found: dict[Actors, list[_Bundle]] = {}
    for actors in wanted:
        specs, need = group.bundle_specs, actors.resources
        fits = [n for n in free if all(specs[n].get(kind, 0) >= amount for kind, amount in need.items())]
        fits.sort(key=lambda n: (specs[n].get("GPU", 0), specs[n].get("CPU", 0)))  # larger ones are for others
        if len(fits) < actors.count:
            raise AffectError(
                f"the trial's placement group has bundles {group.bundle_specs}, which leave no room for "
                f"{actors.count} x {actors.resources} ({actors.role}); reserve those of all actors for a trial"
            )
        found[actors] = [(group, n) for n in fits[: actors.count]]
        free = [n for n in free if n not in fits[: actors.count]]
    return found


def neighbours(options: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """How many of some actors lie on the node of each, itself included, by their options; None: it has no bundle."""
    own = [given.get("scheduling_strategy") for given in options]
    bundles = [(s.placement_group, s.placement_group_bundle_index) if s else None for s in own]
    nodes = _nodes_of([bundle for bundle in bundles if bundle])
    there = Counter(nodes[bundle] for bundle in bundles if bundle)
    return [there[nodes[bundle]] if bundle else None for bundle in bundles]


def _by_node(bundles: Sequence[_Bundle]) -> list[_Bundle]:
    """Bundles of one node beside each other."""
    nodes = _nodes_of(bundles)
    return sorted(bundles, key=lambda bundle: (nodes[bundle], bundle[1]))


def _nodes_of(bundles: Sequence[_Bundle]) -> dict[_Bundle, str]:
    """The node of each bundle."""
    nodes: dict[_Bundle, str] = {}
    for group in {group.id: group for group, _ in bundles}.values():
        where = placement_group_table(group)["bundles_to_node_id"]
        nodes |= {(g, n): where[n] for g, n in bundles if g.id == group.id}
    return nodes


def _need(wanted: Sequence[Actors]) -> str:
    parts = []
    for a in wanted:
        gpus = f" and {a.gpus:g} GPU" if a.gpus else ""
        parts.append(f"{a.count} x {a.cpus:g} CPU{gpus} for {a.role}s")
    return ", ".join(parts)


def _free() -> str:
    there = ray.available_resources()
    return f"{there.get('CPU', 0):g} CPU and {there.get('GPU', 0):g} GPU on {len(_nodes())} node(s)"


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]
