"""``affect-rl serve``. Everything heavy is imported inside the function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    team: Annotated[Path, typer.Argument(help="Run directory, or a policy in one.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings such as serve.port=9000.", show_default=False)
    ] = None,
    token: Annotated[
        str,
        typer.Option(envvar="AFFECT_RL_TOKEN", help="What requests must bring; default: one is made up and printed."),
    ] = "",
    no_token: Annotated[bool, typer.Option("--no-token", help="Let everybody in who reaches the port.")] = False,
) -> None:
    """A trained team behind an HTTP API on Ray Serve, with a page for the browser, until Ctrl-C; /docs describes it."""
    import secrets
    import signal
    from threading import Event

    from cluster.runtime.tracking import set_up_logging
    from cluster.serving.team import find_team

    set_up_logging()
    config, policy = find_team(team, ["rollout.deterministic=false", *(overrides or ())])
    given = token.strip()
    secret = "" if no_token else given or secrets.token_urlsafe(24)

    from cluster.serving.application import serving

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, during the start as well
    try:
        with serving(config, policy, secret) as address:
            typer.echo(f"{team} answers at {address}; {address}/docs says what can be asked")
            made_up = secret and not given  # one that was given is no business of a log
            # What stands behind the # stays in the browser.
            typer.echo(f"in the browser: {address}/{f'#token={secret}' if made_up else ''}")
            if made_up:
                typer.echo(f"token: {secret}")
            Event().wait()
    except KeyboardInterrupt:
        typer.echo("ended")
