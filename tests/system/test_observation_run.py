"""Reading what actors have done, on Ray actors of which one is busy."""

from __future__ import annotations

import time

import pytest
import ray

from affect_rl.timeline import Span, Spans
from cluster.runtime.observation import SPANS_S, SpanReader

pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote(num_cpus=0)
class Worker:
    """Does one thing at a time, as a shard does."""

    def __init__(self) -> None:
        self._spans = Spans()

    def work(self, seconds: float) -> None:
        with self._spans("work"):
            time.sleep(seconds)

    def spans(self) -> list[Span]:
        return self._spans.fetch()


def test_a_busy_actor_tells_later_and_one_that_is_down_not_at_all() -> None:
    idle, busy = Worker.remote(), Worker.remote()
    reader, actors = SpanReader(), {"idle": idle, "busy": busy}

    def told_by(name: str) -> Span:
        found: list[Span] = []
        while not found:
            found = reader.read(actors).get(name, [])
        (span,) = found
        return span

    ray.get([idle.spans.remote(), busy.spans.remote()])  # they have started
    work = busy.work.remote(4 * SPANS_S)
    ray.get(idle.work.remote(0))
    assert told_by("idle").what == "work"
    assert "busy" not in reader.read(actors)
    ray.get(work)
    span = told_by("busy")
    assert span.what == "work" and span.seconds >= 4 * SPANS_S, "it was asked in vain, and nothing is lost"

    ray.kill(busy)
    while "busy" in reader.read(actors):  # it takes Ray a moment
        pass
