"""Training that outlives its learner: after a loss, a new one goes on from the last checkpoint in the same process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from affect_rl.config.learning import LearnerConfig
from cluster.runtime.health import Budget
from cluster.runtime.pool import RolloutPool
from cluster.runtime.rundir import Progress, RunDirectory
from learners.group import LearnerGroup, LearnerLostError

logger = logging.getLogger(__name__)

Start = tuple[Progress, Path | None]
"""Progress and checkpoint to go on from; no checkpoint: from the initial policy."""


def through_losses(
    attempt: Callable[[LearnerGroup, Start], Progress],
    start: Start,
    start_learner: Callable[[int | None], LearnerGroup],
    settings: LearnerConfig,
    directory: RunDirectory,
    pool: RolloutPool,
    stop_requested: Callable[[], bool],
) -> Progress:
    """Train; whenever the learner is lost, again from the last checkpoint with a new one, as ``--resume`` would.

    Before the first checkpoint training begins again. A first learner that cannot start is an error, no loss.

    Args:
        attempt: trains with a learner at the run's initial policy from a start, and may be called again.
        start: of the first attempt.
        start_learner: starts a learner with at least so many ranks, or with all (None).
        settings: how often, and with how many ranks.
        directory: has the checkpoints.
        pool: plays the episodes; those of a lost attempt are forgotten.
        stop_requested: whether to end with the next loss.

    Raises:
        LearnerLostError: more than ``learner.max_restarts`` in an hour, or after a stop was requested.
    """
    budget = Budget(settings.max_restarts, time.monotonic)
    first: LearnerGroup | None = start_learner(None)
    while True:
        try:
            with closing(first or start_learner(settings.min_workers or None)) as learner:
                return attempt(learner, start)
        except LearnerLostError as loss:
            if stop_requested() or not budget.spend():
                why = "a stop was requested" if stop_requested() else "more often than learner.max_restarts in an hour"
                raise LearnerLostError(f"{loss}; {why}, so the run ends here; go on with --resume") from loss
            first, start = None, directory.latest()
            logger.warning("%s; a new learner goes on from step %d", loss, start[0].step)
            pool.abandon()
