"""Does it learn? MAPPO against its SFT start, and the full system against the same backbone without retrieval.

    python -m benchmarks.learning --seeds 3 [--config configs/quickstart.yaml] [--runs runs/learning] [key=value ...]

For each seed: SFT, MAPPO and evaluation with and without retrieval, the same update budget. Finished stages
are found again, so an interrupted benchmark goes on. Prints one JSON line: held-out weighted F1 in percent
per seed, and the differences averaged over seeds with a 95 % interval. The interval is a paired bootstrap over
the test samples, every resample taking the same samples for all policies and seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from affect_rl.config.load import load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.scoring.scoring import Scoring
from cluster.evaluate import scoring_for
from cluster.runtime.run import open_run, run_evaluation, run_training, run_warm_start

SYSTEMS = {"full": (), "no_retrieval": ("team.retrieval=false",)}

Predictions = list[tuple[str, ...]]


def play(config_file: str, runs: Path, system: str, seed: int, overrides: Sequence[str]) -> dict[str, Predictions]:
    """Train and evaluate one system with one seed; its predictions on test under SFT and MAPPO."""
    settings = [*overrides, *SYSTEMS[system], f"runs_dir={runs}", f"name={system}-{seed}", f"seed={seed}"]
    config = load_config(config_file, settings)
    predictions = config.run_dir / "evaluation" / "predictions.parquet"
    if not predictions.exists():
        with open_run(config) as run:
            if not run.directory.sft.exists():
                run_warm_start(run)
            if not run.directory.policy.exists():
                run_training(run, resume=(run.directory.path / "checkpoints").exists())
            run_evaluation(run, {"SFT": run.directory.sft, "MAPPO": run.directory.policy}, run.directory.evaluation)
    table = pq.read_table(predictions).to_pydict()
    return {name: [tuple(labels) for labels in table[name]] for name in ("SFT", "MAPPO")}


def gain(a: Sequence[Predictions], b: Sequence[Predictions], scoring: Scoring) -> dict[str, float]:
    """Mean over seeds of F1(b) - F1(a) in points, with its paired bootstrap interval."""
    found = scoring.compare(a, b)["weighted_f1"]
    return {"points": round(100 * found.value, 2), "low": round(100 * found.low, 2), "high": round(100 * found.high, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()

    config = load_config(args.config, args.overrides)
    if not Path(config.data.dir).exists():
        write_dataset(Path(config.data.dir), synthesise(SynthSettings()), name="synth")
    dataset = Dataset.of(config.data)
    test = dataset.samples("test", config.data.max_test)
    scoring = scoring_for(config, test)
    played = {
        system: [play(args.config, args.runs, system, seed, args.overrides) for seed in range(args.seeds)]
        for system in SYSTEMS
    }
    by_policy = {(s, p): [seed[p] for seed in seeds] for s, seeds in played.items() for p in ("SFT", "MAPPO")}
    scores = {
        f"{s} {p}": [round(100 * run["weighted_f1"], 2) for run in scoring.per_run(seeds)]
        for (s, p), seeds in by_policy.items()
    }
    full = by_policy["full", "MAPPO"]
    result = {
        "benchmark": "learning", "seeds": args.seeds, "samples": len(test), "weighted_f1": scores,
        "mappo_over_sft": gain(by_policy["full", "SFT"], full, scoring),
        "full_over_no_retrieval": gain(by_policy["no_retrieval", "MAPPO"], full, scoring),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
