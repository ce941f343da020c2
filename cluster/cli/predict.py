"""``affect-rl predict``. Everything heavy is imported inside the function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.serving.prediction import Prediction

_LISTED = 20
"""Inputs without an answer that are listed."""


def predict(
    team: Annotated[Path, typer.Argument(help="Run directory, or a policy in one.")],
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Clip, folder of clips, or table without labels.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings such as rollout.workers=2.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write, .jsonl or .parquet; default: JSON lines on standard output.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Sampled answers that tell how sure the team is.")] = 5,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="A classifier answers where it is sure, see `affect-rl cascade`.")
    ] = False,
    text: Annotated[str, typer.Option(help="Column of the transcript; default: text.")] = "",
    audio: Annotated[str, typer.Option(help="Column of sound files, relative to the table; default: audio.")] = "",
    video: Annotated[str, typer.Option(help="Column of video files; default: video.")] = "",
    id_column: Annotated[str, typer.Option("--id", help="Column of unique names; default: id, else the line.")] = "",
    speaker: Annotated[str, typer.Option(help="Column of who speaks; default: speaker.")] = "",
) -> None:
    """What a trained team makes of inputs without labels: label, reason, evidence, and how sure it is.

    Beside a clip NAME.mp4 may lie NAME.txt with what is said in it. An input that cannot be used has a `problem` in
    place of an answer.
    """
    from affect_rl.data.dataset import read_manifest
    from affect_rl.data.unlabelled import InputColumns, read_unlabelled
    from affect_rl.experiments.cascade import Cascade
    from cluster.runtime.rundir import RunDirectory
    from cluster.runtime.tracking import set_up_logging
    from cluster.serving.team import find_team

    set_up_logging()
    config, policy = find_team(team, overrides or ())
    columns = InputColumns(text=text, audio=audio, video=video, id=id_column, speaker=speaker)
    manifest = read_manifest(Path(config.data.dir))
    inputs = read_unlabelled(source, manifest, columns)
    both = Cascade.read(RunDirectory(config.run_dir).cascade) if cascade else None
    if both:
        both.check(policy, manifest)

    from cluster.serving.predict import as_json, check_out, write_predictions
    from cluster.serving.predict import predict as run

    if out:
        check_out(out)
    predictions = run(config, policy, inputs, samples, both)
    if out:
        _summarise(write_predictions(predictions, out), f"{out}: ")
    else:
        _summarise(_printed(predictions, as_json))


def _printed(predictions: Iterable[Prediction], as_json: Callable[[Prediction], str]) -> Iterator[Prediction]:
    for prediction in predictions:
        typer.echo(as_json(prediction))
        yield prediction


def _summarise(predictions: Iterable[Prediction], where: str = "") -> None:
    """Say on standard error how many inputs there is an answer to, and what is wrong with the others."""
    count, failed = 0, list[str]()
    for prediction in predictions:
        count += 1
        if prediction.problem:
            failed.append(f"  {prediction.id}: {prediction.problem}")
    typer.echo(f"{where}{count - len(failed):,} of {count:,} inputs answered", err=True)
    for line in failed[:_LISTED]:
        typer.echo(line, err=True)
    if len(failed) > _LISTED:
        typer.echo(f"  and {len(failed) - _LISTED:,} more", err=True)
