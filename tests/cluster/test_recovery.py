"""Training through losses of its learner, on a clock and with attempts of the test's."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

import pytest

from affect_rl.config.learning import LearnerConfig
from cluster.recovery import Start, through_losses
from cluster.runtime.health import HOUR_S
from cluster.runtime.rundir import Progress
from learners.group import LearnerLostError


class Run:
    """A run whose attempts make `gains` checkpoints each and are then lost after `seconds`; one more attempt ends."""

    def __init__(self, gains: list[int], seconds: float, *, stopped: bool = False) -> None:
        self.gains, self.seconds, self.stopped = gains, seconds, stopped
        self.now, self.step, self.abandoned = 0.0, 0, 0
        self.starts: list[Start] = []
        self.least: list[int | None] = []

    def latest(self) -> Start:
        return Progress(step=self.step), Path(f"step-{self.step:05d}") if self.step else None

    def learner(self, least: int | None) -> ExitStack:
        self.least.append(least)
        return ExitStack()

    def attempt(self, learner: ExitStack, start: Start) -> Progress:
        self.starts.append(start)
        if not self.gains:
            return Progress(step=99)
        self.now += self.seconds
        self.step += self.gains.pop(0)
        raise LearnerLostError("learner update: rank 1 failed")

    def abandon(self) -> None:
        self.abandoned += 1

    def __call__(self, max_restarts: int) -> Progress:
        settings = LearnerConfig(workers=2, min_workers=1, max_restarts=max_restarts)
        stop, clock = (lambda: self.stopped), (lambda: self.now)
        return through_losses(
            self.attempt, self.latest(), self.learner, settings, self.latest, self.abandon, stop, clock
        )


def test_each_attempt_goes_on_from_the_newest_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    run = Run([0, 2, 3], 60)
    with caplog.at_level(logging.WARNING):
        assert run(max_restarts=3).step == 99
    assert [(progress.step, path and path.name) for progress, path in run.starts] == [
        (0, None), (0, None), (2, "step-00002"), (5, "step-00005"),
    ]  # fmt: skip
    assert run.abandoned == 3 and run.least == [None, 1, 1, 1]
    assert "rank 1 failed; a new learner goes on from step 5" in caplog.text


@pytest.mark.parametrize(("losses", "ends"), [(3, True), (2, False)])
def test_too_many_losses_in_an_hour_end_the_run_though_it_gets_on(losses: int, ends: bool) -> None:
    run = Run([1] * losses, 600)
    if ends:
        with pytest.raises(LearnerLostError, match=r"rank 1 failed; more often than learner\.max_restarts in an hour"):
            run(max_restarts=2)
    else:
        assert run(max_restarts=2).step == 99


def test_losses_of_a_run_that_gets_on_age_out() -> None:
    assert Run([1] * 20, HOUR_S / 2)(max_restarts=2).step == 99


@pytest.mark.parametrize("before", [[], [1]])
def test_losses_without_a_checkpoint_between_them_end_the_run_however_long_they_take(before: list[int]) -> None:
    """An attempt of two hours that fails at the same step each time would begin again for ever."""
    run = Run([*before, *[0] * 20], 2 * HOUR_S)
    with pytest.raises(LearnerLostError, match=r"; loss 3 without a new checkpoint, .* see first what the ranks"):
        run(max_restarts=2)
    assert len(run.starts) == 3


def test_a_loss_after_a_stop_was_requested_ends_the_run() -> None:
    with pytest.raises(LearnerLostError, match="a stop was requested"):
        Run([0], 1, stopped=True)(max_restarts=3)
