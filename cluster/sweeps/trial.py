"""One trial of a sweep: a run of its own, from the warm start that trials share, resumable like any run.

What Ray Tune keeps as a trial's checkpoint is the name of a checkpoint in a run directory. If it is another trial's,
population-based training wants this trial to go on from there.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from affect_rl.data.dataset import Dataset
from affect_rl.errors import AffectError
from affect_rl.experiments.sweep import SweepSpec
from affect_rl.files import replace_directory
from cluster.experiments.stages import warm_started
from cluster.runtime.run import make_run, run_training
from cluster.runtime.rundir import RunDirectory
from cluster.runtime.services import Services
from cluster.runtime.tracking import set_up_logging

logger = logging.getLogger(__name__)

POINTER = "checkpoint.json"
SCORE, STEP = "score", "step"
"""Names of what a trial reports: the score on dev, and the training step."""


def run_trial(settings: dict[str, Any], *, spec: SweepSpec, more: tuple[str, ...], runs: Path) -> None:
    """What Ray Tune runs for each trial, in an actor of its own.

    Args:
        settings: those that are searched.
        spec: the sweep.
        more: overrides of the command line.
        runs: directory of the sweep's runs, on a path that all nodes see.
    """
    set_up_logging()
    name = f"trial-{tune.get_context().get_trial_id()}"
    config = spec.trial_config(settings, more).model_copy(update={"runs_dir": str(runs), "name": name})
    directory = RunDirectory(config.run_dir)
    if (origin := _checkpoint()) is not None and origin.parts[0] != name:
        logger.warning("%s goes on from %s", name, origin)
        adopt(runs / origin, directory)
    if directory.policy.exists():  # Tune missed its last words
        return
    dataset = Dataset.of(config.data)
    with closing(Services()) as services:
        start = config.initial_policy if config.policy else warm_started(config, dataset, services)
        config = config.model_copy(update={"policy": str(start)})
        tracker = TuneTracker(directory)
        resume = (directory.path / "metrics.jsonl").exists()
        run_training(make_run(config, dataset, services, "train"), resume=resume, trackers=[tracker])
        tracker.tell()


class TuneTracker:
    """Reports the step's score to Ray Tune once the step's checkpoint is whole, that is, with the next step.

    Tune may end a trial as soon as it has reported.

    Args:
        directory: of the trial's run.
        report: tells Tune.
    """

    def __init__(self, directory: RunDirectory, report: Callable[..., None] = tune.report) -> None:
        self._directory, self._report = directory, report
        self._scored: dict[str, float] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step <= self._scored.get(STEP, 0):  # the learner was lost before the checkpoint; the step is done again
            self._scored = {}
        self.tell()
        if (score := score_in(metrics)) is not None:
            self._scored = {STEP: step, SCORE: score}

    def tell(self) -> None:
        """Report what has not been reported."""
        if not self._scored:
            return
        scored, self._scored = self._scored, {}
        checkpoint = self._directory.checkpoints()[-1]
        with tempfile.TemporaryDirectory() as folder:
            pointer = checkpoint.relative_to(self._directory.path.parent)
            (Path(folder) / POINTER).write_text(json.dumps(str(pointer)))
            self._report(scored, checkpoint=tune.Checkpoint.from_directory(folder))

    def close(self) -> None:
        """Whoever made it tells the last step."""


def score_in(metrics: Mapping[str, Any]) -> float | None:
    """The score on dev; None: the step was not scored."""
    return next((value for name, value in metrics.items() if name.startswith("dev/")), None)


def adopt(checkpoint: Path, directory: RunDirectory) -> None:
    """Let a run go on from another run's checkpoint, with settings of its own.

    The other run's best score goes with other settings, so this one has none until it is scored itself. The other run
    may have deleted the checkpoint since Tune chose it: then it goes on from the newest. The run's own checkpoints are
    replaced once the copy is whole.

    Raises:
        AffectError: the other run has no checkpoint.
    """
    donor, copy = RunDirectory(checkpoint.parent.parent), directory.path / "adopted"
    names = [checkpoint.name, *(path.name for path in reversed(donor.checkpoints()))]
    if not any(_copied(donor, name, copy) for name in names):
        raise AffectError(f"{donor.path}: has no checkpoint to go on from; the same command tries again")
    for name in ("config.yaml", "policy"):
        path = directory.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in ("checkpoints", "policies"):
        replace_directory(copy / name, directory.path / name)
    copy.rmdir()
    (directory.path / "metrics.jsonl").touch()


def _copied(donor: RunDirectory, name: str, to: Path) -> bool:
    """Copy a checkpoint without its best policy and that one's score; False: the other run is deleting it."""
    source, copy = donor.path / "checkpoints" / name, RunDirectory(to)
    shutil.rmtree(to, ignore_errors=True)
    try:
        shutil.copytree(source, to / "checkpoints" / name)
    except (FileNotFoundError, shutil.Error):
        return False
    progress, whole = copy.latest()
    (to / "policies").mkdir()
    if whole:
        copy.seal(whole, replace(progress, best_step=-1, best_score=-1.0), keep=1)
    return source in donor.checkpoints()


def _checkpoint() -> Path | None:
    """The checkpoint that Tune wants the trial to go on from, in the directory of runs."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return Path(json.loads((Path(folder) / POINTER).read_text()))
