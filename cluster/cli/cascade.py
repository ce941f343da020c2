"""``affect-rl cascade``. Everything heavy is imported inside the function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def cascade(
    team: Annotated[Path, typer.Argument(help="Run directory, or a policy in one.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings such as data.max_test=100.", show_default=False)
    ] = None,
    cost: Annotated[
        float, typer.Option(min=0, help="Points of the main metric that a thousand more tokens a sample have to bring.")
    ] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Directory to write; default: the run's cascade/.")] = None,
) -> None:
    """A classifier answers where it is sure, the team elsewhere: choose from where on, and show score against cost."""
    from cluster.runtime.tracking import set_up_logging
    from cluster.serving.team import find_team

    set_up_logging()
    config, policy = find_team(team, overrides or ())

    from affect_rl.experiments.cascade import PAGE
    from affect_rl.experiments.report.cascade import render_cascade
    from affect_rl.experiments.report.page import write
    from cluster.cascade import run_cascade
    from cluster.runtime.rundir import RunDirectory

    found = run_cascade(config, policy, cost)
    directory = out or RunDirectory(config.run_dir).cascade
    found.write(directory)
    write(directory / PAGE, render_cascade(found))
    typer.echo(found.markdown())
    typer.echo(f"{directory}, to be read as {directory / PAGE}")
