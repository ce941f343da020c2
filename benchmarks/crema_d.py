"""CREMA-D split by actor: SFT and MAPPO beside logistic regression on the same split. Prints one JSON line.

    python -m benchmarks.crema_d --root DIR [--seeds 3] [--runs runs/crema-d] [key=value ...]

Each seed has its own split of the actors, policy and training. Weighted F1 on test in percent; ties among the
raters are alternatives for all three. The features are human votes on voice and on face, not raw signals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from affect_rl.config import load_config
from affect_rl.data.crema_d import import_crema_d
from affect_rl.data.dataset import Dataset
from affect_rl.metrics import evaluate
from affect_rl.sample import AffectSample
from cluster.jobs import open_job, run_evaluation, run_training, run_warm_start


def logistic_regression(dataset: Dataset) -> dict[str, float]:
    """Weighted F1 of logistic regression on both channels' features, in percent, with its interval."""

    def features(samples: list[AffectSample]) -> np.ndarray:
        widths = {"audio": dataset.audio_dim, "video": dataset.video_dim}
        return np.stack(
            [
                np.concatenate([np.zeros(d) if getattr(s, m) is None else getattr(s, m)[0] for m, d in widths.items()])
                for s in samples
            ]
        )

    train, test = dataset.samples("train"), dataset.samples("test")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(features(train), [s.labels[0] for s in train])
    predicted = [(label,) for label in model.predict(features(test))]
    return _percent(evaluate(predicted, [s.labels for s in test], dataset.candidates).weighted_f1)


def _percent(estimate: object) -> dict[str, float]:
    return {name: round(100 * getattr(estimate, name), 2) for name in ("value", "low", "high")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/crema-d"))
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    seeds = []
    for seed in range(args.seeds):
        data = args.runs / f"data-{seed}"
        if not data.exists():
            import_crema_d(args.root, data, seed=seed)
        settings = [*args.overrides, f"data.dir={data}", f"runs_dir={args.runs}", f"name=seed-{seed}", f"seed={seed}"]
        config = load_config("configs/crema_d.yaml", settings)
        report = config.run_dir / "evaluation" / "evaluation.json"
        with open_job(config) as job:
            if not job.run.sft.exists():
                run_warm_start(job)
            if not job.run.policy.exists():
                run_training(job, resume=(job.run.path / "checkpoints").exists())
            if not report.exists():
                run_evaluation(job, {"SFT": job.run.sft, "MAPPO": job.run.policy}, report.parent)
            baseline = logistic_regression(job.dataset)
        policies = json.loads(report.read_text())["policies"]
        scores = {name: policies[name]["scores"]["weighted_f1"] for name in ("SFT", "MAPPO")}
        percent = {name: {k: round(100 * v, 2) for k, v in score.items()} for name, score in scores.items()}
        seeds.append({"seed": seed, "logistic_regression": baseline, **percent})
    names = ("logistic_regression", "SFT", "MAPPO")
    means = {name: round(float(np.mean([s[name]["value"] for s in seeds])), 2) for name in names}
    print(json.dumps({"benchmark": "crema_d", "metric": "weighted F1, %", "mean": means, "seeds": seeds}))


if __name__ == "__main__":
    main()
