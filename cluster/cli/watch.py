"""``affect-rl watch``: a run in the browser. Everything heavy is imported inside the function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def watch(
    run_dir: Annotated[Path, typer.Argument(help="Run directory.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any that is free.")] = 8420,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets everybody in.")] = "127.0.0.1",
) -> None:
    """Show a run in the browser while it trains: curves, episodes, what is invalid and why. Only reads."""
    from cluster.web.site import is_loopback, listen, serve
    from cluster.web.watch.server import make_server

    site = make_server(run_dir, host)
    socket = listen(host, port)
    typer.echo(f"{run_dir}: http://{host}:{socket.getsockname()[1]}/ (Ctrl-C ends it)")
    if not is_loopback(host):
        typer.echo("whoever reaches this address can read the run; there is no password")
    serve(site, socket)
