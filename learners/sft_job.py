"""The supervised warm start as a Ray Train job, with checkpoints to resume from, as the driver sees it.

Ray Train's controller loads this module too, so only the workers import what they need (`learners.sft_worker`).
"""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue

from affect_rl.config.actors import sft_workers
from affect_rl.config.load import Config
from affect_rl.errors import AffectError
from affect_rl.files import sha256
from affect_rl.policy.directory import MANIFEST
from affect_rl.trajectory import Turn

OnStep = Callable[[dict[str, float]], None]
POLL_S = 1.0
STATE = "state.json"


def run_sft(
    config: Config,
    demonstrations: Sequence[Sequence[Turn]] | ray.ObjectRef,
    policy_in: Path,
    policy_out: Path,
    on_step: OnStep | None = None,
    *,
    resume: bool = False,
) -> dict[str, float]:
    """Train the policy directory `policy_in` on demonstrations and write `policy_out`.

    Meanwhile `checkpoint_of` `policy_out` holds the last checkpoint, and every worker must be able to write there.

    Args:
        config: sections `sft` and `model`, and the seed.
        demonstrations: the turns of each demonstrated episode, or a Ray object that holds them.
        policy_in: policy directory that `check_manifest` has passed; all workers must be able to read it.
        policy_out: policy directory to write; must not exist yet.
        on_step: called in this process with the metrics of each step, as they arrive.
        resume: go on from the last checkpoint, if there is one, to the same numbers; otherwise from the beginning.

    Returns:
        Metrics of the last step, see `sft_steps`.

    Raises:
        AffectError: the checkpoint to resume belongs to another policy, seed or layout of workers.
        TimeoutError: no step came for `sft.deadline_s`.
        ray.train.TrainingFailedError: a worker failed.
    """
    settings, checkpoint = config.sft, checkpoint_of(policy_out)
    state = _state(config, policy_in)
    if resume:
        _check(checkpoint, state)
    else:
        shutil.rmtree(checkpoint, ignore_errors=True)
    episodes = demonstrations if isinstance(demonstrations, ray.ObjectRef) else ray.put(demonstrations)
    steps = Queue(actor_options={"num_cpus": 0})
    gpu = settings.gpus_per_worker > 0
    with tempfile.TemporaryDirectory(prefix="affect-rl-sft-") as storage:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "config": config, "episodes": [episodes], "policy_in": policy_in.resolve(),
                "policy_out": policy_out.resolve(), "state": state, "steps": steps,
            },
            torch_config=_NoGroup(),
            scaling_config=train.ScalingConfig(
                num_workers=settings.workers,
                use_gpu=gpu,
                resources_per_worker=sft_workers(settings).resources,
            ),
            run_config=train.RunConfig(name="sft", storage_path=storage),
        )  # fmt: skip
        try:
            metrics = follow(trainer.fit, steps, on_step or (lambda _: None), settings.deadline_s)
        finally:
            steps.shutdown(force=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return metrics


def checkpoint_of(policy_out: Path) -> Path:
    """Where a warm start that is to become `policy_out` keeps its checkpoint."""
    return policy_out.with_name(f"{policy_out.name}-checkpoint")


def _state(config: Config, policy_in: Path) -> dict[str, Any]:
    """What must be the same when a warm start is resumed, that its numbers may be."""
    settings = config.sft.model_dump(mode="json", exclude={"deadline_s", "checkpoint_every", "threads"})
    return {
        "seed": config.seed,
        "policy": sha256(policy_in / MANIFEST),
        "lora": config.model.lora.model_dump(mode="json"),
        **settings,
    }


def _check(checkpoint: Path, state: dict[str, Any]) -> None:
    """Raise `AffectError` if there is a checkpoint that does not fit."""
    if not checkpoint.exists():
        return
    found = json.loads((checkpoint / STATE).read_text())
    for name, value in state.items():
        if found.get(name) != value:
            raise AffectError(
                f"{checkpoint}: written with {name}={found.get(name)}, now it is {value}; resume with the "
                "configuration that the warm start was begun with, or begin again without --resume"
            )


def _worker(given: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    from learners.sft_worker import work

    work(given)


class _NoGroup(TorchConfig):
    """Ray Train starts the workers and leaves it to them to form a process group.

    Its own looks for a free port beforehand, and lets gloo ask for the name of the host, see `learners.meeting`.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        return Backend


def follow(
    job: Callable[[], object], steps: Queue | queue.Queue[dict[str, float]], on_step: OnStep, deadline_s: float
) -> dict[str, float]:
    """Run a job on a thread of its own and hand its steps to `on_step` as they come.

    Returns:
        The last step.

    Raises:
        TimeoutError: no step came for `deadline_s`; the job runs on.
    """
    running: Future[object] = Future()

    def run() -> None:
        try:
            running.set_result(job())
        except BaseException as error:  # reported by the thread that waits
            running.set_exception(error)

    threading.Thread(target=run, name="sft", daemon=True).start()
    last: dict[str, float] = {}
    heard = time.monotonic()
    for step in _news(steps, running):
        if step:
            last, heard = step, time.monotonic()
            on_step(step)
        elif time.monotonic() > heard + deadline_s:
            raise TimeoutError(f"sft: no step came within sft.deadline_s={deadline_s:g}; last step: {last}")
    running.result()
    return last


def _news(steps: Queue | queue.Queue[dict[str, float]], job: Future[object]) -> Iterator[dict[str, float] | None]:
    """The steps until the job ends, as they come; None when there was none for `POLL_S`."""
    while True:
        finished = job.done()  # asked before the queue is emptied, so that no step is missed
        with contextlib.suppress(queue.Empty):
            while True:
                yield steps.get(timeout=POLL_S)
        if finished:
            return
        yield None
