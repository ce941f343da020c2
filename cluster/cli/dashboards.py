"""``affect-rl dashboards``: what Grafana and Prometheus need to show a job. Heavy imports are inside the functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

dashboards_app = typer.Typer(help="Grafana dashboards and the Prometheus configuration.", no_args_is_help=True)


@dashboards_app.callback()
def _group() -> None:
    """Keeps `install` a command of its own; typer would make a lone command the whole group."""


@dashboards_app.command()
def install(
    directory: Annotated[Path, typer.Argument(help="Where the files go; see docs/watching.md.")],
    ray_dir: Annotated[str, typer.Option(help="Ray's directory on the head node.")] = "/tmp/ray",
) -> None:
    """Write the dashboards and prometheus.yml into a directory."""
    from cluster.watching.dashboards import install as write

    for path in write(directory, ray_dir):
        typer.echo(path)
