"""What the processes were at that died while they made a part of the features.

A file can kill the process that reads it, by its size or by a fault in a decoder's machine code. Nothing can be caught
then, and whoever tries again dies again. So each step is written down before it is begun, and crossed out after.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from affect_rl.errors import AffectError

MOST_DEATHS = 2
"""A process may also die with its node, through no fault of what it was at; hardly twice at the same step."""


class Attempts:
    """A record on disk of the deaths over one part.

    Args:
        path: of the record, which exists while there is something to remember; None: nothing is remembered.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._deaths: list[str] = _read(path) if path else []

    @classmethod
    def over(cls, part: Path) -> Self:
        """Those over the part that is to be written to a path."""
        return cls(part.with_suffix(".attempts"))

    @contextmanager
    def at(self, step: str, error: type[AffectError], fix: str) -> Iterator[None]:
        """The step is taken inside.

        Raises:
            AffectError: an `error` that names step and `fix`, if too many processes have died at it.
        """
        if self._deaths.count(step) >= MOST_DEATHS:
            raise error(
                f"{step}: {MOST_DEATHS} processes died at it; {fix}, or if memory was short use fewer --workers"
            )
        self._write([*self._deaths, step])
        try:
            yield
        finally:  # not reached by a process that dies
            self._write(self._deaths)

    def forget(self) -> None:
        """A run begins, or the part is made."""
        if self._path:
            self._path.unlink(missing_ok=True)

    def _write(self, steps: list[str]) -> None:
        if self._path and steps:
            self._path.write_text(json.dumps(steps))
        else:
            self.forget()


def _read(path: Path) -> list[str]:
    try:
        return list(json.loads(path.read_text()))
    except (OSError, ValueError):  # none, or cut off by a death
        return []
