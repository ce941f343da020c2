"""Import of RAVDESS: two sentences spoken by 24 actors in eight emotions, recorded by voice and face.

Recordings are found by their published names, ``MM-CC-EE-II-SS-RR-AA`` (modality, channel, emotion, intensity,
sentence, take, actor), wherever they lie below the root: ``Actor_01/03-01-05-02-01-01-01.wav`` as well as
``voice/03-01-05-02-01-01-01.flac``. Source: Livingstone and Russo (2018), "The Ryerson audio-visual database of
emotional speech and song". Speech is read, song is passed over.

``faces.parquet``, if there is one, has what a face network saw in each picture: the columns ``clip``, ``frame`` and one
a emotion. It becomes video features. Those of voice and picture come from ``affect-rl data extract``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from affect_rl.data.importing import Importer, ImportReport, Row, RowError, media_table
from affect_rl.data.validation import near
from affect_rl.data.windows import window_statistics
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample, Split

CANDIDATES = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
SENTENCES = ("Kids are talking by the door.", "Dogs are sitting by the door.")
FACES = "faces.parquet"
WINDOWS = 8
"""Rows of the face's features."""
FACE_EMOTIONS = ("angry", "disgust", "fearful", "happy", "sad", "surprised", "neutral")
FACE_NAMES = (*FACE_EMOTIONS, *(f"{name}, deviation" for name in FACE_EMOTIONS))
"""What the face's features are, in order: posteriors, means and deviations in a window of time."""
_SUFFIXES = (".flac", ".wav", ".mp4")
_NAME = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")
_BOTH, _PICTURE, _VOICE = "01", "02", "03"
_SPEECH = "01"
_FOLDS = 6
_NOTE = (
    "RAVDESS speech, doi 10.1371/journal.pone.0196391, CC BY-NC-SA 4.0: non-commercial use, name the authors, share "
    "alike."
)
_FACES_NOTE = "Video features are posteriors of a face network on each picture, in {} windows of time."


@dataclass(slots=True)
class _Take:
    """One utterance and the files that hold it."""

    row: Row
    name: str
    files: dict[str, str] = field(default_factory=dict)


def import_ravdess(
    root: Path | str, out: Path | str, *, fold: int = 0, skip_bad: bool = False, overwrite: bool = False
) -> ImportReport:
    """Import RAVDESS's speech. The sentences tell nothing of the emotion; voice and face do.

    Splits are by actor, six folds of four (two women, two men): the fold is test, the next one dev, the others train.

    Args:
        root: directory that holds the recordings, at any depth.
        out: dataset directory to write.
        fold: which of the six is test, from 0.
        skip_bad: write the sound takes even if there are bad files.
        overwrite: replace a dataset at `out`.

    Raises:
        AffectError: there is no recording, files have odd names, the table of faces lacks a column, or `out` is taken;
            nothing is written.
    """
    if not 0 <= fold < _FOLDS:
        raise AffectError(f"fold={fold}: choose 0 to {_FOLDS - 1}")
    importer = Importer(root, out, skip_bad=skip_bad, overwrite=overwrite)
    takes = _takes(importer)
    faces = _faces(importer.root / FACES)
    for take in takes:
        with importer.judging(take.row):
            importer.add(_sample(take, faces.get(take.name), fold), take.row)
    written = {sample.id for sample in importer.samples}
    media = _media([take for take in takes if take.name in written], importer.root)
    return importer.finish(
        name="ravdess",
        note=f"{_NOTE} {_FACES_NOTE.format(WINDOWS)}" if faces else _NOTE,
        tables=["recordings"],
        notes=tuple(_notes(media, bool(faces))),
        media=media,
        video_names=FACE_NAMES if faces else (),
    )


def _takes(importer: Importer) -> list[_Take]:
    """The spoken takes, by name; what a file's name does not say is a bad row."""
    takes: dict[str, _Take] = {}
    paths = sorted(path for path in importer.root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    for index, path in enumerate(paths):
        file = str(path.relative_to(importer.root))
        row = Row(file, 1, index, {})
        with importer.judging(row):
            match = _NAME.fullmatch(path.stem)
            if match is None:
                raise RowError(f"{path.name} is not named like 03-01-05-02-01-01-12{path.suffix}; rename or remove it")
            modality, channel, *take = match.groups()
            if channel != _SPEECH:
                continue
            holds = _holds(modality, path.suffix.lower())
            name = "-".join((_VOICE, channel, *take))
            found = takes.setdefault(name, _Take(row, name))
            for what in holds:
                if what not in found.files or modality != _BOTH:  # a file for itself before one with both
                    found.files[what] = file
    if not takes and not importer.bad_rows:
        raise AffectError(f"{importer.root}: holds no recording such as 03-01-05-02-01-01-12.wav; unpack the archives")
    importer.row_counts["recordings"] = len(takes)
    return [takes[name] for name in sorted(takes)]


def _holds(modality: str, suffix: str) -> tuple[str, ...]:
    """What is in a file."""
    kinds = {_BOTH: ("audio", "video"), _PICTURE: ("video",), _VOICE: ("audio",)}
    if modality not in kinds:
        raise RowError(f"modality {modality} is unknown; {near(modality, kinds)}")
    if "video" in kinds[modality] and suffix != ".mp4":
        raise RowError(f"modality {modality} has pictures, which a {suffix} cannot hold; rename it")
    return kinds[modality]


def _sample(take: _Take, face: np.ndarray | None, fold: int) -> AffectSample:
    _, _, emotion, _, sentence, _, actor = map(int, take.name.split("-"))
    for what, number, count in (("emotion", emotion, 8), ("sentence", sentence, 2), ("actor", actor, 24)):
        if not 1 <= number <= count:
            raise RowError(f"{what} {number:02} of {take.name} is unknown; there are 01 to {count:02}")
    return AffectSample(
        id=take.name,
        dataset="ravdess",
        split=split_of(actor, fold),
        clip=take.name,
        speaker=f"actor-{actor:02}",
        text=SENTENCES[sentence - 1],
        labels=(CANDIDATES[emotion - 1],),
        label_kind="closed",
        candidates=CANDIDATES,
        video=None if face is None else window_statistics(face, WINDOWS),
    )


def split_of(actor: int, fold: int) -> Split:
    """The split of an actor, counted from 1: every sixth pair of actors, one man and one woman, is in one fold."""
    own = (actor - 1) // 2 % _FOLDS
    return "test" if own == fold else "dev" if own == (fold + 1) % _FOLDS else "train"


def _faces(path: Path) -> Mapping[str, np.ndarray]:
    """The posteriors ``[T, 7]`` of each clip, in the order of its pictures; empty without the table."""
    if not path.is_file():
        return {}
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise AffectError(f"{path}: is damaged ({error}); fetch it again") from None
    for column in ("clip", "frame", *FACE_EMOTIONS):
        if column not in table.column_names:
            raise AffectError(f"{path}: column {column!r} is missing; {near(column, table.column_names)}")
    clips = np.array(table["clip"].to_pylist())
    order = np.lexsort((table["frame"].to_numpy(), clips))
    values = np.stack([table[name].to_numpy() for name in FACE_EMOTIONS], axis=1)[order]
    names, starts = np.unique(clips[order], return_index=True)
    return dict(zip(names.tolist(), np.split(values, starts[1:]), strict=True))


def _media(takes: Sequence[_Take], root: Path) -> pa.Table:
    columns = {"sample_id": [take.name for take in takes]}
    columns |= {what: [take.files.get(what, "") for take in takes] for what in ("audio", "video")}
    return media_table(columns, root)


def _notes(media: pa.Table, faces: bool) -> list[str]:
    """What is there, and what is not."""
    notes = [
        f"{missing:,} of {media.num_rows:,} takes have no {what}"
        for what in ("audio", "video")
        if (missing := media[what].to_pylist().count(""))
    ]
    return notes if faces else [*notes, f"no {FACES}, so there are no features of faces"]
