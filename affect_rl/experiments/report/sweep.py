"""A sweep as one HTML page: its trials as a table, as lines through their settings, and over their training."""

from __future__ import annotations

import pyarrow as pa

from affect_rl.experiments.report import figures, plots
from affect_rl.experiments.report.figures import Figure, FigureGroup
from affect_rl.experiments.report.page import templates
from affect_rl.experiments.sweep_results import SweepResults


def render_sweep(results: SweepResults, curves: pa.Table) -> str:
    """The page; the same sweep gives the same bytes."""
    series = {trial.name: number for number, trial in enumerate(results.trials)}
    learning = figures.learning(curves, series, "sweep") if len(curves) else []
    group = FigureGroup("Settings and scores", [_parallel(results, series)])
    return templates().get_template("sweep.html.jinja").render(s=results, series=series, groups_of=[group, *learning])


def _parallel(results: SweepResults, series: dict[str, int]) -> Figure:
    rows = [([*trial.settings.values(), 100 * trial.score], series[trial.name]) for trial in results.trials]
    best = results.trials[0]
    said = ", ".join(f"{key}={value}" for key, value in best.settings.items())
    svg = plots.parallel_coordinates(
        [*results.keys, "score, percent"], rows, key="sweep-parallel", alt=f"trials by settings and score; best: {said}"
    )
    return Figure("Each line is a trial; the last axis is its best score on dev", svg)
