"""Import of a table of one's own: CSV, JSONL, Parquet or Excel, one row an utterance, columns by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from affect_rl.data.importing import LIST, Importer, ImportReport, Row, RowError, media_table, split_groups
from affect_rl.data.validation import SPLITS, near
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample, LabelKind, Split
from affect_rl.scoring.emotions import normalise

SENTIMENTS = ("negative", "neutral", "positive")
_MEDIA = ("audio", "video", "face")
_OTHER_NAMES: Mapping[str, Split] = {"val": "dev", "valid": "dev", "validation": "dev"}
"""What others call our splits."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the table's columns; an empty one is not there.

    Attributes:
        text: the transcript.
        label: the true label; several are separated by ``|``, or a list. Not needed beside a `value`.
        value: the sentiment value.
        split: ``train``, ``dev`` (or ``val``, ``validation``), ``test`` or ``library``; without it splits are drawn.
        id: unique name; else ``row-`` and the line.
        clip: the recording that the row was cut from; else its id.
        dialogue: the conversation.
        speaker: who speaks.
        description: what an attentive listener would note.
        audio: the sound's file, relative to the table; for ``affect-rl data extract``.
        video: the pictures' file.
        face: the file of the cut-out face.
    """

    text: str
    label: str = ""
    value: str = ""
    split: str = ""
    id: str = ""
    clip: str = ""
    dialogue: str = ""
    speaker: str = ""
    description: str = ""
    audio: str = ""
    video: str = ""
    face: str = ""

    def used(self) -> dict[str, str]:
        """Those that are there, by what they are."""
        return {field.name: name for field in fields(self) if (name := getattr(self, field.name))}


@dataclass(frozen=True, slots=True)
class _Labels:
    """How the column of labels is read."""

    kind: LabelKind
    candidates: tuple[str, ...]

    def read(self, row: Row, columns: Columns) -> tuple[tuple[str, ...], float | None]:
        """A row's labels, and its sentiment value if there is one."""
        value = row.number(columns.value) if columns.value else None
        if not columns.label:
            assert value is not None
            return (SENTIMENTS[1 + (value > 0) - (value < 0)],), value
        labels = tuple(dict.fromkeys(part.strip() for part in row.text(columns.label).split(LIST)))
        return tuple(map(self._known, labels)) if self.candidates else labels, value

    def _known(self, label: str) -> str:
        """The candidate that a label is, in any case."""
        known = {candidate.casefold(): candidate for candidate in self.candidates}
        if label.casefold() not in known:
            raise RowError(f"label {label!r} is unknown; {near(label, self.candidates)}")
        return known[label.casefold()]


def import_table(
    file: Path | str,
    out: Path | str,
    columns: Columns,
    *,
    kind: LabelKind = "closed",
    candidates: Collection[str] = (),
    name: str = "",
    language: str = "en",
    seed: int = 0,
    dev_share: float = 0.1,
    test_share: float = 0.2,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> ImportReport:
    """Import a table.

    Splits that the table does not name are drawn from train: dev if none is there, and test as well if the table has no
    column of splits. Rows of a clip stay together, and those of a dialogue; those of a speaker as well where there are
    no dialogues, in which speakers meet.

    Args:
        file: the table; its suffix says of which kind it is.
        out: dataset directory to write.
        columns: what is where.
        kind: of the labels.
        candidates: the labels that an answer may name; by default all that the table has.
        name: name of the dataset; by default that of the file.
        language: of the transcripts.
        seed: decides what falls into which split.
        dev_share: share of train's dialogues, speakers or clips that become dev, where dev is drawn.
        test_share: share that becomes test, where test is drawn.
        skip_bad: write the sound rows even if there are bad ones.
        overwrite: replace a dataset at `out`.

    Raises:
        AffectError: the file or a column is missing, rows are bad, splits cannot be drawn, or `out` is taken; nothing
            is written.
    """
    file = Path(file)
    labels = _labels_of(columns, kind, tuple(candidates))
    importer = Importer(file.parent, out, skip_bad=skip_bad, overwrite=overwrite)
    rows = list(importer.records(file.name, list(dict.fromkeys(columns.used().values()))))
    if kind != "open" and not labels.candidates:
        labels = replace(labels, candidates=_found(file, rows, columns.label))
    name = name or file.stem
    media: dict[str, list[str]] = {"sample_id": [], **{what: [] for what in _MEDIA if what in columns.used()}}
    for row in rows:
        with importer.judging(row):
            sample = _sample(row, columns, labels, name, language)
            paths = {what: _media_path(importer.root, row, columns.used()[what]) for what in media if what in _MEDIA}
            importer.add(sample, row)
            for what, value in {"sample_id": sample.id, **paths}.items():
                media[what].append(value)
    importer.require_sound()
    importer.samples, notes = _split(importer.samples, columns, seed, dev_share, test_share)
    if kind != "open" and not candidates and columns.label:
        notes = (f"labels: {', '.join(labels.candidates)}; --labels says which ones a row may have", *notes)
    return importer.finish(
        name=name,
        note=f"Imported from {file.name}.",
        tables=[file.name],
        notes=notes,
        media=media_table(media, importer.root) if len(media) > 1 else None,
    )


def _labels_of(columns: Columns, kind: LabelKind, candidates: tuple[str, ...]) -> _Labels:
    """What rows may say, checked before any is read."""
    if columns.value and kind != "sentiment":
        raise AffectError(
            f"value={columns.value}: only labels of kind 'sentiment' have values; choose it, or leave out"
        )
    if not (columns.label or columns.value):
        raise AffectError("no column of labels; name one (--label), or one of sentiment values (--value)")
    if kind == "open" and candidates:
        raise AffectError("open labels have no candidates; leave them out, or choose kind 'closed'")
    if columns.value and not columns.label:
        if candidates and candidates != SENTIMENTS:
            raise AffectError(f"candidates {candidates!r}: values are read as {', '.join(SENTIMENTS)}; leave them out")
        return _Labels(kind, SENTIMENTS)
    return _Labels(kind, candidates)


def _found(file: Path, rows: Sequence[Row], column: str) -> tuple[str, ...]:
    """The labels that a table has, in alphabetical order.

    Raises:
        AffectError: two of them are forms of one label.
    """
    counts = Counter(part.strip() for row in rows for part in row[column].split(LIST) if part.strip())
    forms: dict[str, str] = {}
    for label in sorted(counts):
        if (other := forms.setdefault(normalise(label), label)) != label:
            raise AffectError(
                f"{file}: column {column!r} has {other!r} ({counts[other]:,} times) and {label!r} ({counts[label]:,}), "
                "forms of one label; make them one"
            )
    return tuple(sorted(counts))


def _sample(row: Row, columns: Columns, labels: _Labels, dataset: str, language: str) -> AffectSample:
    known, value = labels.read(row, columns)
    cells = {what: row[column].strip() for what, column in columns.used().items()}
    split = cells.get("split", "train").lower()
    split = _OTHER_NAMES.get(split, split)
    if split not in SPLITS:
        raise RowError(f"{columns.split} {split!r} is no split; {near(split, (*SPLITS, *_OTHER_NAMES))}")
    name = row.text(columns.id) if columns.id else f"row-{row.line}"
    return AffectSample(
        id=name,
        dataset=dataset,
        split=split,
        clip=cells.get("clip") or name,
        dialogue=cells.get("dialogue") or None,
        speaker=cells.get("speaker", ""),
        text=row.text(columns.text),
        language=language,
        labels=known,
        label_kind=labels.kind,
        candidates=labels.candidates,
        description=cells.get("description", ""),
        value=value,
    )


def _media_path(root: Path, row: Row, column: str) -> str:
    """The path in a cell, empty where there is none."""
    path = row[column].strip()
    if path and not (root / path).is_file():
        raise RowError(f"{column} {path!r} is no file below {root}; correct it, or leave it empty")
    return path


def _split(
    samples: list[AffectSample], columns: Columns, seed: int, dev_share: float, test_share: float
) -> tuple[list[AffectSample], tuple[str, ...]]:
    """The samples with the splits drawn that the table does not name, and what was done."""
    there = {sample.split for sample in samples}
    wanted: dict[Split, float] = {}
    if "train" in there and "dev" not in there:
        wanted["dev"] = dev_share
    if not columns.split:
        wanted["test"] = test_share
    if not any(wanted.values()):
        return samples, ()
    train = [sample for sample in samples if sample.split == "train"]
    what = "dialogue" if columns.dialogue else "speaker" if columns.speaker else "clip"
    groups = dict(zip((s.id for s in train), _together(train, {what, "clip"}), strict=True))
    plural = f"{what}s" if getattr(columns, what) else "rows"
    drawn = split_groups(set(groups.values()), plural, seed, wanted.get("dev", 0), wanted.get("test", 0))
    samples = [replace(s, split=drawn[groups[s.id]]) if s.id in groups else s for s in samples]
    return samples, (f"{' and '.join(wanted)}: drawn from train by {plural}, with seed {seed}",)


def _together(samples: Sequence[AffectSample], kinds: Collection[str]) -> list[str]:
    """A name for each sample, the same for samples that hang together by a clip, a dialogue or a speaker they share."""
    keys = [
        (row, (kind, name)) for row, s in enumerate(samples) for kind in sorted(kinds) if (name := getattr(s, kind))
    ]
    places = {key: len(samples) + place for place, key in enumerate(dict.fromkeys(key for _, key in keys))}
    count = len(samples) + len(places)
    edges = ([row for row, _ in keys], [places[key] for _, key in keys])
    _, component = connected_components(coo_array((np.ones(len(keys)), edges), shape=(count, count)), directed=False)
    return [f"{number:09}" for number in component[: len(samples)]]
