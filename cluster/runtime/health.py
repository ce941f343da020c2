"""The health of a fleet of engines: a state machine that knows neither Ray nor a clock of its own.

::

                 fault             answered            loaded             verified
    HEALTHY  ------------>  DEAD  ---------->  STALE  -------->  LOADED  ---------->  HEALTHY
                            |  ^                |  ^  published     |
                            |  +----------------+  +----------------+
                            v      postponed
                         RETIRED

A fault leads from every state to DEAD, or to RETIRED if it is one too many within an hour, or one too many since the
engine played last: one that never comes back fails once in a deadline, which may be a good part of an hour. So an
engine that was dead plays again only with the current weights, and after they were verified.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

HOUR_S = 3600.0
PROBE_S = 1.0
"""Seconds between two questions whether a dead engine is back."""


class State(Enum):
    """Where an engine stands."""

    DEAD = auto()
    """It does not answer: gone, or not started yet."""
    STALE = auto()
    """It answers, with weights of no known version."""
    LOADED = auto()
    """It has reported the current version."""
    HEALTHY = auto()
    """It plays."""
    RETIRED = auto()
    """It failed too often and does not come back."""


class Budget:
    """So many events in an hour and no more.

    Args:
        limit: how many.
        clock: seconds.

    Attributes:
        total: events that were counted ever.
    """

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit, self._clock, self.total = limit, clock, 0
        self._spent: deque[float] = deque()

    def spend(self) -> bool:
        """Count an event; False: with it there are too many in the last hour."""
        now = self._clock()
        while self._spent and self._spent[0] <= now - HOUR_S:
            self._spent.popleft()
        self._spent.append(now)
        self.total += 1
        return len(self._spent) <= self._limit


@dataclass(slots=True)
class _Engine:
    faults: Budget
    in_a_row: int = 0
    state: State = State.DEAD
    back_by: float = math.inf
    next_probe: float = math.inf


@dataclass(slots=True)
class Fleet:
    """The engines by their numbers, which are never used twice.

    Attributes:
        deadline_s: how long an engine may be out of service before that is a fault of its own.
        max_faults: of an engine in an hour, and of one that does not play between them; one more retires it.
        clock: seconds.
        version: of the current weights.
    """

    deadline_s: float
    max_faults: int
    clock: Callable[[], float]
    version: int = 0
    _engines: dict[int, _Engine] = field(default_factory=dict)

    def add(self, number: int, *, started: bool = False) -> None:
        """A further engine, which is about to start, or has `started` with the current weights."""
        engine = self._engines[number] = _Engine(Budget(self.max_faults, self.clock))
        if started:
            engine.state = State.HEALTHY
        else:
            self._out(engine)

    def state(self, number: int) -> State:
        """Where an engine stands."""
        return self._engines[number].state

    def faults(self, number: int) -> int:
        """How often an engine has failed, over all its life."""
        return self._engines[number].faults.total

    def active(self) -> list[int]:
        """Engines that play, or may again."""
        return [number for number, engine in list(self._engines.items()) if engine.state is not State.RETIRED]

    def healthy(self) -> list[int]:
        """Engines that play."""
        return [number for number, engine in list(self._engines.items()) if engine.state is State.HEALTHY]

    def fault(self, number: int) -> State:
        """An engine died, failed or was late: DEAD, or RETIRED if it was once too often."""
        engine = self._engines[number]
        if engine.state is not State.RETIRED:
            engine.in_a_row += 1
            if engine.faults.spend() and engine.in_a_row <= self.max_faults:
                self._out(engine)
            else:
                engine.state = State.RETIRED
        return engine.state

    def retire(self, number: int) -> None:
        """An engine is given up."""
        self._engines[number].state = State.RETIRED

    def _out(self, engine: _Engine) -> None:
        now = self.clock()
        # Not asked at once: a process that was just killed may still answer.
        engine.state, engine.back_by, engine.next_probe = State.DEAD, now + self.deadline_s, now + PROBE_S

    # -- the way back ----------------------------------------------------------------------------

    def to_probe(self) -> list[int]:
        """Dead engines that are to be asked now; each is named once until `unavailable`."""
        due = [n for n, e in self._engines.items() if e.state is State.DEAD and e.next_probe <= self.clock()]
        for number in due:
            self._engines[number].next_probe = math.inf
        return due

    def late(self) -> list[int]:
        """Engines that ought to be back by now."""
        away = (State.DEAD, State.STALE, State.LOADED)
        return [n for n, e in self._engines.items() if e.state in away and e.back_by < self.clock()]

    def unavailable(self, number: int) -> None:
        """A dead engine was asked and is not there yet: ask again later."""
        self._engines[number].next_probe = self.clock() + PROBE_S

    def answered(self, number: int) -> None:
        """A dead engine answers."""
        self._move(number, State.DEAD, State.STALE)

    def postpone(self, number: int) -> None:
        """A stale engine cannot be given the current weights for now: it is dead for a while, and that is no fault."""
        if self._engines[number].state is State.STALE:
            self._out(self._engines[number])

    def loaded(self, number: int, version: int) -> bool:
        """A stale engine reports its weights' version; False: that is not the current one, load again."""
        if version == self.version:
            self._move(number, State.STALE, State.LOADED)
        return self.state(number) is State.LOADED

    def verified(self, number: int) -> bool:
        """The weights of a loaded engine are right; False: there are others by now, load again."""
        if self._move(number, State.LOADED, State.HEALTHY):
            self._engines[number].in_a_row = 0
        return self.state(number) is State.HEALTHY

    def published(self, version: int) -> None:
        """There are new weights. Whoever plays is given them by the caller, who reports a `fault` of those it fails."""
        self.version = version
        for engine in self._engines.values():
            if engine.state is State.LOADED:
                engine.state = State.STALE

    def _move(self, number: int, before: State, after: State) -> bool:
        """Only from `before`: an answer may come late, when the engine has failed again. Whether it was there."""
        engine = self._engines[number]
        if there := engine.state is before:
            engine.state = after
        return there
