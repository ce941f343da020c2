"""``affect-rl backbone``: published systems as starting points."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

backbone_app = typer.Typer(help="Start from published systems.", no_args_is_help=True)


class System(StrEnum):
    """Systems whose checkpoints can be read, see `affect_rl.backbones.LAYOUTS`."""

    AFFECTGPT = "affectgpt"
    PANDAGPT = "pandagpt"


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
    checkpoint: Annotated[Path, typer.Option(help="The system's .pth, .pt or .safetensors.")],
    language_model: Annotated[Path, typer.Option(help="Directory of the language model it was trained on.")],
    out: Annotated[Path, typer.Option(help="Policy directory to write, for model.base.")],
    dtype: Annotated[
        Precision, typer.Option(help="Precision of the weights; memory holds them twice.")
    ] = Precision.BFLOAT16,
) -> None:
    """Turn a published system's checkpoint into a policy directory, adapters merged."""
    import torch

    from affect_rl.backbones import LAYOUTS, read_backbone
    from affect_rl.errors import AffectError

    if out.exists():
        raise AffectError(f"{out}: exists; choose another --out, or remove it")
    policy = read_backbone(
        LAYOUTS[system.value], checkpoint, language_model, name=system.value, dtype=getattr(torch, dtype.value)
    ).policy
    policy.save(out)
    shape = policy.fusion.shape
    slots = ", ".join(slot.name for slot in shape.slots)
    typer.echo(f"{out}: slots {slots}; reads audio {shape.audio_dim} wide and video {shape.video_dim} wide")
