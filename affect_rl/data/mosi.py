"""Import of CMU-MOSI: film reviews in front of a camera, positive or negative.

Layout: ``transcripts.csv`` (latin-1, no header: name ``VIDEO_segment``, text, video number, label 0 or 1),
``text_{train,test}.csv`` (column 0: the row number in ``transcripts.csv``), ``audio/audio_{train,test}0.csv``
and ``video/video_{train,test}0.csv`` (features, then the label), all in the same row order. Source: Zadeh et
al. (2016), "MOSI: Multimodal corpus of sentiment intensity"; features of the ``bc-LSTM`` baseline.

**Leak.** The published text and video features are activations of networks that were trained on the train
labels: a linear model on them reaches 98 and 92 in cross-validation and 76 and 52 on test. A policy trained
on them learns to trust what the test set will not have. Transcripts and audio are clean. So text features
are never imported (a sample has its transcript), and video features only if the caller insists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from affect_rl.data.importing import Importer, ImportReport, Row, RowError
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample, Split

CANDIDATES = ("negative", "positive")
AUDIO_DIM = 73
VIDEO_DIM = 100
TEXT_DIM = 100
LEAK = (
    "the published text and video features come from networks trained on the train labels (a linear model on the video "
    "features: 92 in cross-validation, 52 on test)"
)
_TRANSCRIPT = ("name", "text", "video number", "label")
_NOTE = (
    "CMU-MOSI, features from github.com/declare-lab/multimodal-deep-learning (bc-LSTM, MIT); the dataset itself is for "
    "research use. Features are standardised with the train videos' mean and deviation."
)


def import_mosi(
    root: Path | str,
    out: Path | str,
    *,
    skip_bad: bool = False,
    seed: int = 0,
    dev_videos: int = 10,
    allow_leaking_features: bool = False,
    overwrite: bool = False,
) -> ImportReport:
    """Import CMU-MOSI: transcripts in lower case (they are published in capitals) and standardised audio features.

    Args:
        root: directory of the tables.
        out: dataset directory to write.
        skip_bad: write the sound utterances even if there are bad rows.
        seed: decides which train videos become dev.
        dev_videos: how many of the published train videos become dev.
        allow_leaking_features: also import the video features, although they leak the train labels (see above).
        overwrite: replace a dataset at `out`.

    Raises:
        AffectError: a table is missing, rows are bad, `dev_videos` leaves no train video, or `out` is taken;
            nothing is written.
    """
    importer = Importer(root, out, skip_bad=skip_bad, overwrite=overwrite)
    transcripts = _transcripts(importer)
    _add_split(importer, transcripts, "train", allow_leaking_features)
    _add_split(importer, transcripts, "test", allow_leaking_features)
    importer.require_sound()
    importer.samples = _standardised(_with_dev(importer.samples, seed, dev_videos))
    notes = (
        (f"LEAK: video features were imported although {LEAK}; do not report results on them",)
        if allow_leaking_features
        else (f"text and video features are left out: {LEAK}; --allow-leaking-features imports the video features",)
    )
    note = f"{_NOTE} {notes[0]}" if allow_leaking_features else _NOTE
    return importer.finish(name="mosi", note=note, tables=["text_train.csv", "text_test.csv"], notes=notes)


def _add_split(importer: Importer, transcripts: Mapping[int, AffectSample], split: Split, video: bool) -> None:
    """Add the samples of a published split."""
    index = _table(importer, f"text_{split}.csv", ("row number", *_features(TEXT_DIM)))
    files = {"audio": (f"audio/audio_{split}0.csv", AUDIO_DIM)}
    if video:
        files["video"] = (f"video/video_{split}0.csv", VIDEO_DIM)
    tables = {name: _table(importer, file, (*_features(dim), "label")) for name, (file, dim) in files.items()}
    total = importer.row_counts[f"text_{split}.csv"]
    for file, _ in files.values():
        if (rows := importer.row_counts[file]) != total:
            raise AffectError(
                f"{importer.root / file}: has {rows} rows but text_{split}.csv has {total}; row i of one belongs to "
                "row i of the other, so fetch both again"
            )
    for place, row in index.items():
        with importer.judging(row):
            number = row.integer("row number")
            if number not in transcripts:
                raise RowError(f"points to row {number} of transcripts.csv, which is absent or bad; correct that one")
            sample = transcripts[number]
            frames = {name: _frame(table.get(place), files[name], sample.labels[0]) for name, table in tables.items()}
            importer.add(replace(sample, split=split, audio=frames["audio"], video=frames.get("video")), row)


def _table(importer: Importer, file: str, columns: Sequence[str], encoding: str = "utf-8") -> dict[int, Row]:
    """A table without header, by row index."""
    return {row.index: row for row in importer.rows(file, columns, header=False, encoding=encoding)}


def _features(dim: int) -> list[str]:
    return [f"feature {i}" for i in range(dim)]


def _transcripts(importer: Importer) -> dict[int, AffectSample]:
    """Samples by row of ``transcripts.csv``, still without features and their own split."""
    transcripts = {}
    for index, row in _table(importer, "transcripts.csv", _TRANSCRIPT, encoding="latin-1").items():
        with importer.judging(row):
            name, text = row.text("name"), row.text("text").lower()
            video, _, segment = name.rpartition("_")
            if not (video and segment.isdigit()):
                raise RowError(f"name {name!r} is not VIDEO_segment, as in 03bSnISJMiM_1")
            transcripts[index] = AffectSample(
                id=name,
                dataset="mosi",
                split="train",
                clip=video,
                speaker="",
                text=text,
                labels=(CANDIDATES[int(row.choice("label", ("0", "1")))],),
                label_kind="sentiment",
                candidates=CANDIDATES,
                description=text,
            )
    return transcripts


def _frame(row: Row | None, file: tuple[str, int], label: str) -> np.ndarray:
    """The features of a row as one frame ``[1, d]`` float32; the row's own label must agree."""
    name, dim = file
    if row is None:
        raise RowError(f"its row of {name} is bad; mend that one")
    found = CANDIDATES[int(row.choice("label", ("0", "1")))]
    if found != label:
        raise RowError(
            f"label is {label} in transcripts.csv but {found} in {name}:{row.line}; are the rows in the same order?"
        )
    return np.array([[row.number(column) for column in _features(dim)]], np.float32)


def _with_dev(samples: list[AffectSample], seed: int, dev_videos: int) -> list[AffectSample]:
    """The samples with `dev_videos` train videos moved to dev."""
    videos = sorted({sample.clip for sample in samples if sample.split == "train"})
    if not 0 <= dev_videos < len(videos):
        raise AffectError(
            f"dev_videos={dev_videos} leaves no train video; choose 0 to {len(videos) - 1} of the {len(videos)}"
        )
    dev = set(np.random.default_rng(seed).permutation(videos)[:dev_videos].tolist())
    return [replace(sample, split="dev") if sample.clip in dev else sample for sample in samples]


def _standardised(samples: list[AffectSample]) -> list[AffectSample]:
    """The samples with features of mean 0 and deviation 1 over the train split; constant features become 0."""
    for modality in ("audio", "video"):
        train = [x for s in samples if s.split == "train" and (x := getattr(s, modality)) is not None]
        if not train:
            continue
        frames = np.concatenate(train, dtype=np.float64)
        mean, deviation = frames.mean(axis=0), frames.std(axis=0)
        deviation[deviation == 0] = np.inf
        samples = [
            replace(s, **{modality: ((getattr(s, modality) - mean) / deviation).astype(np.float32)}) for s in samples
        ]
    return samples
