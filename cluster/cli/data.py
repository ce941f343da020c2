"""``affect-rl data``: import datasets and look at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.demonstrate import demonstrate
from cluster.cli.extract import extract

if TYPE_CHECKING:
    from affect_rl.data.importing import ImportReport

data_app = typer.Typer(help="Make datasets and look at them.", no_args_is_help=True)
import_app = typer.Typer(help="Import a published dataset.", no_args_is_help=True)
data_app.add_typer(import_app, name="import")
data_app.command()(extract)
data_app.command()(demonstrate)

Root = Annotated[Path, typer.Option(help="Directory of the published tables.")]
Out = Annotated[Path, typer.Option(help="Dataset directory to write.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out bad rows; else one ends the import.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the dataset at --out.")]
Seed = Annotated[int, typer.Option(help="Decides which speakers or videos fall into which split.")]
Language = Annotated[str | None, typer.Option(help="en or zh; default: the transcripts that AffectGPT reads.")]
Silence = Annotated[str, typer.Option(help="Stands for an empty transcript, which is a bad row otherwise.")]
DevSeed = Annotated[
    int | None, typer.Option(help="Decides which train clips become dev, where dev is drawn; default: 0.")
]
DevShare = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of train clips that become dev, where dev is drawn; default: 0.1."),
]

_AFFECTGPT = {
    "mer2023": "MER2023: six emotions.",
    "mer2024": "MER2024: six emotions.",
    "iemocap": "IEMOCAP: four emotions; session 5 is test, session 4 dev.",
    "cmumosi": "CMU-MOSI: sentiment values.",
    "cmumosei": "CMU-MOSEI: sentiment values.",
    "sims": "CH-SIMS: sentiment values.",
    "simsv2": "CH-SIMS v2: sentiment values.",
    "ovmerdplus": "OV-MERD+: open emotion labels.",
    "mercaptionplus": "MER-Caption+: open emotion labels and descriptions, as an evidence library.",
}
"""Datasets that come only in AffectGPT's layout."""


@data_app.command("synth")
def synth(
    out: Out,
    train: Annotated[int, typer.Option(min=1, help="Training samples.")] = 3000,
    dev: Annotated[int, typer.Option(min=1, help="Dev samples.")] = 200,
    test: Annotated[int, typer.Option(min=1, help="Test samples.")] = 400,
    expressions: Annotated[int, typer.Option(help="Expressions; the library explains each.")] = 1000,
    jest: Annotated[int, typer.Option(min=0, help="Misleading library entries per expression.")] = 1,
    figurative: Annotated[float, typer.Option(help="Share of samples whose text carries an expression.")] = 0.75,
    reliable: Annotated[float, typer.Option(help="Chance of each modality to be strong beside an expression.")] = 0.3,
    noise: Annotated[float, typer.Option(min=0, help="Noise on features; a prototype has norm 1.")] = 0.15,
    absent: Annotated[float, typer.Option(help="Chance of each modality to be missing.")] = 0.05,
    open_labels: Annotated[bool, typer.Option(help="Name emotions in free words instead of six classes.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """The synthetic affect world: a dataset in which every mechanism of the method has work to do."""
    from affect_rl.data.dataset import write_dataset
    from affect_rl.data.synth import SynthSettings, synthesise

    settings = SynthSettings(
        train=train, dev=dev, test=test, expressions=expressions, jest=jest, figurative=figurative, reliable=reliable,
        noise=noise, absent=absent, open_labels=open_labels, seed=seed,
    )  # fmt: skip
    write_dataset(out, synthesise(settings), name="synth", note=f"{settings}", overwrite=overwrite)
    info(out)


@import_app.command("crema-d")
def crema_d(
    root: Root,
    out: Out,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    dev_share: Annotated[float, typer.Option(min=0, max=1, help="Share of actors in dev.")] = 0.1,
    test_share: Annotated[float, typer.Option(min=0, max=1, help="Share of actors in test.")] = 0.2,
) -> None:
    """CREMA-D: votes on voice and face as features, the audio-visual plurality as label."""
    from affect_rl.data.crema_d import import_crema_d

    _show(
        import_crema_d(
            root, out, skip_bad=skip_bad, seed=seed, dev_share=dev_share, test_share=test_share, overwrite=overwrite
        )
    )


@import_app.command("meld")
def meld(
    root: Root,
    out: Out,
    language: Language = None,
    silence: Silence = "",
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
) -> None:
    """MELD: utterances of dialogues with seven emotions, as text; in AffectGPT's layout (meld-process), with media."""
    from affect_rl.data.affectgpt import import_affectgpt
    from affect_rl.data.meld import import_meld
    from affect_rl.errors import AffectError

    if (root / "meld-process").is_dir():
        report = import_affectgpt(
            root, out, "meld", language=language, silence=silence, skip_bad=skip_bad, overwrite=overwrite
        )
    elif language or silence:
        raise AffectError(f"{root}: has no meld-process, which --language and --silence are for; leave them out")
    else:
        report = import_meld(root, out, skip_bad=skip_bad, overwrite=overwrite)
    _show(report)


@import_app.command("mosi")
def mosi(
    root: Root,
    out: Out,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    dev_videos: Annotated[int, typer.Option(min=0, help="Published train videos that become dev.")] = 10,
    allow_leaking_features: Annotated[
        bool,
        typer.Option(
            "--allow-leaking-features",
            help="Also import the video features, although they come from networks trained on the train labels.",
        ),
    ] = False,
) -> None:
    """CMU-MOSI: transcripts and audio features, positive or negative."""
    from affect_rl.data.mosi import import_mosi

    _show(
        import_mosi(
            root,
            out,
            skip_bad=skip_bad,
            seed=seed,
            dev_videos=dev_videos,
            allow_leaking_features=allow_leaking_features,
            overwrite=overwrite,
        )
    )


@import_app.command("table")
def table(
    file: Annotated[Path, typer.Argument(help="CSV, JSONL, Parquet or Excel file, one row an utterance.")],
    out: Out,
    text: Annotated[str, typer.Option(help="Column of the transcript.")],
    label: Annotated[str, typer.Option(help="Column of the true label; several are separated by |.")] = "",
    value: Annotated[str, typer.Option(help="Column of sentiment values in [-3, 3]; needs --kind sentiment.")] = "",
    kind: Annotated[str, typer.Option(help="closed (one of a few labels), open (any words) or sentiment.")] = "closed",
    labels: Annotated[str, typer.Option(help="Labels a row may have, separated by commas; default: all found.")] = "",
    split: Annotated[str, typer.Option(help="Column of train, dev, test or library; default: drawn.")] = "",
    id_column: Annotated[str, typer.Option("--id", help="Column of unique names; default: the line.")] = "",
    speaker: Annotated[str, typer.Option(help="Column of who speaks; a speaker falls into one split.")] = "",
    dialogue: Annotated[str, typer.Option(help="Column of the conversation.")] = "",
    clip: Annotated[str, typer.Option(help="Column of the recording that a row was cut from.")] = "",
    description: Annotated[str, typer.Option(help="Column of what an attentive listener would note.")] = "",
    audio: Annotated[str, typer.Option(help="Column of sound files, relative to the table.")] = "",
    video: Annotated[str, typer.Option(help="Column of video files; may be the same as --audio.")] = "",
    face: Annotated[str, typer.Option(help="Column of files with the face alone.")] = "",
    name: Annotated[str, typer.Option(help="Name of the dataset; default: the file's.")] = "",
    language: Annotated[str, typer.Option(help="Of the transcripts, ISO 639-1.")] = "en",
    seed: Seed = 0,
    dev_share: Annotated[float, typer.Option(min=0, max=1, help="Share that becomes dev, where it is drawn.")] = 0.1,
    test_share: Annotated[float, typer.Option(min=0, max=1, help="Share that becomes test, where it is drawn.")] = 0.2,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
) -> None:
    """A table of your own: CSV, JSONL, Parquet or Excel. Files named in it are for `data extract`."""
    from affect_rl.data.table import Columns, import_table
    from affect_rl.data.validation import LABEL_KINDS, near
    from affect_rl.errors import AffectError

    if kind not in LABEL_KINDS:
        raise AffectError(f"kind {kind!r} is unknown; {near(kind, LABEL_KINDS)}")
    columns = Columns(
        text=text, label=label, value=value, split=split, id=id_column, clip=clip, dialogue=dialogue, speaker=speaker,
        description=description, audio=audio, video=video, face=face,
    )  # fmt: skip
    _show(
        import_table(
            file,
            out,
            columns,
            kind=kind,
            candidates=[part.strip() for part in labels.split(",") if part.strip()],
            name=name,
            language=language,
            seed=seed,
            dev_share=dev_share,
            test_share=test_share,
            skip_bad=skip_bad,
            overwrite=overwrite,
        )
    )


@import_app.command("ravdess")
def ravdess(
    root: Root,
    out: Out,
    fold: Annotated[int, typer.Option(min=0, max=5, help="Which four actors are test; the next are dev.")] = 0,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
) -> None:
    """RAVDESS: two sentences in eight emotions by voice and face; recordings anywhere below the root."""
    from affect_rl.data.ravdess import import_ravdess

    _show(import_ravdess(root, out, fold=fold, skip_bad=skip_bad, overwrite=overwrite))


def _add_affectgpt(name: str, summary: str) -> None:
    """Add the command of a dataset that comes only in AffectGPT's layout."""

    @import_app.command(name, help=f"{summary} From AffectGPT's layout.")
    def command(
        root: Root,
        out: Out,
        language: Language = None,
        silence: Silence = "",
        skip_bad: SkipBad = False,
        overwrite: Overwrite = False,
        seed: DevSeed = None,
        dev_share: DevShare = None,
    ) -> None:
        from affect_rl.data.affectgpt import import_affectgpt
        from affect_rl.data.layouts import LAYOUTS
        from affect_rl.errors import AffectError

        if (seed, dev_share) != (None, None) and not LAYOUTS[name].lacks_dev:
            raise AffectError(f"{name}: no dev split is drawn, which --seed and --dev-share are for; leave them out")
        _show(
            import_affectgpt(
                root,
                out,
                name,
                language=language,
                silence=silence,
                skip_bad=skip_bad,
                seed=0 if seed is None else seed,
                dev_share=0.1 if dev_share is None else dev_share,
                overwrite=overwrite,
            )
        )


for _name, _summary in _AFFECTGPT.items():
    _add_affectgpt(_name, _summary)


@data_app.command()
def describe(
    data: Annotated[Path, typer.Option(help="Dataset directory whose features have names.")],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Put into words what was measured: how a voice sounds and a face looks, compared with the speaker's usual."""
    from affect_rl.data.dataset import Dataset, copy_dataset
    from affect_rl.data.describe import describe as described

    dataset = Dataset.load(data)
    samples = described(dataset)
    note = "Descriptions by affect-rl data describe."
    copy_dataset(dataset, out, samples, note=note, described=True, overwrite=overwrite)
    typer.echo(f"{out}: {len(samples):,} samples, for example")
    for sample in samples[:: max(1, len(samples) // 5)][:5]:
        typer.echo(f"  {sample.id}: {sample.description}")


@data_app.command()
def info(directory: Annotated[Path, typer.Argument(help="Dataset directory.")]) -> None:
    """Check a dataset and show its counts, labels and features."""
    from collections import Counter

    from rich.console import Console
    from rich.table import Table

    from affect_rl.data.dataset import Dataset

    dataset = Dataset.load(directory)
    samples = {split: dataset.samples(split) for split in dataset.counts}
    labels = {
        split: Counter(label for sample in chosen for label in sample.labels) for split, chosen in samples.items()
    }
    table = Table(title=f"{dataset.name} ({dataset.label_kind} labels)")
    table.add_column("")
    for split in samples:
        table.add_column(split, justify="right")
    table.add_row("samples", *(f"{len(chosen):,}" for chosen in samples.values()))
    for what in ("speaker", "clip"):
        table.add_row(
            f"{what}s", *(f"{len({getattr(s, what) for s in chosen} - {''}):,}" for chosen in samples.values())
        )
    for what in ("audio", "video"):
        present = (sum(getattr(sample, what) is not None for sample in chosen) for chosen in samples.values())
        table.add_row(f"with {what}, {getattr(dataset, f'{what}_dim')} wide", *(f"{count:,}" for count in present))
    table.add_row("several labels", *(f"{sum(len(s.labels) > 1 for s in chosen):,}" for chosen in samples.values()))
    table.add_section()
    known = dataset.candidates or [label for label, _ in sum(labels.values(), Counter()).most_common(20)]
    for label in known:
        shares = ((counts[label], len(samples[split])) for split, counts in labels.items())
        table.add_row(label, *(f"{count:,} ({100 * count / total:.0f} %)" for count, total in shares))
    console = Console()
    console.print(table)
    if dataset.manifest.note:
        console.print(dataset.manifest.note, style="dim", highlight=False)


def _show(report: ImportReport) -> None:
    """Print what an import wrote and what it left out."""
    from affect_rl.data.importing import listing

    counts = ", ".join(f"{count:,} {split}" for split, count in report.counts.items())
    typer.echo(f"{report.directory}: {counts}")
    for note in report.notes:
        typer.echo(f"note: {note}")
    if report.bad_rows:
        typer.echo(
            f"left out {report.skipped:,} samples for {len(report.bad_rows):,} bad rows:\n{listing(report.bad_rows)}"
        )
