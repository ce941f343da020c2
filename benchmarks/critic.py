"""What a critic foresees, beside a regression fitted afterwards on the same knowledge.

    python -m benchmarks.critic runs/quickstart ... [--first 5]

For each run and agent: the explained variance that the run's critic had (from earlier steps alone), and that of
regressions of rewards on what a critic that sees ``team`` or ``privileged`` may know, cross-validated over all of the
run's episodes (five folds, no sample in two of them): ridge, as the critic is, and a random forest (``trees``), which
also finds what is not linear. The critic's returns hold the KL penalty as well, the regressions' do not. Means over
training steps from `first` on. Reads a run's trajectories and metrics; prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from affect_rl.config.load import load_config
from affect_rl.team.knowledge import columns
from affect_rl.team.store import read_trajectories

RIDGE = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 4, 9)))
FITTED = {
    "team": (RIDGE, "team"),
    "privileged": (RIDGE, "privileged"),
    "privileged trees": (RandomForestRegressor(200, min_samples_leaf=10, random_state=0), "privileged"),
}
"""Regressions, and what they see."""


class Turn(NamedTuple):
    """What is known of a turn."""

    step: int
    sample: str
    agent: str
    knowledge: list[float]
    reward: float  # from this turn on
    tokens: int


def turns(run: Path, first: int) -> Iterator[Turn]:
    """All turns that were learned from, from step `first` on."""
    for file in sorted((run / "trajectories").glob("step-*.parquet")):
        step = int(file.stem.removeprefix("step-"))
        for episode in read_trajectories(file) if step >= first else ():
            trained = [turn for turn in episode["turns"] if turn["trained"]]
            for turn in trained:
                later = [t for t in trained if t["agent"] == turn["agent"] and t["number"] >= turn["number"]]
                reward, tokens = sum(t["reward"] for t in later), len(turn["response_ids"])
                yield Turn(step, episode["sample_id"], turn["agent"], turn["knowledge"], reward, tokens)


def fitted_afterwards(turns: list[Turn], regression: RegressorMixin, sees: str) -> float:
    """Mean over steps of the explained variance of a cross-validated regression."""
    x = np.array([turn.knowledge for turn in turns])[:, columns(sees)]
    y, tokens, step = (np.array([getattr(turn, name) for turn in turns]) for name in ("reward", "tokens", "step"))
    foreseen = cross_val_predict(regression, x, y, cv=GroupKFold(5), groups=[turn.sample for turn in turns])
    return float(np.mean([_explained(foreseen[step == s], y[step == s], tokens[step == s]) for s in np.unique(step)]))


def _explained(foreseen: np.ndarray, y: np.ndarray, tokens: np.ndarray) -> float:
    """Share of the variance that is explained; turns count by their tokens, as in the learner's metric."""
    variance = np.cov(y, aweights=tokens)
    return float(1 - np.cov(y - foreseen, aweights=tokens) / variance) if variance else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--first", type=int, default=5)
    args = parser.parse_args()
    found = {}
    for run in args.runs:
        critic = load_config(run / "config.yaml").algorithm.critic_settings
        metrics = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))[args.first - 1 :]
        played = defaultdict(list)
        for turn in turns(run, args.first):
            played[turn.agent].append(turn)
        found[str(run)] = {
            agent: {
                "critic": round(fmean(m[f"{agent}/explained_variance"] for m in metrics), 3) if critic else None,
                **{name: round(fitted_afterwards(spoken, *how), 3) for name, how in FITTED.items()},
            }
            for agent, spoken in played.items()
        } | {"sees": critic.sees if critic else None}
    print(json.dumps({"benchmark": "critic", "first": args.first, "runs": found}))


if __name__ == "__main__":
    main()
