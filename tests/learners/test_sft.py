"""The schedule and the deadline of the supervised warm start; its training is tested in `test_engine.py`."""

from __future__ import annotations

import queue
import time

import pytest

from affect_rl.config.sections import SftConfig
from learners.sft import follow, learning_rate

SETTINGS = SftConfig(steps=40, lr=1e-2, warmup=4, decay=0.5)


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(SETTINGS, step) for step in range(41)]
    assert rates[0] == pytest.approx(0.0025)
    assert max(rates) == rates[3] == rates[20] == pytest.approx(1e-2)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[30] == pytest.approx(5e-3)
    assert rates[40] == pytest.approx(0)


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
