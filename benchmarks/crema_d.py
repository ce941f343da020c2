"""CREMA-D split by actor: SFT and MAPPO beside logistic regression on the same split. Prints one JSON line.

    python -m benchmarks.crema_d --root DIR [--seeds 3] [--runs runs/crema-d] [key=value ...]

Each seed has its own split of the actors, policy and training. Weighted F1 on test in percent; ties among the
raters are alternatives for all three. The features are human votes on voice and on face, not raw signals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from affect_rl.config.load import load_config
from affect_rl.data.crema_d import import_crema_d
from affect_rl.experiments.baselines import logistic_regression
from affect_rl.scoring.metrics import evaluate
from cluster.runtime.run import open_run, run_evaluation, run_training, run_warm_start


def _percent(estimate: object) -> dict[str, float]:
    return {name: round(100 * getattr(estimate, name), 2) for name in ("value", "low", "high")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/crema-d"))
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    seeds: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        data = args.runs / f"data-{seed}"
        if not data.exists():
            import_crema_d(args.root, data, seed=seed)
        settings = [*args.overrides, f"data.dir={data}", f"runs_dir={args.runs}", f"name=seed-{seed}", f"seed={seed}"]
        config = load_config("configs/crema_d.yaml", settings)
        report = config.run_dir / "evaluation" / "evaluation.json"
        with open_run(config) as run:
            if not run.directory.sft.exists():
                run_warm_start(run)
            if not run.directory.policy.exists():
                run_training(run, resume=(run.directory.path / "checkpoints").exists())
            if not report.exists():
                run_evaluation(run, {"SFT": run.directory.sft, "MAPPO": run.directory.policy}, report.parent)
            test = run.dataset.samples("test")
            guesses = logistic_regression(run.dataset, test)
            scores = evaluate(guesses, [s.labels for s in test], run.dataset.candidates)
            baseline = _percent(scores.weighted_f1)
        policies = json.loads(report.read_text())["policies"]
        f1 = {name: policies[name]["scores"]["weighted_f1"] for name in ("SFT", "MAPPO")}
        percent = {name: {k: round(100 * v, 2) for k, v in score.items()} for name, score in f1.items()}
        seeds.append({"seed": seed, "logistic_regression": baseline, **percent})
    names = ("logistic_regression", "SFT", "MAPPO")
    means = {name: round(float(np.mean([s[name]["value"] for s in seeds])), 2) for name in names}
    print(json.dumps({"benchmark": "crema_d", "metric": "weighted F1, %", "mean": means, "seeds": seeds}))


if __name__ == "__main__":
    main()
