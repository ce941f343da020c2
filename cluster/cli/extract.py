"""``affect-rl data extract``: media to features."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Source(StrEnum):
    """Where pictures come from."""

    FACE = "face"
    VIDEO = "video"


def extract(
    data: Annotated[Path, typer.Option(help="Dataset directory with a media.parquet.")],
    out: Annotated[Path, typer.Option(help="Dataset directory to write.")],
    speech_encoder: Annotated[
        str,
        typer.Option(help="HuBERT-like checkpoint, or `prosody`; without one audio stays as it is."),
    ] = "",
    image_encoder: Annotated[
        str, typer.Option(help="CLIP-like checkpoint, path or hub name; without one video stays as it is.")
    ] = "",
    media_root: Annotated[
        Path | None, typer.Option(help="Directory of the media; default: the one in media.parquet.")
    ] = None,
    source: Annotated[Source, typer.Option(help="Pictures of the whole video, or of the face.")] = Source.VIDEO,
    frames: Annotated[int, typer.Option(min=1, help="Pictures per sample.")] = 8,
    segments: Annotated[int, typer.Option(min=1, help="Windows of time per sample's sound.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a worker takes at a time.")] = 32,
    workers: Annotated[int, typer.Option(min=1, help="Actors, each with the encoders loaded.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="A fraction shares one GPU; 0: CPU.")] = 0.0,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Write the dataset even if files cannot be used; theirs stays absent.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the dataset at --out.")] = False,
) -> None:
    """Turn a dataset's media into features. An interrupted run goes on where it was."""
    from affect_rl.data.extraction import Checkpoint, Extraction
    from cluster.extract import Workers, listing
    from cluster.extract import extract as run
    from cluster.runtime.tracking import set_up_logging

    set_up_logging()
    speech, image = (Checkpoint.find(name) if name else None for name in (speech_encoder, image_encoder))
    report = run(
        data, out, Extraction(speech, image, source.value, frames, segments),
        Workers(workers, gpus_per_worker, batch_size),
        media_root=media_root, skip_bad=skip_bad, overwrite=overwrite,
    )  # fmt: skip
    typer.echo(
        f"{report.directory}: {report.samples:,} samples, {report.audio:,} with audio, {report.video:,} with video "
        f"({report.found:,} of {report.parts:,} parts found)"
    )
    if report.problems:
        typer.echo(f"left out {len(report.problems):,} files that cannot be used:\n{listing(report.problems)}")
