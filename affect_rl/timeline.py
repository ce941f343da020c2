"""Who did what when: spans that actors and the loop record, and the Chrome trace that they are written to.

Chrome (``chrome://tracing``) and https://ui.perfetto.dev open the file. Times are those of the nodes' own clocks. A
trace may lack its closing bracket, so steps are appended, and a kill costs no more than the step that it falls into.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

MOST = 10_000
"""Spans that are kept until somebody fetches them."""

GAP_S = 0.01
"""Spans of the same kind that are no farther apart than this are one."""


class Span(NamedTuple):
    """A time in which something was done.

    Attributes:
        what: was done.
        begun: seconds since the epoch.
        seconds: that it took.
    """

    what: str
    begun: float
    seconds: float

    @property
    def ended(self) -> float:
        """Seconds since the epoch."""
        return self.begun + self.seconds


class Spans:
    """Records what its owner does; the oldest are lost if nobody fetches them."""

    def __init__(self) -> None:
        self._spans: deque[Span] = deque(maxlen=MOST)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Record the time that the block takes."""
        begun, clock = time.time(), time.perf_counter()
        try:
            yield
        finally:
            self.add(what, begun, time.perf_counter() - clock)

    def add(self, what: str, begun: float, seconds: float) -> None:
        """Record a span that has ended; one that follows its like at once becomes part of it."""
        with self._lock:
            last = self._spans[-1] if self._spans else None
            if last and last.what == what and last.begun <= begun <= last.ended + GAP_S:
                self._spans[-1] = Span(what, last.begun, max(last.ended, begun + seconds) - last.begun)
            else:
                self._spans.append(Span(what, begun, seconds))

    def fetch(self) -> list[Span]:
        """Those recorded since this was asked last."""
        with self._lock:
            found = list(self._spans)
            self._spans.clear()
        return found


class Timeline:
    """A Chrome trace that grows by a step at a time.

    Args:
        path: of the file; an earlier one is gone on with, without a line that a kill has cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._named: set[int] = set()
        if path.exists():
            with path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def write(self, spans: Mapping[str, Sequence[Span]]) -> None:
        """Append spans, by the name of who recorded them."""
        events = [event for who, own in spans.items() for span in own for event in self._events(who, span)]
        with self._path.open("a") as file:
            if not file.tell():
                file.write("[\n")
            file.writelines(json.dumps(event) + ",\n" for event in events)

    def _events(self, who: str, span: Span) -> Iterator[dict[str, Any]]:
        """A span, and before the first of its kind the names of its process and thread.

        Each kind has a thread of its own, for spans of one thread may not overlap.
        """
        process, thread = _number(who), _number(f"{who} {span.what}")
        if thread not in self._named:
            self._named.add(thread)
            of = {"ph": "M", "pid": process, "tid": thread}
            yield {**of, "name": "process_name", "args": {"name": who}}
            yield {**of, "name": "thread_name", "args": {"name": span.what}}
        times = {"ts": round(span.begun * 1e6), "dur": round(span.seconds * 1e6)}
        yield {"ph": "X", "name": span.what, "cat": who, "pid": process, "tid": thread, **times}


def _number(name: str) -> int:
    """The same for a name in every run and on every resumption; viewers want positive numbers of 32 bits with sign."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def read_timeline(path: Path) -> dict[str, list[Span]]:
    """The spans of a file by `Timeline`, by who recorded them; empty if there is none."""
    found: dict[str, list[Span]] = {}
    for line in path.read_text().splitlines()[1:] if path.exists() else ():
        event = json.loads(line.rstrip(","))
        if event["ph"] == "X":
            found.setdefault(event["cat"], []).append(Span(event["name"], event["ts"] / 1e6, event["dur"] / 1e6))
    return found
