"""The training loop, for synchronous and asynchronous training alike.

``max_staleness: 0`` is synchronous: a step's episodes start only once the engines have the weights of
the step before. With n >= 1 the episodes of up to n further steps are in flight while the learner
works; an episode whose oldest token lags more than n versions behind is dropped and played again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from affect_rl.config.load import Config
from affect_rl.data.dataset import Dataset
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample, Split
from affect_rl.seeds import derived_seed
from affect_rl.team.store import write_trajectories
from affect_rl.timeline import Timeline
from affect_rl.trajectory import Trajectory
from cluster.agreement import check_agreement
from cluster.evaluate import check_dropped, scoring_for
from cluster.runtime.pool import RolloutPool
from cluster.runtime.rundir import Progress, RunDirectory
from cluster.runtime.tracking import Stopwatch, progress
from cluster.runtime.weights import Publisher
from cluster.sampler import StepSampler
from cluster.step_metrics import EngineMeter, episode_metrics, sync_metrics
from cluster.watching.trackers import Tracker, log_to
from learners.group import LearnerGroup
from rollout_workers.worker import EpisodeSpec

logger = logging.getLogger(__name__)


def train(
    config: Config,
    dataset: Dataset,
    directory: RunDirectory,
    pool: RolloutPool,
    learner: LearnerGroup,
    resume_from: tuple[Progress, Path | None] = (Progress(), None),
    stop_requested: Callable[[], bool] = lambda: False,
    trackers: Sequence[Tracker] = (),
    checkpoint_due: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train from the run's initial policy, or from a checkpoint, and write the run's policy.

    Args:
        config: of the run.
        dataset: trains on ``train`` and selects on ``dev``, unless ``train.select`` asks otherwise.
        directory: where checkpoints, policies and metrics go.
        pool: engines, at any weight version.
        learner: at the run's initial policy.
        resume_from: progress and checkpoint to go on from.
        stop_requested: asked after each step; True ends the run with a checkpoint.
        trackers: are told each step's metrics; whoever made them closes them.
        checkpoint_due: asked after each step; True writes a checkpoint out of turn.
    """
    settings = config.train
    samples = dataset.samples("train", config.data.max_train)
    rollout = _Rollout(config, samples, pool)
    judge = _Judge(config, dataset, pool, learner, directory)
    record = _Record(config, directory, pool, learner, trackers)
    state, checkpoint = resume_from
    if checkpoint:
        learner.load_checkpoint(checkpoint / "learner")
    publisher = Publisher(config, learner, pool)
    publisher.publish(state.step)
    check_agreement(config, config.initial_policy, pool, learner, samples)
    meter = EngineMeter(pool.stats, lambda: pool.size)
    replayed_before = state.replayed - pool.replayed
    if state.step == 0 and settings.eval_every:  # a run may end with what it began with
        state, scored = judge(state)
        logger.info("step 0/%d%s", settings.steps, _note(scored))
    if state.finished(settings) and state.best_step < 0:  # resumed under a budget that is spent, and never scored
        state, _ = judge(state)

    with progress("train", settings.steps, state.step) as show:
        while not state.finished(settings):
            watch = Stopwatch()
            pool.fit()
            meter.begin()
            rollout.submit(state.step)
            with watch("rollout"):
                played, stale = rollout.collect(state.step)
                engines = meter.end()
            state = replace(state, dropped=check_dropped(config, played, state.dropped))
            episodes = _playable(played)
            with watch("learning"):
                metrics = learner.update(episodes, state.step)
            with watch("sync"):
                published = publisher.publish(state.step + 1)
            metrics |= episode_metrics(episodes, state.step) | engines | sync_metrics(published)
            lost = sum(t.lost for t in played)
            state = state.advanced(episodes, replayed_before + pool.replayed, lost, stale)

            last, stop, due = state.finished(settings), stop_requested(), checkpoint_due()
            if last or (settings.eval_every and state.step % settings.eval_every == 0):
                with watch("evaluation"):
                    state, scored = judge(state)
                metrics |= scored
            metrics |= state.counts() | {f"time/{part}_s": seconds for part, seconds in watch.seconds.items()}
            record(state.step, episodes, metrics, watch)
            if last or stop or due or (settings.checkpoint_every and state.step % settings.checkpoint_every == 0):
                _checkpoint(learner, directory, state, settings.keep_checkpoints)
            _announce(state, settings.steps, metrics, show)
            if stop:
                logger.warning("stop requested: stopped after step %d; go on with --resume", state.step)
                break
    if state.finished(settings):
        rollout.end()
        _finish(learner, directory, settings.select, state)
    return state


class _Rollout:
    """The training episodes: those of a step, and of the further steps that staleness lets begin meanwhile."""

    def __init__(self, config: Config, samples: Sequence[AffectSample], pool: RolloutPool) -> None:
        settings = config.train
        self._config, self._settings, self._pool = config, settings, pool
        self._sampler = StepSampler(samples, settings.samples_per_step, config.seed, settings.copies)
        self._in_flight: dict[int, list[object]] = {}

    def submit(self, step: int) -> None:
        """Hand out what has not been of the episodes that may be played now."""
        for ahead in range(step, min(step + self._settings.max_staleness + 1, self._settings.steps)):
            if ahead not in self._in_flight:
                self._in_flight[ahead] = self._pool.submit(self._specs(ahead))

    def collect(self, step: int) -> tuple[list[Trajectory], int]:
        """The step's episodes, in the sampler's order, none too old; and how many were dropped for their age."""
        episodes = self._pool.collect(self._in_flight.pop(step))
        oldest = step - self._settings.max_staleness
        late = [place for place, t in enumerate(episodes) if t.turns and t.oldest_version < oldest]
        if late:  # played again under the current weights, an episode is not too old a second time
            specs = self._specs(step, attempt=1)
            for place, episode in zip(late, self._pool.play(specs[place] for place in late), strict=True):
                episodes[place] = episode
        return episodes, len(late)

    def end(self) -> None:
        """Wait for what was begun for steps that the budget of tokens did not reach; others use the pool."""
        for keys in self._in_flight.values():
            self._pool.collect(keys)

    def _specs(self, step: int, attempt: int = 0) -> list[EpisodeSpec]:
        """A step's episodes; a step's samples may repeat at an epoch's end, so the key is their place."""
        specs, samples = [], self._sampler.batch(step)
        for place, sample in enumerate(samples):
            key = (step, place, attempt)
            seed = derived_seed(self._config.seed, "train", *key)
            turn = (step * len(samples) + place) // self._settings.copies
            specs.append(EpisodeSpec.to_train(self._config, key, sample, seed, turn))
        return specs


def _playable(episodes: Sequence[Trajectory]) -> list[Trajectory]:
    """The episodes that there is something to learn from."""
    found = [t for t in episodes if t.turns]
    if not found:
        raise AffectError(f"no episode of a step could be played; the last: {episodes[-1].output.problem}")
    return found


class _Judge:
    """Scores greedy answers to what policies are selected on, and keeps the policy if it is the best so far."""

    def __init__(
        self, config: Config, dataset: Dataset, pool: RolloutPool, learner: LearnerGroup, directory: RunDirectory
    ) -> None:
        split: Split = "test" if config.train.select == "test_oracle" else "dev"
        self._config, self._pool, self._learner, self._directory = config, pool, learner, directory
        self._samples = dataset.samples(split, config.data.limit(split))
        self._scoring = scoring_for(config, self._samples)
        self._metric = f"{split}/{self._scoring.main}"

    def __call__(self, state: Progress) -> tuple[Progress, dict[str, float]]:
        played = self._pool.play(EpisodeSpec.to_select(self._config, sample) for sample in self._samples)
        check_dropped(self._config, played)
        score = self._scoring.value([t.output.labels for t in played])
        if score > state.best_score:
            state = replace(state, best_step=state.step, best_score=score)
            self._learner.save_policy(self._directory.candidate(state.step))
        return state, {self._metric: score}


class _Record:
    """Writes down what a step was: metrics, who did what when, and the episodes."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        pool: RolloutPool,
        learner: LearnerGroup,
        trackers: Sequence[Tracker],
    ) -> None:
        self._pool, self._learner, self._trackers = pool, learner, trackers
        self._timeline = Timeline(directory.path / "timeline.json") if config.tracking.timeline else None
        self._trajectories = directory.trajectories if config.train.save_trajectories else None

    def __call__(self, step: int, episodes: Sequence[Trajectory], metrics: dict[str, float], watch: Stopwatch) -> None:
        log_to(self._trackers, step, metrics)
        if self._timeline:
            self._timeline.write({"loop": watch.spans.fetch(), **self._pool.spans(), **self._learner.spans()})
        if self._trajectories:
            path = self._trajectories / f"step-{step:05d}.parquet"
            write_trajectories(episodes, path, self._learner.advantages())


def _announce(state: Progress, steps: int, metrics: dict[str, float], show: Callable[[int, str], None]) -> None:
    note = f"score {metrics['episode/score']:.3f}  KL {metrics['kl/mean']:.4f}{_note(metrics)}"
    show(state.step, note)
    times = "  ".join(f"{name} {metrics[f'time/{name}_s']:.1f}s" for name in ("rollout", "learning", "sync"))
    logger.info("step %d/%d  %s  %s", state.step, steps, note, times)


def _note(metrics: Mapping[str, float]) -> str:
    """What policies are selected by, if this step was evaluated."""
    scored = {name: value for name, value in metrics.items() if name.startswith(("dev/", "test/"))}
    return "".join(f"  {name} {value:.3f}" for name, value in scored.items())


def _checkpoint(learner: LearnerGroup, directory: RunDirectory, state: Progress, keep: int) -> None:
    path = directory.checkpoint(state)
    learner.save_checkpoint(path / "learner")
    directory.seal(path, state, keep)


def _finish(learner: LearnerGroup, directory: RunDirectory, select: str, state: Progress) -> None:
    if select == "last":
        learner.save_policy(directory.policy)
    else:
        RunDirectory.copy(directory.candidate(state.best_step), directory.policy)
