"""Where a training step's seconds go: rollout, retrieval, learning, sync, waiting. Prints one JSON line.

    python -m benchmarks.step CONFIG [key=value ...]

The run starts from ``policy`` (or the run's SFT policy) and trains ``train.steps`` steps; the first is left
out as warm-up. Retrieval runs inside the rollout: its seconds are those during which at least one episode
of an engine waited for an answer. Waiting is what is left of the step.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import mean

from affect_rl.config.load import load_config
from cluster.runtime.run import open_run, run_training
from cluster.runtime.rundir import RunDirectory


def main() -> None:
    file, *overrides = sys.argv[1:] or ["configs/quickstart.yaml"]
    with tempfile.TemporaryDirectory() as runs:
        config = load_config(file, overrides)
        policy = config.policy or str(RunDirectory(config.run_dir).sft)
        overrides += [f"policy={policy}", f"runs_dir={runs}", "train.eval_every=0", "train.checkpoint_every=0"]
        config = load_config(file, overrides)
        with open_run(config) as run:
            run_training(run)
        lines = [json.loads(line) for line in Path(config.run_dir, "metrics.jsonl").read_text().splitlines()]
    steps = list(pairwise(lines[:-1]))  # the last step also evaluates and saves
    seconds = {k: mean(now[f"time/{k}_s"] for _, now in steps) for k in ("rollout", "retrieval", "learning", "sync")}
    whole = mean(now["time"] - before["time"] for before, now in steps)
    tokens = mean(now["episode/generated_tokens"] for _, now in steps) * config.train.samples_per_step
    waiting = whole - seconds["rollout"] - seconds["learning"] - seconds["sync"]
    result = {
        "benchmark": "step", "steps": len(steps), "episodes": config.train.samples_per_step,
        "max_staleness": config.train.max_staleness, "seconds": round(whole, 3),
        **{f"{k}_s": round(v, 3) for k, v in seconds.items()}, "waiting_s": round(waiting, 3),
        "generated_tokens_per_s": round(tokens / whole, 1),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
