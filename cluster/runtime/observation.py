"""What those who watch a pool learn of it. They have no say in who is healthy: who is down or late gives no answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle

from affect_rl.timeline import Span
from affect_rl.trajectory import Trajectory

SPANS_S = 1.0
"""So long a step waits at most for what actors have done; one that is late tells it with a later step."""

Who = TypeVar("Who")


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the pool knows of an engine.

    Attributes:
        healthy: it is given episodes.
        playing: episodes that it has.
        faults: how often it failed.
    """

    healthy: bool
    playing: int
    faults: int


@dataclass(frozen=True, slots=True)
class PoolState:
    """What the pool has to do.

    Attributes:
        version: of the weights that all healthy engines have.
        waiting: episodes that no engine has yet.
        replayed: episodes played again because their actor was lost.
        engines: by number of the actor.
    """

    version: int
    waiting: int
    replayed: int
    engines: dict[int, EngineState]


def answers_in_time(asked: Mapping[ray.ObjectRef, Who], timeout_s: float) -> dict[Who, Any]:
    """What those say who answer in time, by who it is."""
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    return _answers(asked, ready)


def lacking_evidence(episodes: Sequence[Trajectory]) -> str:
    """How many episodes had to do without a part of the evidence, in a sentence; empty if none had."""
    lacking = sum(t.degraded for t in episodes)
    if not lacking:
        return ""
    return f"{lacking} of {len(episodes)} episodes lack evidence: a shard was down or over retrieval.shard_timeout_s"


class SpanReader:
    """Asks actors what they have done, each one question at a time: the answer empties its record."""

    def __init__(self) -> None:
        self._late: dict[ray.ObjectRef, str] = {}

    def read(self, actors: Mapping[str, ActorHandle]) -> dict[str, list[Span]]:
        """What the `actors`, by name, have done since they told it last, as far as they answer."""
        asked = {actor.spans.remote(): name for name, actor in actors.items() if name not in self._late.values()}
        if asked:  # the late ones have been waited for before
            ray.wait(list(asked), num_returns=len(asked), timeout=SPANS_S)
        everyone = asked | self._late
        ready, late = ray.wait(list(everyone), num_returns=len(everyone), timeout=0) if everyone else ([], [])
        self._late = {ref: everyone[ref] for ref in late}
        return _answers(everyone, ready)


def _answers(asked: Mapping[ray.ObjectRef, Who], ready: Iterable[ray.ObjectRef]) -> dict[Who, Any]:
    answers = {}
    for ref in ready:
        with suppress(ray.exceptions.RayError):  # it is down, which the pool will find out itself
            answers[asked[ref]] = ray.get(ref)
    return answers
