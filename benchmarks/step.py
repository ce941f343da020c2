"""Where a training step's seconds go, and how much of them overlaps in asynchronous training. Prints one JSON line.

    python -m benchmarks.step CONFIG [key=value ...]

The run starts from ``policy`` (or the run's SFT policy) and trains ``train.steps`` steps with ``train.max_staleness``
0, 1 and 2; the first step is left out as warm-up, and the last, which also evaluates and saves. Engines are free
(``rollout.deterministic=false``) in all three.

- ``rollout_s``, ``learning_s``, ``sync_s``: seconds that the loop waited for each.
- ``retrieval_s``: those of the rollout during which at least one episode of an engine waited for an answer.
- ``waiting_s``: what is left of the step.
- ``over_slower``: seconds of a step over those of the slower half alone, which are the larger of ``rollout_s`` and
  ``learning_s`` with staleness 0. 1 is a loop that never waits; it needs a core for each engine and each learner
  (``rollout.threads=1 learner.threads=1`` on two cores).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean

from affect_rl.config.load import load_config
from cluster.runtime.run import open_run, run_training
from cluster.runtime.rundir import RunDirectory

HALVES = ("rollout_s", "learning_s")


def measure(file: str, overrides: Sequence[str], staleness: int) -> dict[str, float]:
    """Means over the steps of one run."""
    with tempfile.TemporaryDirectory() as runs:
        config = load_config(file, overrides)
        policy = config.policy or str(RunDirectory(config.run_dir).sft)
        own = [
            f"policy={policy}", f"runs_dir={runs}", "train.eval_every=0", "train.checkpoint_every=0",
            f"train.max_staleness={staleness}", "rollout.deterministic=false",
        ]  # fmt: skip
        config = load_config(file, [*overrides, *own])
        with open_run(config) as run:
            run_training(run)
        lines = [json.loads(line) for line in Path(config.run_dir, "metrics.jsonl").read_text().splitlines()]
    steps = list(pairwise(lines[:-1]))
    parts = ("rollout", "retrieval", "learning", "sync")
    seconds = {f"{part}_s": mean(now[f"time/{part}_s"] for _, now in steps) for part in parts}
    whole = mean(now["time"] - before["time"] for before, now in steps)
    tokens = mean(now["episode/generated_tokens"] for _, now in steps) * config.train.samples_per_step
    return {
        "steps": len(steps), "seconds": whole, **seconds,
        "waiting_s": whole - seconds["rollout_s"] - seconds["learning_s"] - seconds["sync_s"],
        "generated_tokens_per_s": tokens / whole, "staleness": mean(now["episode/staleness"] for _, now in steps),
    }  # fmt: skip


def main() -> None:
    file, *overrides = sys.argv[1:] or ["configs/quickstart.yaml"]
    found = {staleness: measure(file, overrides, staleness) for staleness in (0, 1, 2)}
    slower = max(found[0][half] for half in HALVES)
    result = {
        f"staleness_{staleness}": {name: round(value, 3) for name, value in times.items()}
        | {"over_slower": round(times["seconds"] / slower, 3)}
        for staleness, times in found.items()
    }
    episodes = load_config(file, overrides).train.samples_per_step
    print(json.dumps({"benchmark": "step", "episodes": episodes, **result}))


if __name__ == "__main__":
    main()
