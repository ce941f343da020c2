"""Import of the benchmarks of MER-UniBench and of MER-Caption+ from the directories that AffectGPT reads.

`affect_rl.data.layouts` says where everything is. Label files are ``.npz`` whose entries are pickled dictionaries,
``name -> {"emo": label, "val": value}``, read without executing them (`affect_rl.data.npz`), or tables of
open-vocabulary labels. Published splits are kept; where none is for dev, it is made from train clips. Samples have
no features yet: the paths of their media go to `MEDIA` for ``affect-rl data extract``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from affect_rl.data.importing import Importer, ImportReport, Row, RowError, media_table
from affect_rl.data.layouts import LAYOUTS, Layout
from affect_rl.data.npz import load_npz
from affect_rl.data.validation import near
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample, Split
from affect_rl.scoring.wheels import parse_labels

_KINDS = ("audio", "video", "face")


@dataclass(frozen=True, slots=True)
class _Clip:
    """A labelled clip: the row it comes from, its split, its labels and, for sentiment, its value."""

    row: Row
    split: Split
    labels: tuple[str, ...]
    value: float | None = None

    @property
    def name(self) -> str:
        return self.row["name"].strip()


def import_affectgpt(
    root: Path | str,
    out: Path | str,
    benchmark: str,
    *,
    language: str | None = None,
    silence: str = "",
    skip_bad: bool = False,
    seed: int = 0,
    dev_share: float = 0.1,
    overwrite: bool = False,
) -> ImportReport:
    """Import one benchmark, or the library.

    Args:
        root: directory that holds ``mer2023-dataset-process`` and its like.
        out: dataset directory to write.
        benchmark: a key of `LAYOUTS`.
        language: of the transcripts; by default the one AffectGPT reads.
        silence: stands for an empty transcript, which is a bad row otherwise.
        skip_bad: write the sound clips even if there are bad rows.
        seed: decides which train clips become dev where no dev split is published.
        dev_share: share of those clips.
        overwrite: replace a dataset at `out`.

    Raises:
        AffectError: a file, corpus or column is missing, rows are bad, `dev_share` leaves no train clip, the
            transcripts lack the language, or `out` is taken; nothing is written.
    """
    if benchmark not in LAYOUTS:
        raise AffectError(f"benchmark {benchmark!r} is unknown; {near(benchmark, LAYOUTS)}")
    layout = LAYOUTS[benchmark]
    root = Path(root)
    if not (root / layout.directory).is_dir():
        there = sorted(path.name for path in root.glob("*") if path.is_dir())
        hint = near(layout.directory, there) if there else "give the one that holds it as the root"
        raise AffectError(f"{root}: has no directory {layout.directory!r}; {hint}")
    importer = Importer(root / layout.directory, out, skip_bad=skip_bad, overwrite=overwrite)
    _add_samples(importer, layout, language or layout.language, silence)
    importer.require_sound()
    importer.samples = _with_dev(importer.samples, layout, seed, dev_share)
    return _finish(importer, layout, root)


# -- samples -----------------------------------------------------------------------------------------------


def _add_samples(importer: Importer, layout: Layout, language: str, silence: str) -> None:
    if language not in layout.columns:
        raise AffectError(f"language {language!r} is not among {layout.title}'s; {near(language, layout.columns)}")
    clips = list(_open_clips(importer, layout) if layout.label_kind == "open" else _corpus_clips(importer, layout))
    names = {clip.name for clip in clips}
    column = layout.columns[language]
    transcripts = _by_name(importer, layout.transcripts, column, names)
    descriptions: Mapping[str, Row] = {}
    if layout.descriptions:
        descriptions = _by_name(importer, layout.descriptions, "reason", names)
    for clip in clips:
        with importer.judging(clip.row):
            transcript = _find(transcripts, clip.name, layout.transcripts)
            text = transcript[column].strip() or silence
            if not text:
                raise RowError(
                    f"{clip.name} has no {column} in {transcript.file}:{transcript.line}; fill it in, or say what "
                    "stands for silence (--silence)"
                )
            reason = _find(descriptions, clip.name, layout.descriptions)["reason"] if layout.descriptions else ""
            importer.add(_sample(clip, layout, text, language, reason.strip()), clip.row)


def _sample(clip: _Clip, layout: Layout, text: str, language: str, description: str) -> AffectSample:
    match = re.fullmatch(layout.pattern, clip.name)
    if match is None:
        raise RowError(f"name {clip.name!r} is not like {layout.example!r}; correct it")
    parts = {"name": clip.name, **match.groupdict()}
    return AffectSample(
        id=clip.name,
        dataset=layout.name,
        split=layout.sessions[parts["session"]] if layout.sessions else clip.split,
        clip=layout.clip.format(**parts),
        dialogue=layout.dialogue.format(**parts) or None,
        speaker=layout.speaker.format(**parts),
        text=text,
        language=language,
        labels=clip.labels,
        label_kind=layout.label_kind,
        candidates=layout.candidates,
        description=description,
        value=clip.value,
    )


def _with_dev(samples: list[AffectSample], layout: Layout, seed: int, dev_share: float) -> list[AffectSample]:
    """The samples with a share of the train clips moved to dev, if the layout lacks one."""
    train = sorted(sample.id for sample in samples if sample.split == "train")
    if not (train and layout.lacks_dev):
        return samples
    count = round(dev_share * len(train))
    if not 0 <= count < len(train):
        raise AffectError(f"dev_share={dev_share:g} leaves none of {len(train)} train clips; choose 0 to below 1")
    dev = set(np.random.default_rng(seed).permutation(train)[:count].tolist())
    return [replace(sample, split="dev") if sample.id in dev else sample for sample in samples]


# -- labels ------------------------------------------------------------------------------------------------


def _corpus_clips(importer: Importer, layout: Layout) -> Iterator[_Clip]:
    """The clips of an ``.npz`` of corpora; a row is an entry, counted from 1."""
    path = importer.root / layout.labels
    corpora = load_npz(path)
    for key, split in layout.corpora.items():
        if key not in corpora:
            raise AffectError(f"{path}: corpus {key!r} is missing; {near(key, corpora)}")
        corpus = corpora[key]
        if not isinstance(corpus, dict):
            raise AffectError(f"{path}: {key} is not a dictionary of clips but {type(corpus).__name__}; fetch it again")
        file = f"{layout.labels}[{key}]"
        importer.row_counts[file] = len(corpus)
        for index, (name, entry) in enumerate(corpus.items()):
            row = Row(file, index + 1, index, {"name": str(name)})
            with importer.judging(row):
                yield _sentiment(row, split, entry, layout) if layout.bound else _emotion(row, split, entry, layout)


def _open_clips(importer: Importer, layout: Layout) -> Iterator[_Clip]:
    """The clips of a table of open labels; as for AffectGPT, a list without any is neutral."""
    (split,) = layout.corpora.values()
    for row in importer.rows(layout.labels, ("name", "openset")):
        with importer.judging(row):
            row.text("name")
            labels = tuple(dict.fromkeys(parse_labels(row.text("openset"))))
            yield _Clip(row, split, labels or ("neutral",))


def _emotion(row: Row, split: Split, entry: Any, layout: Layout) -> _Clip:
    label = _field(entry, "emo", row)
    if isinstance(label, int) and 0 <= label < len(layout.candidates):
        label = layout.candidates[label]
    if not (isinstance(label, str) and label in layout.candidates):
        raise RowError(f"{row['name']} has emo {label!r}, which is unknown; {near(str(label), layout.candidates)}")
    return _Clip(row, split, (label,))


def _sentiment(row: Row, split: Split, entry: Any, layout: Layout) -> _Clip:
    value = _field(entry, "val", row)
    if not (isinstance(value, int | float) and math.isfinite(value) and abs(value) <= layout.bound):
        raise RowError(f"{row['name']} has val {value!r}; expected a number in [-{layout.bound:g}, {layout.bound:g}]")
    negative, neutral, positive = layout.candidates
    return _Clip(row, split, (positive if value > 0 else negative if value < 0 else neutral,), float(value))


def _field(entry: Any, key: str, row: Row) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise RowError(f"{row['name']} has no {key!r} but {entry!r}; fetch the file again")
    return entry[key]


# -- tables by name ----------------------------------------------------------------------------------------


def _by_name(importer: Importer, file: str, column: str, names: Collection[str]) -> dict[str, Row]:
    """The rows of a table for `names`; a second row for a name is a bad one. Tables hold more than is wanted."""
    found: dict[str, Row] = {}
    for row in importer.rows(file, ("name", column), names=names):
        name = row["name"].strip()
        if (first := found.setdefault(name, row)) is not row:
            importer.reject(row, f"{name} is also in line {first.line}; keep one of the rows")
    return found


def _find(table: Mapping[str, Row], name: str, file: str) -> Row:
    if name not in table:
        raise RowError(f"{name} has no row in {file}; add it, or remove the clip")
    return table[name]


# -- the dataset and its media -----------------------------------------------------------------------------


def _finish(importer: Importer, layout: Layout, root: Path) -> ImportReport:
    """Write the dataset with its table of media."""
    media = _media(importer.samples, layout, root)
    notes = _notes(importer.samples, layout, media)
    source = (
        f"{layout.title} in the layout of MER-UniBench, github.com/zeroQiaoba/AffectGPT. Media and labels are under "
        "their owners' licences, for non-commercial research."
    )
    tables = [file for file in importer.row_counts if file.startswith(layout.labels)]
    note = "\n".join([source, *notes])
    return importer.finish(name=layout.name, note=note, tables=tables, notes=notes, media=media)


def _media(samples: Collection[AffectSample], layout: Layout, root: Path) -> pa.Table:
    """The table of media: paths relative to ``root`` in its metadata, empty where there is no file."""

    def find(places: Collection[str], name: str) -> str:
        paths = (f"{layout.directory}/{place.format(name=name)}" for place in places)
        return next((path for path in paths if (root / path).is_file()), "")

    columns = {"sample_id": [sample.id for sample in samples]}
    columns |= {kind: [find(getattr(layout, kind), sample.id) for sample in samples] for kind in _KINDS}
    return media_table(columns, root)


def _notes(samples: Sequence[AffectSample], layout: Layout, media: pa.Table) -> tuple[str, ...]:
    """What differs from the published benchmark, and which media are missing."""
    notes = []
    tested = sum(sample.split == "test" for sample in samples)
    if tested != layout.test_size:
        notes.append(
            f"test has {tested:,} clips where the published one has {layout.test_size:,}; results are not comparable"
        )
    splits: dict[str, set[Split]] = {}
    for sample in samples:
        splits.setdefault(sample.speaker, set()).add(sample.split)
    if shared := sum(len(found) > 1 for speaker, found in splits.items() if speaker):
        notes.append(f"{shared:,} of {len(splits):,} videos have segments in several of the published splits")
    for kind in _KINDS:
        if missing := media[kind].to_pylist().count(""):
            place = getattr(layout, kind)[0].format(name=samples[0].id)
            notes.append(f"{missing:,} of {media.num_rows:,} clips have no {kind} file such as {place}")
    return tuple(notes)
