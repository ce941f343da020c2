"""``affect-rl backbone``: published systems as starting points."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from affect_rl.backbones.systems import System

backbone_app = typer.Typer(help="Start from published systems.", no_args_is_help=True)


class Precision(StrEnum):
    """Precision of a policy's weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@backbone_app.callback()
def backbone() -> None:
    """Keeps ``import`` a command of its own."""


@backbone_app.command("import")
def import_backbone(
    system: Annotated[System, typer.Argument(help="Whose checkpoint it is.")],
    checkpoint: Annotated[
        list[Path], typer.Option(help="The system's .pth, .pt, .bin or .safetensors; repeat it for further files.")
    ],
    language_model: Annotated[Path, typer.Option(help="Directory or hub name of its language model.")],
    out: Annotated[Path, typer.Option(help="Policy directory to write, for model.base.")],
    dtype: Annotated[
        Precision, typer.Option(help="Precision of the weights; memory holds them twice.")
    ] = Precision.BFLOAT16,
) -> None:
    """Turn a published system's checkpoint into a policy directory, adapters merged."""
    import torch

    from affect_rl.backbones.importing import PUBLISHED_ADAPTER, read_backbone
    from affect_rl.backbones.layouts import LAYOUTS
    from affect_rl.errors import AffectError

    if out.exists():
        raise AffectError(f"{out}: exists; choose another --out, or remove it")
    policy = read_backbone(
        LAYOUTS[system], checkpoint, language_model, name=system.value, dtype=getattr(torch, dtype.value)
    ).policy
    policy.save(out, merge=PUBLISHED_ADAPTER)
    shape = policy.fusion.shape
    slots = ", ".join(slot.name for slot in shape.slots)
    read = " and ".join(f"{m} {getattr(shape, f'{m}_dim')} wide" for m in ("audio", "video") if m not in shape.unread)
    typer.echo(f"{out}: slots {slots}; reads {read}")
