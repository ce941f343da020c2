"""The deadline of the warm start's job; the job itself is tested in `tests/system/test_learners.py`."""

from __future__ import annotations

import queue
import time

import pytest

from learners.sft_job import follow


def test_a_warm_start_may_take_long_but_not_be_silent() -> None:
    steps: queue.Queue[dict[str, float]] = queue.Queue()

    def job() -> None:
        for step in range(8):
            time.sleep(0.5)
            steps.put({"step": float(step)})

    seen: list[dict[str, float]] = []
    assert follow(job, steps, seen.append, deadline_s=2.5) == {"step": 7.0}
    assert [step["step"] for step in seen] == list(range(8))
    steps.put({"step": 8.0})
    with pytest.raises(TimeoutError, match=r"no step came within sft\.deadline_s=0\.5; last step: {'step': 8\.0}"):
        follow(lambda: time.sleep(10), steps, seen.append, deadline_s=0.5)


def test_the_error_of_a_warm_start_is_raised() -> None:
    def job() -> None:
        raise ValueError("a worker failed")

    with pytest.raises(ValueError, match="a worker failed"):
        follow(job, queue.Queue(), print, deadline_s=60)
