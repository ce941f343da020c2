"""Trackers of services with a server of their own. Their addresses and keys come from the services' own environment
variables (``WANDB_API_KEY``, ``WANDB_MODE``, ``MLFLOW_TRACKING_URI``), never from the configuration.

A run remembers under which id a service knows it, so a resumed run goes on with its curves. A service that fails is
named in the log and left out from then on: the training is worth more than its curves.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from affect_rl.config.load import Config
from affect_rl.files import whole_file
from affect_rl.section import flat_settings
from cluster.watching.trackers import finite

logger = logging.getLogger(__name__)

MLFLOW_BATCH = 100
"""Most parameters in one call to MLflow."""


class WandbTracker:
    """Weights & Biases: a run of the project ``tracking.project``."""

    def __init__(self, config: Config, stage: str = "") -> None:
        wandb = importlib.import_module("wandb")
        self._guard = _Guard("W&B")
        self._run: Any = None
        with self._guard():
            self._run = wandb.init(
                project=config.tracking.project,
                name=_name(config, stage),
                id=_remembered(config.run_dir, "wandb", stage, wandb.util.generate_id),
                resume="allow",
                dir=str(config.run_dir),
                config={key: value for key, value, _ in flat_settings(config)},
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        with self._guard():
            self._run.log(finite(metrics), step=step)

    def close(self) -> None:
        with self._guard():
            self._run.finish()


class MlflowTracker:
    """MLflow: a run of the experiment ``tracking.project``."""

    def __init__(self, config: Config, stage: str = "") -> None:
        mlflow = importlib.import_module("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        self._guard = _Guard("MLflow")
        with self._guard():
            self._client = mlflow.MlflowClient()
            self._id = _remembered(config.run_dir, "mlflow", stage, lambda: self._new_run(config, stage))

    def _new_run(self, config: Config, stage: str) -> str:
        known = self._client.get_experiment_by_name(config.tracking.project)
        experiment = known.experiment_id if known else self._client.create_experiment(config.tracking.project)
        run = self._client.create_run(experiment, run_name=_name(config, stage)).info.run_id
        settings = [self._entities.Param(key, str(value)) for key, value, _ in flat_settings(config)]
        for first in range(0, len(settings), MLFLOW_BATCH):
            self._client.log_batch(run, params=settings[first : first + MLFLOW_BATCH])
        return run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        with self._guard():
            values = [self._entities.Metric(name, value, now, step) for name, value in finite(metrics).items()]
            self._client.log_batch(self._id, metrics=values)

    def close(self) -> None:
        with self._guard():
            self._client.set_terminated(self._id)


class _Guard:
    """Runs the calls to a service until one fails."""

    def __init__(self, service: str) -> None:
        self._service, self._failed = service, False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._failed:
                logger.warning("%s: %s: %s; the run goes on without it", self._service, type(error).__name__, error)
            self._failed = True


def _name(config: Config, stage: str) -> str:
    return f"{config.name}-{stage}" if stage else config.name


def _remembered(run_dir: Path, service: str, stage: str, make: Callable[[], str]) -> str:
    """The id by which a service knows the run; made when first asked for."""
    path = run_dir / f"{stage}-{service}-id".removeprefix("-")
    if not path.exists():
        with whole_file(path) as partial:
            partial.write_text(make())
    return path.read_text()
