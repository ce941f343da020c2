"""``affect-rl policy``: what is done with policy directories. Everything heavy is imported inside the functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

policy_app = typer.Typer(help="Hand policies on.", no_args_is_help=True)


@policy_app.callback()
def policy() -> None:
    """Keeps ``export`` a command of its own."""


@policy_app.command()
def export(
    source: Annotated[
        Path, typer.Argument(help="Run directory, whose policy is exported with all that the run tells; or a policy.")
    ],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    merged: Annotated[bool, typer.Option("--merged", help="Merge an adapter into the weights.")] = False,
    adapter: Annotated[str, typer.Option(help="Which one --merged merges, if there are several.")] = "",
    with_base: Annotated[bool, typer.Option("--with-base", help="Copy in the policy that adapters stand on.")] = False,
    shard_size: Annotated[str, typer.Option(help="Largest file of tensors, such as 5GB; default: one file.")] = "",
    license_: Annotated[
        str, typer.Option("--license", help="Licence of the language model, as the Hub calls it, such as apache-2.0.")
    ] = "",
    data_license: Annotated[str, typer.Option(help="Licence of the dataset.")] = "",
) -> None:
    """Write a trained team as a Hugging Face directory with a model card, without a path of this machine."""
    from affect_rl.model_card.card import Licences
    from affect_rl.policy.export import Form
    from cluster.export import export as run
    from cluster.runtime.tracking import set_up_logging

    set_up_logging()
    exported = run(source, out, Form(merged, adapter, with_base, shard_size), Licences(license_, data_license))
    held = f"adapters {', '.join(exported.adapters)}" if exported.adapters else "all weights"
    typer.echo(f"{out}: {held}; read its README.md before you pass it on")
    if exported.needs:
        typer.echo(
            f"warning: the adapters stand on {exported.needs}, which is not in it; copy that directory beside it, or "
            "export again with --with-base"
        )
