"""The command that runs a sweep."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def sweep(
    file: Annotated[Path, typer.Argument(help="YAML file, see configs/sweeps/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings such as data.dir=DIR, for all trials.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The sweep's directory; default: sweeps/<name>.")] = None,
) -> None:
    """Search settings with Ray Tune, and say which trial is best on dev. The same command goes on after a kill."""
    from affect_rl.experiments.report.page import write
    from affect_rl.experiments.report.sweep import render_sweep
    from affect_rl.experiments.sweep import load_sweep
    from affect_rl.experiments.sweep_results import PAGE, read_curves
    from cluster.runtime.tracking import set_up_logging
    from cluster.sweeps.run import run_sweep

    set_up_logging()
    spec, more = load_sweep(file), tuple(overrides or ())
    directory = out or Path("sweeps") / spec.name
    command = shlex.join(["affect-rl", "sweep", str(file), "--out", str(directory), *more])
    results = run_sweep(spec, directory, more, command)
    write(directory / PAGE, render_sweep(results, read_curves(directory)))
    typer.echo(results.markdown())
    typer.echo(f"{directory}, to be read as {directory / PAGE}")
