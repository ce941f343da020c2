"""What a sweep found, from its run directories: who is best on dev, and how good that one is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from affect_rl.config.load import Config, load_config
from affect_rl.errors import AffectError
from affect_rl.experiments.results import Interval
from affect_rl.experiments.sweep import SweepSpec
from affect_rl.experiments.sweep_results import SweepResults, Trial, write_sweep
from affect_rl.section import flat_settings
from cluster.runtime.run import open_run, run_evaluation
from cluster.runtime.rundir import RunDirectory
from cluster.watching.trackers import logged


def summarise(spec: SweepSpec, config: Config, out: Path, command: str) -> SweepResults:
    """Evaluate the best trial on dev and on ``evaluate.split``, and write the sweep's results to `out`.

    Raises:
        AffectError: no trial has been scored.
    """
    runs = [RunDirectory(path) for path in sorted((out / "runs").glob("trial-*")) if (path / "checkpoints").is_dir()]
    scored = (_trial(run, spec) for run in runs if run.latest()[0].best_step >= 0)
    trials = sorted(scored, key=lambda t: -t.score)
    if not trials:
        raise AffectError(f"{out}/runs: no trial has been scored; run the sweep again")
    best = RunDirectory(out / "runs" / trials[0].name)
    intervals: dict[str, dict[str, Interval]] = {}
    for split in dict.fromkeys(("dev", config.evaluate.split)):
        judged = load_config(best.path / "config.yaml", [f"evaluate.split={split}"])
        with open_run(judged, "eval") as run:
            policies = {trials[0].name: best.candidate(trials[0].best_step)}
            (result,) = run_evaluation(run, policies, out / "best" / split).results
        intervals[split] = {k: Interval(value=v.value, low=v.low, high=v.high) for k, v in result.scores.items()}
    lines = {run.path.name: [*logged(run.path / "metrics.jsonl")] for run in runs}
    metric = next(key.partition("/")[2] for line in lines[trials[0].name] for key in line if key.startswith("dev/"))
    results = SweepResults(
        name=spec.name, title=spec.title, metric=metric, command=command, trials=trials, best=intervals
    )
    write_sweep(out, results, [row for name, found in lines.items() for row in _rows(name, found)])
    return results


def _trial(run: RunDirectory, spec: SweepSpec) -> Trial:
    progress, _ = run.latest()
    settings = {key: value for key, value, _ in flat_settings(load_config(run.path / "config.yaml"))}
    return Trial(
        name=run.path.name,
        settings={key: settings[key] for key in spec.space},
        steps=progress.step,
        best_step=progress.best_step,
        score=progress.best_score,
        state="finished" if run.policy.exists() else "ended early",
    )


def _rows(name: str, lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for line in lines:
        for metric, value in line.items():
            if metric != "step":
                yield {"arm": name, "seed": 0, "step": line["step"], "metric": metric, "value": value}
