"""``affect-rl report``: experiments as one page. Everything heavy is imported inside the function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        list[Path], typer.Argument(help="Directories of experiments, each with a results.json; or of one sweep.")
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    markdown: Annotated[Path | None, typer.Option(help="Markdown file with the tables, too.")] = None,
    episodes: Annotated[int, typer.Option(min=0, help="Most episodes to show of an experiment.")] = 40,
) -> None:
    """Write one HTML page of experiments (tables, comparisons, plots, episodes) or of a sweep. It needs no network."""
    from affect_rl.experiments.report.experiment import Experiment
    from affect_rl.experiments.report.markdown import render_markdown
    from affect_rl.experiments.report.page import render_page, write
    from affect_rl.experiments.report.sweep import render_sweep
    from affect_rl.experiments.sweep_results import SWEEP, SweepResults, read_curves

    if len(results) == 1 and (results[0] / SWEEP).exists():
        found = SweepResults.read(results[0])
        write(out, render_sweep(found, read_curves(results[0])))
        if markdown:
            write(markdown, found.markdown())
        typer.echo(f"{out}: sweep {found.name}, {len(found.trials)} trials")
        return
    experiments = [Experiment.read(directory) for directory in results]
    write(out, render_page(experiments, episodes))
    typer.echo(f"{out}: {len(experiments)} experiments" if len(experiments) > 1 else f"{out}: 1 experiment")
    if markdown:
        write(markdown, render_markdown(experiments))
        typer.echo(f"{markdown}: their tables")
