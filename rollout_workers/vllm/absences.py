"""Episodes that wait for something other than their engine, on a clock that counts the engine's steps.

It makes batches independent of when answers arrive: an absence lasts as many steps as was said when it began, an early
answer is held until then, and for a late one the engine rests.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Absence:
    """One episode's wait.

    Attributes:
        until: the engine's step after which the episode goes on.
        over: done when it may.
        back: what it waited for is there.
    """

    until: int
    over: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    back: bool = False


class Absences:
    """All absences of an engine.

    Attributes:
        clock: steps of the engine, and those that it was spared because it had nothing to do.
    """

    def __init__(self) -> None:
        self.clock = 0
        self._absent: list[Absence] = []

    def __bool__(self) -> bool:
        return bool(self._absent)

    def begin(self, steps: int) -> Absence:
        """An episode is absent for so many steps."""
        self._absent.append(absence := Absence(self.clock + steps))
        return absence

    def forget(self, absence: Absence) -> None:
        """An absence has ended in whatever way."""
        if absence in self._absent:
            self._absent.remove(absence)

    def expected(self, *, idle: bool) -> list[Absence]:
        """Those that end before the next step; where the engine is `idle`, the first ones to end."""
        if self._absent and idle:
            self.clock = max(self.clock, min(absence.until for absence in self._absent))
        return [absence for absence in self._absent if absence.until <= self.clock]

    def end(self, absences: list[Absence]) -> None:
        """Let these episodes go on."""
        for absence in absences:
            self.forget(absence)
            if not absence.over.done():  # the episode may have been cancelled
                absence.over.set_result(None)

    def end_all(self) -> None:
        """Let all go on."""
        self.end(list(self._absent))
