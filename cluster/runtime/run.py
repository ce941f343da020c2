"""A run, and what the commands do with it: each opens what it needs, does one thing and closes it again."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from affect_rl.config.actors import Stage
from affect_rl.config.load import Config
from affect_rl.data.dataset import Dataset
from affect_rl.errors import AffectError
from affect_rl.policy.directory import check_manifest
from affect_rl.scoring.scoring import wheels_of
from cluster.evaluate import Evaluation, evaluate_policies, scoring_for
from cluster.prospect import check_memory_and_disk
from cluster.recovery import Start, through_losses
from cluster.runtime.capacity import check_resources, connected_cluster, this_machine
from cluster.runtime.nodes import Notices
from cluster.runtime.pool import RolloutPool
from cluster.runtime.rundir import Progress, RunDirectory
from cluster.runtime.services import Services
from cluster.runtime.session import joins_cluster, ray_session
from cluster.runtime.tracking import progress
from cluster.train import train
from cluster.warm_start import taught_demonstrations, warm_start
from cluster.watching.prometheus import PrometheusTracker, Publisher, Watcher
from cluster.watching.trackers import Tracker, check_trackers, close_all, log_to, make_trackers
from learners.group import LearnerGroup
from retrieval_service.client import RetrievalClient

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """What every command stands on.

    Attributes:
        config: of the run.
        dataset: what it is about.
        directory: where its files go.
        services: the actors it shares with other runs of the process.
    """

    config: Config
    dataset: Dataset
    directory: RunDirectory
    services: Services

    @property
    def retrieval(self) -> RetrievalClient | None:
        """The evidence service, started if it is not there; None: switched off."""
        return self.services.retrieval(self.config, self.dataset)

    def pool(self, policy: Path) -> RolloutPool:
        """Engines, started with `policy` if there are none yet that fit; training and evaluation share them.

        They do not hash its files: call `check_manifest` before.
        """
        return self.services.pool(self.config, policy, self.retrieval)

    @property
    def policies(self) -> dict[str, Path]:
        """See `RunDirectory.compared`."""
        return self.directory.compared(self.config)


@contextmanager
def open_run(config: Config, *stages: Stage) -> Iterator[Run]:
    """Load the dataset, meet Ray and take the room for the first stage; all actors end with the block.

    Args:
        config: of the run.
        stages: what is to be done; nothing is started unless there is room for their actors.

    Raises:
        AffectError: CPUs, GPUs, their memory or a disk are too few or too small, or a tracker's package is not
            installed, or the wheels that the settings name, the dataset or ``sft.demonstrations`` cannot be read.
    """
    check_trackers(config)
    if not joins_cluster(config):
        check_resources(config, stages, this_machine(config))
    check_memory_and_disk(config, stages, here=not joins_cluster(config))
    wheels_of(config.evaluate.wheels, config.evaluate.mapping)
    dataset = Dataset.of(config.data)
    if "sft" in stages:
        taught_demonstrations(config, dataset)
    with ray_session(config), closing(Services()) as services:
        yield make_run(config, dataset, services, *stages)


def make_run(config: Config, dataset: Dataset, services: Services, *stages: Stage) -> Run:
    """A run of a process that meets Ray already, see `open_run`."""
    if stages:
        check_resources(config, stages, connected_cluster())
        services.place(config, stages[0])
    return Run(config, dataset, RunDirectory(config.run_dir), services)


def run_warm_start(run: Run, *, resume: bool = False) -> Path:
    """SFT, or the rest of one that was cut off; returns the policy directory.

    Raises:
        AffectError: the run has an SFT policy already.
    """
    if run.directory.sft.exists():
        hint = "train it with `affect-rl train`, or choose another `name`"
        raise AffectError(f"{run.directory.sft}: exists already; {hint}")
    run.directory.open(run.config)
    with progress("sft", run.config.sft.steps) as show, ExitStack() as open_files:
        trackers: list[Tracker] = []

        def on_step(metrics: dict[str, float]) -> None:
            step, note = int(metrics["step"]), f"loss {metrics['loss']:.3f}"
            if not trackers:  # now it is known where a resumed one goes on
                trackers.extend(make_trackers(run.config, step - 1, "sft"))
                if "prometheus" in run.config.tracking.trackers:
                    trackers.append(PrometheusTracker(Publisher(run.config.name).set, None))
                open_files.callback(close_all, trackers)
            log_to(trackers, step, {name: value for name, value in metrics.items() if name != "step"})
            show(step, note)
            if step % max(1, run.config.sft.steps // 10) == 0:
                logger.info("sft: step %d/%d  %s", step, run.config.sft.steps, note)

        warm_start(run.config, run.dataset, run.retrieval, run.directory.sft, on_step, resume=resume)
    return run.directory.sft


def run_training(run: Run, *, resume: bool = False, trackers: Sequence[Tracker] = ()) -> Progress:
    """Training from the run's SFT policy, or from ``config.policy``; a signal stops it after the current step.

    Args:
        run: what is trained.
        resume: go on from the last checkpoint.
        trackers: are told the metrics beside those of ``config.tracking``; the caller closes them.

    Raises:
        AffectError: there is no policy to start from, or nothing to resume.
    """
    config, directory = run.config, run.directory
    initial = config.initial_policy
    if not initial.exists():
        raise AffectError(f"{initial}: no policy to start from; run `affect-rl sft` first or set `policy`")
    check_manifest(initial)
    directory.open(config)
    start: Start = (Progress(), None)
    if resume:
        start = directory.latest()
    else:
        directory.begin_training()
    logger.info("%s", config.batch_arithmetic())
    with ExitStack() as stack:
        stop_requested = stack.enter_context(_stop_on_signal())
        place = run.services.place(config, "train")
        pool = run.pool(initial)
        if "prometheus" in config.tracking.trackers:
            stack.enter_context(closing(Watcher(config.name, pool, run.retrieval, config.tracking.interval_s)))
            trackers = [*trackers, PrometheusTracker(Publisher(config.name).set, start[0])]

        def learner(least: int | None) -> LearnerGroup:
            return LearnerGroup(config, initial, seed=config.seed, least=least, place=place, meanwhile=pool.look_after)

        def attempt(learner: LearnerGroup, start: Start) -> Progress:
            own = make_trackers(config, start[0].step)
            try:
                return train(
                    config, run.dataset, directory, pool, learner, start, stop_requested, [*own, *trackers],
                    checkpoint_due=Notices(learner.ranks),
                )  # fmt: skip
            finally:
                close_all(own)

        return through_losses(attempt, start, learner, config.learner, directory.latest, pool.abandon, stop_requested)


def run_stages(run: Run, stages: Sequence[Stage]) -> None:
    """Warm start, training and evaluation, those of them that are among `stages`; each goes on where it was cut off.

    A signal during the training ends it after the current step, and nothing is evaluated.
    """
    directory = run.directory
    if "sft" in stages:
        run_warm_start(run, resume=True)
    if "train" in stages:
        run_training(run, resume=directory.training_began)
    if "eval" in stages and "train" not in directory.unfinished(run.config):
        run_evaluation(run, run.policies, directory.evaluation)


def run_evaluation(run: Run, policies: Mapping[str, Path], out: Path) -> Evaluation:
    """Evaluate policies on ``evaluate.split``, write the results to `out`.

    Raises:
        AffectError: a directory holds no policy, or the wheels do not fit the samples.
    """
    config = run.config
    for directory in policies.values():
        check_manifest(directory)
    samples = run.dataset.samples(config.evaluate.split, config.data.limit(config.evaluate.split))
    scoring = scoring_for(config, samples)
    pool = run.pool(next(iter(policies.values())))
    evaluation = evaluate_policies(config, samples, scoring, policies, pool)
    evaluation.write(out)
    return evaluation


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT only ask for a stop: Ray kills a stopped job after 3 s, so nothing is begun in a handler."""
    asked = False
    if threading.current_thread() is not threading.main_thread():  # of a trial of Ray Tune, which ends it by itself
        yield lambda: False
        return

    def ask(signum: int, frame: object) -> None:
        nonlocal asked
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
