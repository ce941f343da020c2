"""Wrong datasets and wrong imports, each with the message it must get."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from affect_rl.data.crema_d import import_crema_d
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.meld import import_meld
from affect_rl.data.mosi import import_mosi
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample

IMPORTERS: dict[str, Callable[..., Any]] = {"crema_d": import_crema_d, "meld": import_meld, "mosi": import_mosi}

# -- samples that cannot be written --------------------------------------------------------------------

BAD_SAMPLES = [
    ({"id": ""}, "id is empty"),
    ({"text": "  "}, "text is empty; leave the utterance out"),
    ({"clip": ""}, "clip is empty"),
    ({"dialogue": ""}, "dialogue is an empty string; use None"),
    ({"language": "English"}, "language 'English' is not an ISO 639-1 code"),
    ({"split": "tset"}, "split 'tset' is unknown; did you mean 'test'?"),
    ({"label_kind": "close"}, "label_kind 'close' is unknown; did you mean 'closed'?"),
    ({"labels": ()}, "hold no label"),
    ({"labels": ("joy", "joy")}, "repeat one"),
    ({"labels": ("jo",)}, "label 'jo' is not among the candidates; did you mean 'joy'?"),
    ({"candidates": ("joy",)}, "leave no choice"),
    ({"candidates": ("joy", "Joyful")}, "hold two forms of one label"),
    ({"label_kind": "open"}, "candidates on an open label"),
    ({"audio": np.zeros(3, np.float32)}, "audio has shape (3,); expected [T, d]"),
    ({"audio": np.zeros((0, 3), np.float32)}, "audio has shape (0, 3)"),
    ({"video": np.zeros((1, 3))}, "video is float64; convert it to float32"),
    ({"audio": np.array([[0, np.nan, 0]], np.float32)}, "audio is not finite at frame 0, feature 1"),
    ({"value": 1.0}, "only label_kind 'sentiment' has values"),
    ({"label_kind": "sentiment", "value": 4.0}, "value 4.0 is outside [-3, 3]"),
    ({"audio": np.zeros((1, 2), np.float32)}, "audio_dim is 3 in sample 'u3' but 2 in sample 'u1'"),
    ({"candidates": ("joy", "fear")}, "but ('joy', 'fear') in sample 'u1'; a dataset has one"),
    ({"id": "u4"}, "test.parquet: row 0: id 'u4' is also in train.parquet: row 0"),
    (
        {"clip": "c4"},
        "test.parquet: row 0: clip 'c4' is also in train.parquet: row 0; move all of a clip into one split",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SAMPLES, ids=[message for _, message in BAD_SAMPLES])
def test_bad_sample(tmp_path: Path, samples: list[AffectSample], changes: dict[str, Any], message: str) -> None:
    samples[0] = replace(samples[0], **changes)
    with pytest.raises(AffectError, match=re.escape(message)):
        write_dataset(tmp_path / "d", samples, name="made-up")
    assert not any(tmp_path.iterdir())


def test_dialogue_in_two_splits(tmp_path: Path, samples: list[AffectSample]) -> None:
    samples[3] = replace(samples[3], dialogue="d2")
    with pytest.raises(AffectError, match=r"test.parquet: row 0: dialogue 'd2' is also in train.parquet: row 1"):
        write_dataset(tmp_path / "d", samples, name="made-up")


# -- directories that cannot be read ---------------------------------------------------------------------


def rewrite(directory: Path, split: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a split's table and make the manifest agree, as another tool might."""
    path = directory / f"{split}.parquet"
    table = change(pq.read_table(path))
    pq.write_table(table, path)
    manifest = json.loads((directory / "dataset.json").read_text())
    manifest["splits"][split] = {"rows": table.num_rows, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (directory / "dataset.json").write_text(json.dumps(manifest))


def put(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        field = table.schema.field(column).with_nullable(True)
        return table.set_column(table.schema.names.index(column), field, pa.array(values, field.type))

    return change


def edit_manifest(directory: Path, **changes: Any) -> None:
    path = directory / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BAD_DIRECTORIES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda d: shutil.rmtree(d), "no dataset.json, so this is not a dataset"),
    (lambda d: (d / "dataset.json").write_text("{"), "dataset.json: Invalid JSON"),
    (lambda d: edit_manifest(d, format=2), "dataset.json: format: Input should be 1"),
    (lambda d: edit_manifest(d, nmae="x"), "nmae: Extra inputs are not permitted; did you mean 'name'?"),
    (lambda d: edit_manifest(d, audio_dim=5), "row 0: audio_dim is 3 but dataset.json says 5"),
    (lambda d: edit_manifest(d, candidates=["joy", "fear"]), "candidates is ('anger', 'joy') but dataset.json says"),
    (lambda d: (d / "dev.parquet").unlink(), "dev.parquet: is missing but listed"),
    (lambda d: (d / "dev.parquet").write_bytes(b"x"), "dev.parquet: content does not match dataset.json"),
    (lambda d: shutil.copy(d / "dev.parquet", d / "library.parquet"), "library.parquet: is not in dataset.json"),
    (lambda d: rewrite(d, "train", lambda t: t.drop_columns("clip")), "column 'clip' is missing"),
    (
        lambda d: rewrite(d, "train", lambda t: t.append_column("txt", t["text"])),
        "'txt' is unknown; did you mean 'text'?",
    ),
    (
        lambda d: rewrite(d, "train", lambda t: t.set_column(0, "id", pa.array([1, 2]))),
        "column 'id' is int64; write it as string",
    ),
    (lambda d: rewrite(d, "train", put("text", 1, None)), "train.parquet: row 1: text is null"),
    (lambda d: rewrite(d, "train", put("labels", 1, ["fear"])), "train.parquet: row 1: label 'fear' is not among"),
    (lambda d: rewrite(d, "train", put("split", 1, "test")), "row 1: split is 'test' but dataset.json says 'train'"),
    (lambda d: rewrite(d, "train", put("audio", 0, [[1.0], [1.0, 2.0]])), "row 0: frames have 1 to 2 features"),
    (lambda d: rewrite(d, "train", put("audio", 0, [[1.0, None, 2.0]])), "train.parquet: a feature is null"),
    (lambda d: rewrite(d, "train", put("audio", 0, [])), "row 0: audio has shape (0, 0)"),
    (lambda d: rewrite(d, "test", put("id", 0, "u2")), "test.parquet: row 0: id 'u2' is also in train.parquet: row 1"),
    (
        lambda d: rewrite(d, "test", put("clip", 0, "c2")),
        "test.parquet: row 0: clip 'c2' is also in train.parquet: row 1",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_DIRECTORIES, ids=[message for _, message in BAD_DIRECTORIES])
def test_bad_directory(tmp_path: Path, samples: list[AffectSample], spoil: Callable[[Path], Any], message: str) -> None:
    directory = write_dataset(tmp_path / "d", samples, name="made-up")
    spoil(directory)
    with pytest.raises(AffectError, match=re.escape(message)) as caught:
        Dataset.load(directory).samples("train")
    assert str(directory) in str(caught.value)


def test_a_split_that_is_not_there(tmp_path: Path, samples: list[AffectSample]) -> None:
    directory = write_dataset(tmp_path / "d", samples[:2], name="made-up")
    with pytest.raises(AffectError, match="has no split 'test'; it has train"):
        Dataset.load(directory).samples("test")


@pytest.mark.parametrize(
    ("overwrite", "content", "message"),
    [
        (False, "dataset.json", "exists; choose another directory, or allow overwriting"),
        (True, "thesis.tex", "exists and is not a dataset, so it is not overwritten"),
    ],
)
def test_a_taken_directory(
    tmp_path: Path, samples: list[AffectSample], overwrite: bool, content: str, message: str
) -> None:
    (tmp_path / content).write_text("precious")
    with pytest.raises(AffectError, match=message):
        write_dataset(tmp_path, samples, name="made-up", overwrite=overwrite)
    assert (tmp_path / content).read_text() == "precious"


# -- imports -----------------------------------------------------------------------------------------------

CREMA = "tabulatedVotes.csv"
BAD_IMPORTS = [
    ("crema_d", CREMA, "fileName", "filename", "column 'fileName' is missing; did you mean 'filename'?"),
    ("crema_d", CREMA, "100001,1", "100001,-1", f"{CREMA}:2: A is '-1'; expected a whole number"),
    ("crema_d", CREMA, "100001,1", "100001,2", f"{CREMA}:2: 11 votes in A, D, F, H, N, S but numResponses is 10"),
    ("crema_d", CREMA, "80", "180", "meanHappyResp is 180; expected 0 to 100, or -1"),
    ("crema_d", CREMA, "100001", "400001", f"{CREMA}:2: row id '400001' names no channel"),
    ("crema_d", CREMA, "200001", "100001", "second row of clip '1001_IEO_ANG_HI' for voice"),
    (
        "crema_d",
        CREMA,
        "1001_IEO",
        "1001_IEE",
        "clip '1001_IEE_ANG_HI' is not among the sound clips of SentenceFilenames.csv; correct one of them",
    ),
    ("crema_d", CREMA, "\n300001,4,4,0,1,0,0,1001_IEO_ANG_HI,9,60,60,-1,60,-1,-1", "", "has no audio-visual votes"),
    ("crema_d", "SentenceFilenames.csv", "1001_IEO", "1001_IEX", "sentence 'IEX' of clip '1001_IEX_ANG_HI' is unknown"),
    (
        "crema_d",
        "SentenceFilenames.csv",
        "1001_IEO",
        "1001IEO",
        "clip '1001IEO_ANG_HI' is not ACTOR_SENTENCE_EMOTION_LEVEL",
    ),
    ("crema_d", "SentenceFilenames.csv", "1001_IEO_ANG_HI", "1002_IEO_ANG_HI", "1002_IEO_ANG_HI is also in"),
    ("meld", "dev_sent_emo.csv", "Sentiment", "Emotion", "dev_sent_emo.csv: column 'Emotion' stands twice; rename one"),
    ("meld", "dev_sent_emo.csv", "Emotion", "Emotions", "column 'Emotion' is missing; did you mean 'Emotions'?"),
    (
        "meld",
        "dev_sent_emo.csv",
        "surprise",
        "suprise",
        "dev_sent_emo.csv:3: Emotion 'suprise' is unknown; did you mean",
    ),
    ("meld", "dev_sent_emo.csv", "Are you coming?", " ", "dev_sent_emo.csv:3: Utterance is empty"),
    ("meld", "dev_sent_emo.csv", "Great!", "Great, yes", "dev_sent_emo.csv:4: has 8 cells where 7 are expected"),
    ("meld", "dev_sent_emo.csv", "Great!", '"Great!', "is not CSV: unexpected end of data"),
    ("meld", "dev_sent_emo.csv", "Great!", "Gr\xeat!", "dev_sent_emo.csv:4: is not utf-8 text; convert the file"),
    ("meld", "dev_sent_emo.csv", "positive,0,0", "positive,0,1", "dev_0_1 is also in dev_sent_emo.csv:2"),
    ("mosi", "transcripts.csv", "vid_0_0,", "vid00,", "transcripts.csv:1: name 'vid00' is not VIDEO_segment"),
    ("mosi", "transcripts.csv", "FILM 0,0,0", "FILM 0,0,2", "transcripts.csv:1: label '2' is unknown; known: '0', '1'"),
    (
        "mosi",
        "text_train.csv",
        "0,",
        "77,",
        "text_train.csv:1: points to row 77 of transcripts.csv, which is absent or bad",
    ),
    (
        "mosi",
        "transcripts.csv",
        "FILM 0,0,0",
        "FILM 0,0,1",
        "label is positive in transcripts.csv but negative in audio/",
    ),
    (
        "mosi",
        "transcripts.csv",
        "vid_3_1",
        "vid_2_9",
        "text_test.csv:2: clip 'vid_2' is test here and train in text_train.csv:7; keep all of a clip in one split",
    ),
]


@pytest.mark.parametrize(
    ("layout", "file", "old", "new", "message"), BAD_IMPORTS, ids=[case[-1] for case in BAD_IMPORTS]
)
def test_bad_import(
    layout: str, file: str, old: str, new: str, message: str, edit, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root = request.getfixturevalue(layout)
    edit(root / file, old, new)
    options = {"dev_videos": 1} if layout == "mosi" else {}
    with pytest.raises(AffectError, match=re.escape(message)) as caught:
        IMPORTERS[layout](root, tmp_path / "out", **options)
    assert str(root) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", list(IMPORTERS))
def test_missing_table(layout: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root = request.getfixturevalue(layout)
    first = {"crema_d": CREMA, "meld": "dev_sent_emo.csv", "mosi": "audio/audio_train0.csv"}[layout]
    (root / first).rename((root / first).with_suffix(".old.csv"))
    near = Path(first).with_suffix(".old.csv")
    with pytest.raises(AffectError, match=rf"{re.escape(first)}: is missing; did you mean '{near}'\?"):
        IMPORTERS[layout](root, tmp_path / "out")


def test_a_missing_table_is_looked_for_where_it_should_be(meld: Path, tmp_path: Path) -> None:
    """Media lie below the root, too; looking through them all would take minutes."""
    (meld / "v").mkdir()
    (meld / "dev_sent_emo.csv").rename(meld / "v/dev_sent_emo.csv")
    with pytest.raises(AffectError, match=r"dev_sent_emo\.csv: is missing; did you mean 'test_sent_emo\.csv'\?"):
        import_meld(meld, tmp_path / "out")


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match="nowhere: is not a directory; give the one that holds the tables"):
        import_meld(tmp_path / "nowhere", tmp_path / "out")


def test_tables_of_unlike_length(mosi: Path, tmp_path: Path) -> None:
    table = mosi / "audio/audio_train0.csv"
    table.write_text("".join(table.open().readlines()[1:]))
    with pytest.raises(AffectError, match=r"audio_train0.csv: has 8 rows but text_train.csv has 9"):
        import_mosi(mosi, tmp_path / "out", dev_videos=1)


@pytest.mark.parametrize("dev_videos", [-1, 3])
def test_no_train_video_left(mosi: Path, tmp_path: Path, dev_videos: int) -> None:
    with pytest.raises(AffectError, match=f"dev_videos={dev_videos} leaves no train video; choose 0 to 2 of the 3"):
        import_mosi(mosi, tmp_path / "out", dev_videos=dev_videos)


def test_no_train_actor_left(crema_d: Path, tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=r"dev_share=0.5 and test_share=0.5 leave none of 10 actors for train"):
        import_crema_d(crema_d, tmp_path / "out", dev_share=0.5, test_share=0.5)


def test_nothing_sound_left(meld: Path, tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        table = meld / f"{split}_sent_emo.csv"
        table.write_text(re.sub("neutral|surprise|joy", "x", table.read_text()))
    with pytest.raises(AffectError, match="no sound sample, so nothing was written"):
        import_meld(meld, tmp_path / "out", skip_bad=True)
