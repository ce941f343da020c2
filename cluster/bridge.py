"""The warm start of a bridge (BGM, arXiv 2401.06954): SFT on greedy silver selections, searched with a reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from affect_rl.errors import AffectError
from affect_rl.policy.weights import stored_weights
from affect_rl.seeds import derived_seed
from cluster.runtime.jobs import Job
from cluster.warm_start import training_samples
from learners.sft import run_sft
from rollout_workers.worker import EpisodeJob


def bridge_warm_start(job: Job, reader: Path, directory: Path, steps: int) -> None:
    """Search silver selections on the training split with `reader`, and train it on them; writes `directory`.

    A search that found no evidence with which the reader is right teaches nothing. The model forgets how to read
    meanwhile, so the reader must be frozen.

    Raises:
        AffectError: the reader was never right.
    """
    config, pool = job.config, job.pool(reader)
    pool.sync(stored_weights(reader, pool.version + 1))
    config = config.model_copy(update={"sft": config.sft.model_copy(update={"steps": steps})})
    samples = training_samples(config, job.dataset)
    seeds = {s.id: derived_seed(config.seed, "silver", s.id) for s in samples}
    jobs = [EpisodeJob.of(config, ("silver", s.id), s, seeds[s.id], 0.0, evaluate=True) for s in samples]
    played = pool.play([replace(job, silver=True) for job in jobs])
    turns = [[t for t in e.turns if t.role == "filter"] for e in played if e.scores["full"] > 0]
    if not turns:
        raise AffectError(
            f"{reader}: was right about none of {len(samples)} samples, so there is no silver; train it more"
        )
    run_sft(config, turns, reader, directory)
