"""``affect-rl plan``. Everything heavy is imported inside the function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    config_file: Annotated[Path, typer.Argument(help="YAML file, see configs/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings such as learner.workers=8.", show_default=False)
    ] = None,
    address: Annotated[
        str, typer.Option(help="Running Ray cluster, HOST:PORT or http://HOST:8265; default: what the job would join.")
    ] = "",
    gpu_memory: Annotated[
        float, typer.Option(min=0, help="GiB of a card; 0: as this machine's, or 80 where it has none.")
    ] = 0,
    model_config: Annotated[
        Path | None, typer.Option(help="config.json of model.base, where that is not on this machine.")
    ] = None,
) -> None:
    """Say what a job needs and whether it is there; exit status 1 if not. Starts nothing."""
    from rich.console import Console

    from affect_rl.config.load import load_config
    from cluster.cli.plan_tables import tables
    from cluster.prospect import Prospect
    from cluster.runtime.capacity import cluster_at, this_machine
    from cluster.runtime.session import cluster_address

    config = load_config(config_file, overrides or ())
    where = address or cluster_address(config)
    capacity = cluster_at(where) if where else this_machine(config)
    prospect = Prospect.of(config, capacity, gpu_memory, model_config)
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    console.print(prospect.title)
    for table in tables(prospect):
        console.print(table)
    for note in prospect.notes:
        console.print(f"Note: {note}.", soft_wrap=True)
    for line in prospect.doubts():
        console.print(f"Note: {line}.", soft_wrap=True)
    problems = list(prospect.problems())
    for line in problems:
        console.print(f"Does not fit: {line}.", style="red", soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    console.print("It fits.", style="green")
