"""Stages of experiments: a warm start, a bridge, a training, an evaluation, each made once.

They lie side by side in ``runs_dir`` under the names that `affect_rl.experiments.spec` gives them. A finished one is
found again, by this and by other experiments; a training that was interrupted goes on from its checkpoint. Processes
that want the same stage at the same time do not make it twice, see `shared_out`.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from affect_rl.config.load import Config
from affect_rl.data.dataset import Dataset
from affect_rl.data.library import evidence_library
from affect_rl.errors import AffectError
from affect_rl.experiments.results import EPISODES_FILE, PREDICTIONS_FILE
from affect_rl.experiments.spec import (
    ExperimentSpec,
    base_key,
    bridge_key,
    evaluation_key,
    training_config,
    training_key,
    warm_start_key,
)
from affect_rl.files import whole_directory
from affect_rl.policy.directory import check_manifest
from affect_rl.sample import AffectSample
from affect_rl.team.store import trajectory_table
from cluster.bridge import bridge_warm_start
from cluster.evaluate import play_samples
from cluster.experiments.fusion_details import fusion_table
from cluster.runtime.run import Run, make_run, run_training, run_warm_start
from cluster.runtime.rundir import RunDirectory
from cluster.runtime.services import Services
from cluster.warm_start import create_policy
from rollout_workers.worker import EpisodeSpec

logger = logging.getLogger(__name__)

EPISODES = 12
"""Evaluated episodes of the first seed that are kept in full, also played without each agent."""

FUSION_FILE = "fusion.parquet"

_LOOK_AGAIN_S = 60.0

Answers = list[tuple[str, ...]]
Job = TypeVar("Job", bound=Hashable)
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One arm under one seed: where its evaluation and (if it was trained) its training lie."""

    evaluation: Path
    training: Path | None

    def answers(self) -> Answers:
        """Predicted labels in the order of the samples."""
        return [tuple(labels) for labels in pq.read_table(self.evaluation / PREDICTIONS_FILE)["predicted"].to_pylist()]

    def fusion(self) -> list[dict[str, Any]]:
        """What fusion did with each sample, see `cluster.experiments.fusion_details`."""
        return pq.read_table(self.evaluation / FUSION_FILE).to_pylist()

    def cost(self) -> dict[str, float]:
        """Tokens and seconds per sample."""
        return json.loads((self.evaluation / "cost.json").read_text())


def run_arm(
    spec: ExperimentSpec,
    arm: str,
    seed: int,
    overrides: tuple[str, ...],
    dataset: Dataset,
    samples: Sequence[AffectSample],
    services: Services,
) -> Evaluated:
    """Make what is not there yet of an arm under a seed.

    Raises:
        TakenError: another process is making one of its stages.
    """
    config = spec.run_config(arm, seed, overrides)
    untrained = spec.arms[arm].policy == "none"
    start = _created(config, dataset) if untrained else _warm_started(config, dataset, services)
    config, reader = _starting_at(config, start), start
    if steps := spec.arms[arm].bridge_steps:
        start = _bridged(config, start, steps, dataset, services)
    training, policy = None, start
    if spec.arms[arm].policy == "trained":
        training = _trained(config, start, dataset, services)
        policy = training / "policy"
    config = _starting_at(spec.run_config(arm, seed, overrides, evaluate=True), reader)
    directory = Path(config.runs_dir) / evaluation_key(config, policy)
    shown = EPISODES if seed == 0 else 0
    _once(
        directory,
        directory,
        lambda: _evaluate(make_run(config, dataset, services, "eval"), policy, samples, directory, shown),
    )
    return Evaluated(directory, training)


def _starting_at(config: Config, policy: Path) -> Config:
    """Let agents that play with the policy at the start, if there are any, play with `policy` all through."""
    team = config.team
    for name in team.frozen:
        if team[name].policy == "start":
            team = team.with_agent(name, policy=str(policy))
    return config.model_copy(update={"team": team})


class TakenError(Exception):
    """Another process is making this stage; nothing is wrong."""

    def __init__(self, stage: Path, lock: FileLock) -> None:
        super().__init__(f"{stage}: another process makes it")
        self._lock = lock

    def wait(self) -> None:
        """Return when it does no longer, whether the stage is there then or not, or after a while: meanwhile others may
        have become free."""
        with suppress(Timeout), self._lock.acquire(timeout=_LOOK_AGAIN_S):
            pass


def shared_out(jobs: Iterable[Job], work: Callable[[Job], Made], rest: Callable[[], object]) -> dict[Job, Made]:
    """What `work` makes of each job. One that wants a stage which another process is making comes later.

    So processes with the same jobs share them. One that has nothing else to do calls `rest`, to give back what the
    others may be short of, and waits.
    """
    made: dict[Job, Made] = {}
    left, put_off, told = deque(jobs), 0, ""
    while left:
        job = left.popleft()
        try:
            made[job] = work(job)
            put_off = 0
        except TakenError as taken:
            left.append(job)
            put_off += 1
            if put_off < len(left):
                continue
            if told != str(taken):
                logger.info("%s; waiting for it", told := str(taken))
            rest()
            taken.wait()
            put_off = 0
    return made


def _once(stage: Path, made: Path, make: Callable[[], object]) -> None:
    """Make a stage, which leaves `made`, unless it is there.

    Raises:
        TakenError: another process is making it.
    """
    if made.exists():
        return
    lock = lock_of(stage.parent, stage.name)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise TakenError(stage, lock) from None
    try:
        if not _is_there(made):
            make()
    finally:
        lock.release()


def lock_of(runs: Path, name: str) -> FileLock:
    """What a process holds while it makes something of that name."""
    locks = runs / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / name)


def _is_there(path: Path) -> bool:
    """Whether it exists now: on a shared file system what was not there a moment ago may seem absent for half a minute,
    until its directories are opened."""
    with suppress(OSError):
        for directory in (path.parent.parent, path.parent):
            next(directory.iterdir(), None)
    return path.exists()


def _created(config: Config, dataset: Dataset) -> Path:
    policy = Path(config.runs_dir) / base_key(config)
    _once(policy, policy, lambda: create_policy(config, dataset).save(policy))
    return policy


def warm_started(config: Config, dataset: Dataset, services: Services) -> Path:
    """The policy of a warm start in ``runs_dir``, made if nobody has; runs share it whose settings of it are equal.
    Whoever else is making it is waited for."""
    return shared_out([None], lambda _: _warm_started(config, dataset, services), rest=services.close)[None]


def _warm_started(config: Config, dataset: Dataset, services: Services) -> Path:
    config = config.model_copy(update={"name": warm_start_key(config)})
    run = RunDirectory(config.run_dir)

    def make() -> None:
        shutil.rmtree(run.path, ignore_errors=True)  # cut off, maybe under settings that do not matter here
        run_warm_start(make_run(config, dataset, services, "sft"))

    _once(run.path, run.sft, make)
    return run.sft


def _bridged(config: Config, reader: Path, steps: int, dataset: Dataset, services: Services) -> Path:
    stage = Path(config.runs_dir) / bridge_key(config, reader, steps)
    policy = stage / "sft"
    _once(
        stage, policy, lambda: bridge_warm_start(make_run(config, dataset, services, "bridge"), reader, policy, steps)
    )
    return policy


def _trained(config: Config, start: Path, dataset: Dataset, services: Services) -> Path:
    config = training_config(config, dataset.label_kind)
    config = config.model_copy(update={"name": training_key(config, start), "policy": str(start)})
    run = RunDirectory(config.run_dir)

    def make() -> None:
        run_training(make_run(config, dataset, services, "train"), resume=(run.path / "metrics.jsonl").exists())

    _once(run.path, run.policy, make)
    if not run.policy.exists():
        raise AffectError(f"{run.path}: the training was stopped; the same command goes on")
    return run.path


def _evaluate(run: Run, policy: Path, samples: Sequence[AffectSample], directory: Path, shown: int) -> None:
    """Play `samples`, and the first of them again without each agent, for the reader."""
    check_manifest(policy)
    pool, config = run.pool(policy), run.config
    temperature = config.evaluate.temperature
    if config.team.frozen:  # their engine starts with the first episode, off the clock
        play_samples(config, samples[:1], pool, policy)
    began = time.perf_counter()
    episodes = play_samples(config, samples, pool, policy)
    seconds = time.perf_counter() - began
    again = [
        EpisodeSpec.to_measure(config, "evaluate", s, temperature=temperature, bypasses=True) for s in samples[:shown]
    ]
    predicted = {"sample_id": [t.sample_id for t in episodes], "predicted": [list(t.output.labels) for t in episodes]}
    texts = pa.array([s.text for s in samples[:shown]], pa.string())
    library = evidence_library(run.dataset, config.retrieval)
    cost = {
        "tokens_per_sample": sum(t.generated_tokens for t in episodes) / len(episodes),
        "seconds_per_sample": seconds / len(episodes),
    }
    with whole_directory(directory) as fresh:
        pq.write_table(pa.table(predicted), fresh / PREDICTIONS_FILE)
        pq.write_table(trajectory_table(pool.play(again)).append_column("text", texts), fresh / EPISODES_FILE)
        pq.write_table(fusion_table(library, policy, samples, episodes), fresh / FUSION_FILE)
        (fresh / "cost.json").write_text(json.dumps(cost) + "\n")
