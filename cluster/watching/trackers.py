"""Where a run's numbers go: a list of trackers that is handed to whoever has numbers, the loop or the warm start."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from affect_rl.config.load import Config
from affect_rl.errors import AffectError
from affect_rl.files import room_on_disk, whole_file


class Tracker(Protocol):
    """One place that keeps metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step, by the names of docs/metrics.md; some may not be finite."""
        ...

    def close(self) -> None:
        """Write what is still in memory; the tracker is of no use afterwards."""
        ...


class JsonlTracker:
    """One line a step in ``metrics.jsonl``, or ``<stage>-metrics.jsonl``; numbers that are not finite become null.

    On resuming, lines after `first_step` are of steps that are done again; they are dropped.
    """

    def __init__(self, run_dir: Path, first_step: int = 0, stage: str = "") -> None:
        self._path = run_dir / f"{stage}-metrics.jsonl".removeprefix("-")
        kept = [line for line in logged(self._path) if line["step"] <= first_step] if first_step else []
        with whole_file(self._path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._started = time.monotonic()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        clean = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with room_on_disk(self._path), self._path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.monotonic() - self._started, 3), **clean}) + "\n")

    def close(self) -> None:
        """Nothing is left to write."""


def logged(file: Path) -> Iterator[dict[str, Any]]:
    """The steps that a `JsonlTracker` wrote whole: a kill may have cut the last line off, of a step that is done again.
    None, if there is no file."""
    if file.exists():
        yield from (json.loads(line) for line in file.read_text().splitlines(True) if line.endswith("\n"))


class TensorBoardTracker:
    """Curves under ``tensorboard/``, those of a stage apart."""

    def __init__(self, run_dir: Path, first_step: int = 0, stage: str = "") -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes half a second to import

        self._board = SummaryWriter(str(run_dir / "tensorboard" / stage), purge_step=first_step + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in finite(metrics).items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are numbers; services refuse NaN, or draw it as 0."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def check_trackers(config: Config) -> None:
    """Raise `AffectError` if a tracker is asked for whose package is not installed."""
    for package in ("wandb", "mlflow"):
        if package in config.tracking.trackers and find_spec(package) is None:
            raise AffectError(
                f"tracking.trackers asks for {package}, which is not installed; run `pip install {package}`, or take "
                f"{package} out of tracking.trackers"
            )


def make_trackers(config: Config, first_step: int = 0, stage: str = "") -> list[Tracker]:
    """The trackers of a run: ``metrics.jsonl``, which every run has, and those of ``tracking.trackers``.

    But for Prometheus, whose tracker outlives a lost learner, see `cluster.watching.prometheus`.

    Args:
        config: of the run.
        first_step: the step after which the run goes on, 0 for a new one.
        stage: of numbers that are kept apart from those of the training, such as ``sft``.

    Raises:
        AffectError: a package is not installed.
    """
    check_trackers(config)
    trackers: list[Tracker] = [JsonlTracker(config.run_dir, first_step, stage)]
    for name in config.tracking.trackers:
        if name == "tensorboard":
            trackers.append(TensorBoardTracker(config.run_dir, first_step, stage))
        elif name == "wandb":
            from cluster.watching.hosted import WandbTracker

            trackers.append(WandbTracker(config, stage))
        elif name == "mlflow":
            from cluster.watching.hosted import MlflowTracker

            trackers.append(MlflowTracker(config, stage))
    return trackers


def log_to(trackers: Sequence[Tracker], step: int, metrics: Mapping[str, float]) -> None:
    """Tell all trackers."""
    for tracker in trackers:
        tracker.log(step, metrics)


def close_all(trackers: Sequence[Tracker]) -> None:
    """Close all trackers."""
    for tracker in trackers:
        tracker.close()
