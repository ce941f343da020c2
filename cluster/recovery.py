"""Training that outlives its learner: after a loss, a new one goes on from the last checkpoint in the same process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from affect_rl.config.learning import LearnerConfig
from cluster.runtime.health import Budget
from cluster.runtime.rundir import Progress
from learners.group import LearnerLostError

logger = logging.getLogger(__name__)

Start = tuple[Progress, Path | None]
"""Progress and checkpoint to go on from; no checkpoint: from the initial policy."""


class _Closes(Protocol):
    def close(self) -> None: ...


Learner = TypeVar("Learner", bound=_Closes)


def through_losses(
    attempt: Callable[[Learner, Start], Progress],
    start: Start,
    start_learner: Callable[[int | None], Learner],
    settings: LearnerConfig,
    latest: Callable[[], Start],
    abandon: Callable[[], None],
    stop_requested: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Train; whenever the learner is lost, again from the last checkpoint with a new one, as ``--resume`` would.

    Before the first checkpoint training begins again. A first learner that cannot start is an error, no loss.

    Args:
        attempt: trains with a learner at the run's initial policy from a start, and may be called again.
        start: of the first attempt.
        start_learner: starts a learner with at least so many ranks, or with all (None).
        settings: how often, and with how many ranks.
        latest: finds where to go on.
        abandon: makes the engines forget the episodes of a lost attempt.
        stop_requested: whether to end with the next loss.
        clock: seconds.

    Raises:
        LearnerLostError: more than ``learner.max_restarts`` in an hour or without a new checkpoint between them, or
            after a stop was requested.
    """
    budget, fruitless, lost = Budget(settings.max_restarts, clock), 0, start[0].learners_lost
    first: Learner | None = start_learner(None)
    while True:
        try:
            with closing(first or start_learner(settings.min_workers or None)) as learner:
                return attempt(learner, start)
        except LearnerLostError as loss:
            progress, checkpoint = latest()
            fruitless = 1 if checkpoint != start[1] else fruitless + 1
            if why := _end(settings, stop=stop_requested(), often=not budget.spend(), fruitless=fruitless):
                raise LearnerLostError(f"{loss}; {why}") from loss
            lost += 1
            first, start = None, (replace(progress, learners_lost=lost), checkpoint)
            logger.warning("%s; a new learner goes on from step %d", loss, start[0].step)
            abandon()


def _end(settings: LearnerConfig, *, stop: bool, often: bool, fruitless: int) -> str:
    """Why a run ends with a loss; empty: it goes on."""
    if stop:
        return "a stop was requested, so the run ends here; go on with --resume"
    if fruitless > settings.max_restarts:
        return (
            f"loss {fruitless} without a new checkpoint, more than learner.max_restarts={settings.max_restarts}, so the"
            " run ends here: --resume may come to the same point again; see first what the ranks failed of"
        )
    if often:
        return "more often than learner.max_restarts in an hour, so the run ends here; go on with --resume"
    return ""
