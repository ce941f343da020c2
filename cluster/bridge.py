"""The warm start of a bridge (BGM, arXiv 2401.06954): SFT on greedy silver selections, searched with a reader."""

from __future__ import annotations

from pathlib import Path

from affect_rl.errors import AffectError
from affect_rl.policy.directory import check_manifest
from affect_rl.policy.weights import stored_weights
from affect_rl.trajectory import FULL
from cluster.evaluate import check_dropped
from cluster.runtime.run import Run
from cluster.warm_start import training_samples
from learners.sft_job import run_sft
from rollout_workers.worker import EpisodeSpec


def bridge_warm_start(run: Run, reader: Path, directory: Path, steps: int) -> None:
    """Search silver selections on the training split with `reader`, and train it on them; writes `directory`.

    A search that found no evidence with which the reader is right teaches nothing. The model forgets how to read
    meanwhile, so the reader must be frozen.

    Raises:
        AffectError: the reader was never right.
    """
    check_manifest(reader)
    config, pool = run.config, run.pool(reader)
    pool.sync(stored_weights(reader, pool.version + 1))
    config = config.model_copy(update={"sft": config.sft.model_copy(update={"steps": steps})})
    searching = config.model_copy(update={"team": config.team.with_agent("filter", kind="silver_filter")})
    samples = training_samples(config, run.dataset)
    played = pool.play(EpisodeSpec.to_measure(searching, "silver", sample) for sample in samples)
    check_dropped(config, played)
    turns = [[t for t in e.turns if t.agent == "filter"] for e in played if e.scores.get(FULL, 0) > 0]
    if not turns:
        raise AffectError(
            f"{reader}: was right about none of {len(samples)} samples, so there is no silver; train it more"
        )
    run_sft(config, turns, reader, directory)
