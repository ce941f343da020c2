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
from affect_rl.sample import AffectSample, Split
from affect_rl.scoring.scoring import Scoring, scoring_of, wheels_of
from affect_rl.seeds import derived_seed
from affect_rl.team.store import write_trajectories
from affect_rl.trajectory import ROLES, Trajectory
from cluster.runtime.pool import RolloutPool
from cluster.runtime.rundir import Progress, RunDirectory
from cluster.runtime.tracking import Stopwatch, Tracker, progress
from cluster.sampler import StepSampler
from learners.group import LearnerGroup
from rollout_workers.worker import EpisodeJob

logger = logging.getLogger(__name__)


def train(
    config: Config,
    dataset: Dataset,
    run: RunDirectory,
    pool: RolloutPool,
    learner: LearnerGroup,
    resume_from: tuple[Progress, Path | None] = (Progress(), None),
    stop_requested: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train from the run's initial policy, or from a checkpoint, and write the run's policy.

    Args:
        config: of the run.
        dataset: trains on ``train`` and selects on ``dev``, unless ``train.select`` asks otherwise.
        run: where checkpoints, policies and metrics go.
        pool: engines, at any weight version.
        learner: at the run's initial policy.
        resume_from: progress and checkpoint to go on from.
        stop_requested: asked after each step; True ends the run with a checkpoint.
    """
    settings = config.train
    samples = dataset.samples("train", config.data.max_train)
    sampler = StepSampler(samples, settings.samples_per_step, config.seed, settings.copies)
    split: Split = "test" if settings.select == "test_oracle" else "dev"
    judged = dataset.samples(split, config.data.limit(split))
    scoring = scoring_of(judged, wheels_of(config.evaluate))
    state, checkpoint = resume_from
    if checkpoint:
        learner.load_checkpoint(checkpoint / "learner")
    tracker = Tracker(run.path, state.step)
    pool.sync(learner.publish(state.step), verify=settings.verify_sync)
    submitted, replayed_before = state.step, state.replayed - pool.replayed
    if state.step == 0 and settings.eval_every:  # a run may end with what it began with
        state, scored = _select(pool, config, judged, scoring, learner, run, state)
        logger.info("step 0/%d%s", settings.steps, _note(scored))

    with progress("train", settings.steps, state.step) as show:
        while state.step < settings.steps:
            watch = Stopwatch()
            while submitted <= min(state.step + settings.max_staleness, settings.steps - 1):
                pool.submit(_jobs(config, submitted, sampler.batch(submitted)))
                submitted += 1
            with watch("rollout"):
                before = pool.stats()
                episodes, stale = _collect(pool, config, sampler, state.step)
                engines = _engine_metrics(before, pool.stats(), config.rollout.workers)
            with watch("learning"):
                metrics = learner.update(episodes, state.step)
            with watch("sync"):
                handle = learner.publish(state.step + 1)
                pool.sync(handle, verify=settings.verify_sync)
            metrics |= _episode_metrics(episodes, state.step) | engines | {"sync/bytes": float(handle.bytes)}
            state = state.advanced(len(episodes), replayed_before + pool.replayed, stale)

            last, stop = state.step == settings.steps, stop_requested()
            if last or (settings.eval_every and state.step % settings.eval_every == 0):
                with watch("evaluation"):
                    state, scored = _select(pool, config, judged, scoring, learner, run, state)
                metrics |= scored
            metrics |= state.counts() | {f"time/{part}_s": seconds for part, seconds in watch.seconds.items()}
            tracker.log(state.step, metrics)
            if settings.save_trajectories:
                write_trajectories(episodes, run.trajectories / f"step-{state.step:05d}.parquet")
            if last or stop or (settings.checkpoint_every and state.step % settings.checkpoint_every == 0):
                _checkpoint(learner, run, state, settings.keep_checkpoints)
            _announce(state, settings.steps, metrics, show)
            if stop:
                logger.warning("stop requested: stopped after step %d; go on with --resume", state.step)
                break
    tracker.close()
    if state.step == settings.steps:
        _finish(learner, run, settings.select, state)
    return state


def _jobs(config: Config, step: int, samples: Sequence[AffectSample], attempt: int = 0) -> list[EpisodeJob]:
    """A step's episodes; a step's samples may repeat at an epoch's end, so the key is their place."""
    jobs = []
    for place, sample in enumerate(samples):
        key = (step, place, attempt)
        seed = derived_seed(config.seed, "train", *key)
        seen = sample.with_dropout(config.episode.dropout, seed)
        in_turn = config.in_turn((step * len(samples) + place) // config.train.copies)
        jobs.append(EpisodeJob.of(in_turn, key, seen, seed, in_turn.episode.temperature))
    return jobs


def _collect(pool: RolloutPool, config: Config, sampler: StepSampler, step: int) -> tuple[list[Trajectory], int]:
    """The step's episodes, in the sampler's order, none too old; and how many were dropped for their age."""
    samples = sampler.batch(step)
    episodes = pool.collect([job.key for job in _jobs(config, step, samples)])
    late = [place for place, t in enumerate(episodes) if step - t.oldest_version > config.train.max_staleness]
    if late:  # played again under the current weights, an episode is not too old a second time
        jobs = _jobs(config, step, samples, attempt=1)
        for place, episode in zip(late, pool.play([jobs[place] for place in late]), strict=True):
            episodes[place] = episode
    return episodes, len(late)


def _select(
    pool: RolloutPool,
    config: Config,
    samples: Sequence[AffectSample],
    scoring: Scoring,
    learner: LearnerGroup,
    run: RunDirectory,
    state: Progress,
) -> tuple[Progress, dict[str, float]]:
    """Score greedy answers to `samples` under the current weights, and keep the policy if it is the best so far."""
    jobs = [
        EpisodeJob.of(config, ("dev", state.step, s.id), s, derived_seed(config.seed, "dev", s.id), 0.0, evaluate=True)
        for s in samples
    ]
    score = scoring.value([t.predicted for t in pool.play(jobs)])
    if score > state.best_score:
        state = replace(state, best_step=state.step, best_score=score)
        learner.save_policy(run.candidate(state.step))
    return state, {f"{samples[0].split}/{scoring.main}": score}


def _episode_metrics(episodes: Sequence[Trajectory], version: int) -> dict[str, float]:
    """What a step's episodes say, see docs/metrics.md."""
    count = len(episodes)
    metrics = {
        "episode/score": sum(t.scores["full"] for t in episodes) / count,
        "episode/labels": sum(len(t.predicted) for t in episodes) / count,
        "episode/degraded": sum(t.degraded for t in episodes) / count,
        "episode/generated_tokens": sum(t.generated_tokens for t in episodes) / count,
        "episode/prompt_tokens": sum(t.prompt_tokens for t in episodes) / count,
        "episode/staleness": sum(version - t.oldest_version for t in episodes) / count,
    }
    for name in ("label", "rank"):
        if all(name in t.scores for t in episodes):
            metrics[f"episode/score_{name}"] = sum(t.scores[name] for t in episodes) / count
    for role in ROLES:
        if turns := [turn for t in episodes for turn in t.turns if turn.role == role]:
            metrics[f"{role}/reward"] = sum(turn.reward for turn in turns) / len(turns)
            metrics[f"{role}/invalid"] = sum(turn.problem is not None for turn in turns) / len(turns)
            metrics[f"{role}/tokens"] = sum(len(turn.generation.token_ids) for turn in turns) / len(turns)
    return metrics


def _engine_metrics(before: Mapping[str, float], after: Mapping[str, float], engines: int) -> dict[str, float]:
    """What the engines counted during the rollout. A restarted one starts again at 0, hence the bound."""
    gained = {name: max(0.0, value - before.get(name, 0)) for name, value in after.items()}
    return {
        "engine/steps": gained.get("steps", 0.0),
        "engine/cached_share": gained.get("cached_tokens", 0.0) / max(1.0, gained.get("prompt_tokens", 0.0)),
        "time/retrieval_s": gained.get("retrieval_s", 0.0) / engines,
    }


def _announce(state: Progress, steps: int, metrics: dict[str, float], show: Callable[[int, str], None]) -> None:
    kl = sum(metrics.get(f"kl/{role}", 0.0) for role in ROLES) / len(ROLES)
    note = f"score {metrics['episode/score']:.3f}  KL {kl:.4f}{_note(metrics)}"
    show(state.step, note)
    times = "  ".join(f"{name} {metrics[f'time/{name}_s']:.1f}s" for name in ("rollout", "learning", "sync"))
    logger.info("step %d/%d  %s  %s", state.step, steps, note, times)


def _note(metrics: Mapping[str, float]) -> str:
    """What policies are selected by, if this step was evaluated."""
    scored = {name: value for name, value in metrics.items() if name.startswith(("dev/", "test/"))}
    return "".join(f"  {name} {value:.3f}" for name, value in scored.items())


def _checkpoint(learner: LearnerGroup, run: RunDirectory, state: Progress, keep: int) -> None:
    path = run.checkpoint(state)
    learner.save_checkpoint(path / "learner")
    run.seal(path, state, keep)


def _finish(learner: LearnerGroup, run: RunDirectory, select: str, state: Progress) -> None:
    if select == "last":
        learner.save_policy(run.policy)
    else:
        RunDirectory.copy(run.candidate(state.best_step), run.policy)
