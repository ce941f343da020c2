"""The command that runs an experiment."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def experiment(
    file: Annotated[Path, typer.Argument(help="YAML file, see configs/experiments/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings such as data.dir=DIR, for all arms.")] = None,
    out: Annotated[Path | None, typer.Option(help="Result directory; default: results/<name>.")] = None,
    config: Annotated[str, typer.Option(help="Base configuration; default: the one that the file names.")] = "",
    seeds: Annotated[int, typer.Option(min=0, help="Seeds; 0: as many as the file says.")] = 0,
) -> None:
    """Run all arms of an experiment with all seeds, and write its tables. Finished parts are found again."""
    from affect_rl.experiments.report.experiment import Experiment
    from affect_rl.experiments.report.page import render_page, write
    from affect_rl.experiments.results import PAGE
    from affect_rl.experiments.spec import load_experiment
    from cluster.experiments.run import run_experiment
    from cluster.runtime.tracking import set_up_logging

    set_up_logging()
    spec = load_experiment(file)
    spec = spec.model_copy(update={"seeds": seeds or spec.seeds, "config": config or spec.config})
    directory = out or Path("results") / spec.name
    options = ["--config", spec.config, "--out", str(directory), *(["--seeds", str(seeds)] if seeds else [])]
    command = shlex.join(["affect-rl", "experiment", str(file), *options, *(overrides or ())])
    results = run_experiment(spec, directory, tuple(overrides or ()), command)
    write(directory / PAGE, render_page([Experiment.read(directory)]))
    typer.echo(results.markdown())
    typer.echo(f"{directory}, to be read as {directory / PAGE}")
