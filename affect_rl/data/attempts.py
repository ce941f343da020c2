"""What the processes were at that died while they made a part of the features.

A file can kill the process that reads it, by its size or by a fault in a decoder's machine code. Nothing can be caught
then, and whoever tries again dies again. So each step is written down before it is begun, and crossed out after.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from affect_rl.data.media import MediaError
from affect_rl.errors import AffectError

MOST_DEATHS = 2
"""A process may also die with its node, through no fault of the file; hardly twice at the same one."""

_ENCODING = "encoding"


class Attempts:
    """A record on disk of the deaths over one part.

    Args:
        path: of the record, which exists while there is something to remember.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._deaths: list[str] = _read(path)

    @contextmanager
    def reading(self, file: Path) -> Iterator[None]:
        """A file is read inside.

        Raises:
            MediaError: too many processes have died of it.
        """
        if self._deaths.count(str(file)) >= MOST_DEATHS:
            raise MediaError(f"{file}: {MOST_DEATHS} processes died while they read it; shorten or export it again")
        with self._at(str(file)):
            yield

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """What was read is encoded inside.

        Raises:
            AffectError: too many processes have died of it.
        """
        if self._deaths.count(_ENCODING) >= MOST_DEATHS:
            self.forget()  # a user who changes something and comes again is to get another chance
            raise AffectError(
                f"extract: {MOST_DEATHS} processes died in the encoder, over the part {self._path.stem}; see why in "
                "Ray's logs. If memory was short, use fewer --workers or a smaller --batch-size"
            )
        with self._at(_ENCODING):
            yield

    def forget(self) -> None:
        """The part is made, or given up."""
        self._path.unlink(missing_ok=True)

    @contextmanager
    def _at(self, step: str) -> Iterator[None]:
        self._write([*self._deaths, step])
        try:
            yield
        finally:  # not reached by a process that dies
            self._write(self._deaths)

    def _write(self, steps: list[str]) -> None:
        if steps:
            self._path.write_text(json.dumps(steps))
        else:
            self.forget()


def _read(path: Path) -> list[str]:
    try:
        return list(json.loads(path.read_text()))
    except (OSError, ValueError):  # none, or cut off by a death
        return []
