"""Labels and predictions from every kind of file: the same answers, matched by name, and nothing executed."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from affect_rl.errors import AffectError
from affect_rl.scoring.free_text import WordReader
from affect_rl.scoring.predictions import Predictions, read_free_text, read_predictions

TRUTH = {"u1": "joy", "u2": "neutral", "u3": "anger"}
ANSWERS = {"u3": "[mad, Tense]", "u1": "happy", "u2": ""}
ROWS = [{"name": name, "label": label} for name, label in TRUTH.items()]
READ = (("happy",), (), ("mad", "tense"))


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


WRITERS = {".jsonl": write_jsonl, ".csv": write_csv, ".parquet": write_parquet}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "labels.jsonl", ROWS)


# -- kinds of files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_column_a_system(tmp_path: Path, labels: Path, suffix: str) -> None:
    rows = [{"id": name, "label": "unused", "ours": answer, "theirs": "sad"} for name, answer in ANSWERS.items()]
    found = read_predictions(labels, [WRITERS[suffix](tmp_path / f"answers{suffix}", rows)])
    assert found.names == tuple(TRUTH) and found.labels == (("joy",), ("neutral",), ("anger",))
    assert found.values is None
    assert found.systems == {"ours": READ, "theirs": (("sad",),) * 3}


@pytest.mark.parametrize("suffix", WRITERS)
def test_labels_of_every_kind(tmp_path: Path, suffix: str) -> None:
    rows = [{"name": name, "openset": f"{label},  Calm"} for name, label in TRUTH.items()]
    truth = WRITERS[suffix](tmp_path / f"truth{suffix}", rows)
    answers = write_jsonl(tmp_path / "a.jsonl", [{"name": n, "prediction": a} for n, a in ANSWERS.items()])
    assert read_predictions(truth, [answers], "openset") == Predictions(
        tuple(TRUTH), (("joy", "calm"), ("neutral", "calm"), ("anger", "calm")), None, {"a": READ}
    )


def test_an_object_of_systems_in_the_file_of_the_labels(tmp_path: Path) -> None:
    rows = [row | {"predictions": {"a": ANSWERS[row["name"]], "b": ["Sad", "[calm]"]}} for row in ROWS]
    file = write_jsonl(tmp_path / "both.jsonl", rows)
    assert read_predictions(file, [file]).systems == {"a": READ, "b": (("sad", "calm"),) * 3}


def test_names_may_be_numbers_from_0(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"id": n, "label": "joy", "prediction": "happy"} for n in range(2)])
    found = read_predictions(file, [file])
    assert found.names == ("0", "1") and found.systems == {"a": (("happy",), ("happy",))}


def test_other_columns_are_passed_over_where_some_are_named(tmp_path: Path, labels: Path) -> None:
    rows = [{"name": n, "confidence": 0.5, "sentence": "so", "ours": a, "theirs": "sad"} for n, a in ANSWERS.items()]
    one, two = (write_jsonl(tmp_path / f"{name}.jsonl", rows) for name in ("one", "two"))
    assert read_predictions(labels, [one], columns=["theirs", "ours"]).systems == {
        "ours": READ,
        "theirs": (("sad",),) * 3,
    }
    assert read_predictions(labels, [one, two], columns=["ours"]).systems == {"one": READ, "two": READ}
    with pytest.raises(AffectError, match=r"'oura' is missing; did you mean 'ours'\? \(--prediction-column names"):
        read_predictions(labels, [one], columns=["oura"])
    two = write_jsonl(tmp_path / "two.jsonl", [{"name": n, "theirs": "sad"} for n in ANSWERS])
    with pytest.raises(AffectError, match=r"two\.jsonl: has no column 'ours', as .*one\.jsonl has"):
        read_predictions(labels, [one, two], columns=["ours"])
    with pytest.raises(AffectError, match=r"the prediction of 'confidence' is 0\.5; expected text or a list of texts"):
        read_predictions(labels, [one])


def test_an_index_that_pandas_keeps_is_no_system(tmp_path: Path, labels: Path) -> None:
    rows = [{"name": n, "ours": a, "__index_level_0__": i} for i, (n, a) in enumerate(ANSWERS.items())]
    assert read_predictions(labels, [write_parquet(tmp_path / "a.parquet", rows)]).systems == {"ours": READ}


def test_a_column_of_predictions_is_one_system(tmp_path: Path, labels: Path) -> None:
    file = write_csv(tmp_path / "a.csv", [{"name": n, "predictions": answer} for n, answer in ANSWERS.items()])
    assert read_predictions(labels, [file]).systems == {"a": READ}


def test_each_run_of_an_experiment_is_a_system(tmp_path: Path) -> None:
    rows = [
        {"arm": arm, "seed": seed, "sample_id": name, "labels": [label], "predicted": [label] if seed else []}
        for arm in ("full", "sft")
        for seed in (0, 1)
        for name, label in TRUTH.items()
    ]
    file = write_parquet(tmp_path / "predictions.parquet", rows)
    found = read_predictions(file, [file], "labels")
    right = tuple((label,) for label in TRUTH.values())
    assert found.names == tuple(TRUTH) and found.labels == right
    assert found.systems == {
        f"{arm}, seed {seed}": right if seed else ((),) * 3 for arm in ("full", "sft") for seed in (0, 1)
    }


@pytest.mark.parametrize("kind", [object, np.str_])
def test_published_npz(tmp_path: Path, labels: Path, kind: type) -> None:
    """Answers as the published code writes them: ``filenames`` beside ``fileitems``, one file a checkpoint."""
    for number in (30, 35):
        np.savez_compressed(
            tmp_path / f"checkpoint_{number}.npz",
            filenames=np.array(list(ANSWERS), kind),
            fileitems=np.array(list(ANSWERS.values()), kind),
        )
    found = read_predictions(labels, [tmp_path / "checkpoint_30.npz", tmp_path / "checkpoint_35.npz"])
    assert found.systems == {"checkpoint_30": READ, "checkpoint_35": READ}


def test_lists_in_an_npz(tmp_path: Path, labels: Path) -> None:
    items = np.empty(3, object)
    items[:] = [["mad", "Tense"], np.array(["happy"]), []]
    np.savez(tmp_path / "a.npz", filenames=list(ANSWERS), fileitems=items)
    assert read_predictions(labels, [tmp_path / "a.npz"]).systems == {"a": READ}


@pytest.mark.parametrize("corpus", ["test_corpus", "test1_corpus"])
def test_labels_of_a_published_corpus(tmp_path: Path, corpus: str) -> None:
    entries = {"u1": {"emo": "happy", "val": np.float32(1.5)}, "u2": {"emo": "sad", "val": -1.0}}
    np.savez(tmp_path / "label.npz", train_corpus={"t": {"emo": "sad", "val": 0}}, **{corpus: entries})
    answers = write_csv(tmp_path / "a.csv", [{"name": name, "prediction": "positive"} for name in entries])
    assert read_predictions(tmp_path / "label.npz", [answers], "emo").labels == (("happy",), ("sad",))
    assert read_predictions(tmp_path / "label.npz", [answers], "val").values == (1.5, -1.0)


@pytest.mark.parametrize(
    ("entries", "values"),
    [
        ([1.5, 0, -3], (1.5, 0.0, -3.0)),
        (["1.5", "0", "-3"], (1.5, 0.0, -3.0)),
        (["Positive", "neutral", ["negative"]], (1.0, 0.0, -1.0)),
        (["positive", "neutral", "anger"], None),
        (["positive", "neutral", "negative, positive"], None),
    ],
)
def test_sentiments_are_numbers_or_words(tmp_path: Path, entries: list[Any], values: tuple[float, ...] | None) -> None:
    rows = [{"name": str(n), "label": entry, "prediction": "x"} for n, entry in enumerate(entries)]
    found = read_predictions(write_jsonl(tmp_path / "a.jsonl", rows), [tmp_path / "a.jsonl"])
    assert found.values == values
    assert (found.labels is None) == (not isinstance(entries[0], str) or entries[0] == "1.5")


def test_a_dataset_and_its_evaluation_can_be_read_as_they_are(tmp_path: Path) -> None:
    """Splits and ``predictions.parquet`` as this project writes them; features are passed over."""
    rows = [{"id": name, "labels": [label], "audio": [[0.5, 1.0]]} for name, label in TRUTH.items()]
    truth = write_parquet(tmp_path / "test.parquet", rows)
    answers = [{"sample_id": name, "SFT": ["happy"], "MAPPO": []} for name in TRUTH]
    found = read_predictions(truth, [write_parquet(tmp_path / "predictions.parquet", answers)], "labels")
    assert found.labels == (("joy",), ("neutral",), ("anger",))
    assert found.systems == {"SFT": (("happy",),) * 3, "MAPPO": ((),) * 3}


# -- free text -------------------------------------------------------------------------------------------

TEXTS = {"u3": "He is angry, not sad.", "u1": "A happy, sad voice", "u2": None}
WORDS = WordReader.of_words("test", ["happy", "sad", "angry"])
FOUND = (("happy", "sad"), (), ("angry",))


@pytest.mark.parametrize("suffix", WRITERS)
def test_columns_of_free_text(tmp_path: Path, labels: Path, suffix: str) -> None:
    """Other columns are passed over; a file of several goes by the columns, several of one by the files."""
    rows = [{"name": name, "score": 3, "a": text, "b": "angry"} for name, text in TEXTS.items()]
    one, two = (WRITERS[suffix](tmp_path / f"{name}{suffix}", rows) for name in ("one", "two"))
    angry = (("angry",),) * 3
    both = read_predictions(labels, [one], columns=["b", "a"], free_text=True)
    assert both.systems["a"] == (("A happy, sad voice",), ("",), ("He is angry, not sad.",))
    assert read_free_text(both, WORDS).systems == {"a": FOUND, "b": angry}
    assert read_free_text(read_predictions(labels, [one], columns=["a"], free_text=True), WORDS).systems == {"a": FOUND}
    found = read_predictions(labels, [one, two], columns=["a"], free_text=True)
    assert read_free_text(found, WORDS) == Predictions(
        found.names, found.labels, found.values, {"one": FOUND, "two": FOUND}
    )


def test_free_text_of_a_published_npz_and_of_an_object(tmp_path: Path, labels: Path) -> None:
    np.savez_compressed(tmp_path / "reasons.npz", name2reason=TEXTS)
    found = read_predictions(labels, [tmp_path / "reasons.npz"], columns=["name2reason"], free_text=True)
    assert read_free_text(found, WORDS).systems == {"reasons": FOUND}
    rows = [{"name": name, "predictions": {"ours": text, "theirs": ["sad"]}} for name, text in TEXTS.items()]
    found = read_predictions(labels, [write_jsonl(tmp_path / "a.jsonl", rows)], columns=["ours"], free_text=True)
    assert read_free_text(found, WORDS).systems == {"ours": FOUND}
    np.savez(tmp_path / "b.npz", filenames=list(TEXTS), fileitems=[text or "" for text in TEXTS.values()])
    found = read_predictions(labels, [tmp_path / "b.npz"], columns=["fileitems"], free_text=True)
    assert read_free_text(found, WORDS).systems == {"b": FOUND}


BAD_FREE_TEXT = [
    ({"reson": "He is sad"}, {}, "a.jsonl: column 'reason' is missing; did you mean 'reson'? (--free-text names"),
    ({"reason": 3}, {}, "a.jsonl:1: the free text of 'reason' is 3; expected text"),
    ({"reason": ["sad"]}, {}, "a.jsonl:1: the free text of 'reason' is ['sad']; expected text"),
    (
        {"reason": "He is sad"},
        {"labels_of_b": "sad"},
        "b.jsonl: has no free text in 'reason', so its answers are labels already, while those of",
    ),
    ({"labels_of_a": "sad"}, {"reason": "He is sad"}, "a.jsonl: has no free text in 'reason', so its answers are"),
]


@pytest.mark.parametrize(("a", "b", "message"), BAD_FREE_TEXT, ids=[message for _, _, message in BAD_FREE_TEXT])
def test_bad_free_text(tmp_path: Path, labels: Path, a: dict[str, Any], b: dict[str, Any], message: str) -> None:
    contents = {"a": a, "b": b} if b else {"a": a}
    files = [
        write_jsonl(tmp_path / f"{stem}.jsonl", [{"name": name} | entries for name in TRUTH])
        for stem, entries in contents.items()
    ]
    with pytest.raises(AffectError, match=re.escape(message)) as caught:
        read_predictions(labels, files, columns=["reason"], free_text=True)
    if b:
        assert all(str(file) in str(caught.value) for file in files) and "score the files apart" in str(caught.value)


def test_a_column_of_free_text_must_stand_in_every_row(tmp_path: Path, labels: Path) -> None:
    rows = [{"name": "u1", "reason": "sad"}, {"name": "u2", "reason": "sad"}, {"name": "u3"}]
    with pytest.raises(AffectError, match=r"a\.jsonl:3: has no prediction of 'reason'"):
        read_predictions(labels, [write_jsonl(tmp_path / "a.jsonl", rows)], columns=["reason"], free_text=True)


# -- wrong input -----------------------------------------------------------------------------------------


def jsonl(*rows: Any) -> Callable[[Path], Path]:
    return lambda directory: write_jsonl(directory / "answers.jsonl", list(rows))


def text(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(directory: Path) -> Path:
        (directory / name).write_bytes(content)
        return directory / name

    return write


def npz(**arrays: Any) -> Callable[[Path], Path]:
    def write(directory: Path) -> Path:
        np.savez(directory / "answers.npz", **arrays)
        return directory / "answers.npz"

    return write


def answer(**changes: Any) -> tuple[dict[str, Any], ...]:
    """Rows of a sound file, the second one changed."""
    rows: list[dict[str, Any]] = [{"name": name, "a": "joy"} for name in TRUTH]
    rows[1] |= changes
    return tuple({column: entry for column, entry in row.items() if entry is not ...} for row in rows)


BAD_PREDICTIONS = [
    (lambda directory: directory / "lables.jsonl", "lables.jsonl: is missing; did you mean 'labels.jsonl'?"),
    (lambda directory: directory / "a.csv", "a.csv: is missing; no .csv beside it"),
    (text("answers.txt", b"u1 joy"), "answers.txt: kind '.txt' is unknown; known: '.jsonl', '.csv', '.xlsx',"),
    (text("answers.json", b"{}"), "answers.json: kind '.json' is unknown; did you mean '.jsonl'?"),
    (text("answers.jsonl", b""), "answers.jsonl: holds no rows; give one a sample"),
    (text("answers.csv", b""), "answers.csv: holds no rows"),
    (text("answers.jsonl", b"{'name': 1}"), "answers.jsonl:1: is not JSON"),
    (text("answers.jsonl", b'["u1"]'), "answers.jsonl:1: is not a JSON object"),
    (text("answers.jsonl", b'{"name": "\xe4"}'), "answers.jsonl:1: is not UTF-8 text"),
    (text("answers.csv", b"name,a\n" + b"u1,joy\n" * 9000 + b"\xff\n"), "answers.csv:9002: is not UTF-8 text"),
    (text("answers.parquet", b"PAR1"), "answers.parquet: is not a Parquet file"),
    (text("answers.parquet", b"PAR1" + b"x" * 40 + b"\x20\0\0\0PAR1"), "answers.parquet: is not a Parquet file"),
    (text("answers.npz", b"name,a"), "answers.npz: is not an .npz file"),
    (text("answers.csv", b"name,a,a\nu1,x,y\n"), "answers.csv:1: column 'a' stands twice; rename one"),
    (text("answers.csv", b"name,a\nu1,x,y\n"), "answers.csv:2: has 3 cells where 2 are expected"),
    (text("answers.csv", b"nmae,a\nu1,x\n"), "answers.csv:2: column 'name' is missing; did you mean 'nmae'?"),
    (jsonl(*answer(name=...)), "answers.jsonl:2: column 'name' is missing; known: 'a'"),
    (jsonl(*answer(name=" ")), "answers.jsonl:2: name is empty; give every sample a name"),
    (jsonl(*answer(name="u1")), "answers.jsonl:2: name 'u1' is also in"),
    (jsonl(*answer(name="u22")), "1 of 3 samples have no prediction ('u2') and 1 predictions have no label ('u22';"),
    (jsonl(*answer()[:2]), "names do not match the labels: 1 of 3 samples have no prediction ('u3')"),
    (jsonl(*answer(), {"name": "u4", "a": ""}), "1 predictions have no label ('u4'; leave them out, or add"),
    (jsonl(*answer(a=...)), "answers.jsonl:2: has no prediction of 'a'; known: "),
    (jsonl(*answer(a=..., A="joy")), "answers.jsonl:2: has no prediction of 'a'"),
    (jsonl(*answer(ab="joy")), "answers.jsonl:2: 'ab' is new here; did you mean 'a'?"),
    (jsonl(*answer(a=3)), "answers.jsonl:2: the prediction of 'a' is 3; expected text or a list of texts"),
    (jsonl(*answer(a=["joy", 3])), "the prediction of 'a' is ['joy', 3]; expected text or a list of texts"),
    (jsonl(*answer(predicitons={"a": "joy"})), "predicitons is an object; did you mean 'predictions'?"),
    (jsonl(*answer(predictions="joy")), "'predictions' is new here; known: 'a'"),
    (jsonl(*ROWS), "answers.jsonl: has no column of predictions; add one beside 'name'"),
    (npz(filenames=["u1"], fileitems=["a", "b"]), "answers.npz: has 1 filenames for 2 fileitems"),
    (npz(name2reason={"u1": "He smiles."}), "holds free text (name2reason); have it read with --free-text name2reason"),
    (npz(names=["u1"]), "answers.npz: holds 'names'; expected 'filenames' and 'fileitems', or a test corpus"),
    (npz(test_corpus={"u1": "joy"}), "answers.npz: sample 'u1' is 'joy'; expected a dictionary"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "message"), BAD_PREDICTIONS, ids=[message for _, message in BAD_PREDICTIONS])
def test_bad_predictions(tmp_path: Path, labels: Path, write: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(AffectError, match=re.escape(message)):
        read_predictions(labels, [write(tmp_path)])


BAD_LABELS = [
    ([{"name": "u1", "labels": "joy"}], "column 'label' is missing; did you mean 'labels'? (--label-column names"),
    ([{"name": "u1", "label": ""}], "labels.jsonl:1: the label is empty; give every sample one"),
    ([{"name": "u1", "label": None}], "labels.jsonl:1: the label is None; expected text, a list of texts, or a number"),
    ([{"name": "u1", "label": 1}, {"name": "u2", "label": "joy"}], "the label is 'joy' but others are numbers"),
    ([{"name": "u1", "label": 1}, {"name": "u2", "label": None}], "the label is None but others are numbers"),
    ([{"name": "u1", "label": 4.5}], "labels.jsonl:1: the label is 4.5; a sentiment lies in [-3, 3]"),
    ([{"name": "u1", "label": float("nan")}], "labels.jsonl:1: the label is nan; a sentiment lies in [-3, 3]"),
    ([{"name": "u1", "label": "joy"}] * 2, "labels.jsonl:2: name 'u1' is also in"),
]


@pytest.mark.parametrize(("rows", "message"), BAD_LABELS, ids=[message for _, message in BAD_LABELS])
def test_bad_labels(tmp_path: Path, rows: list[Any], message: str) -> None:
    file = write_jsonl(tmp_path / "labels.jsonl", rows)
    with pytest.raises(AffectError, match=re.escape(message)):
        read_predictions(file, [file])


def test_two_systems_of_one_name(tmp_path: Path, labels: Path) -> None:
    files = [write_jsonl(tmp_path / f"{number}.jsonl", list(answer())) for number in range(2)]
    with pytest.raises(AffectError, match=r"1\.jsonl: system 'a' is also in another file; rename one"):
        read_predictions(labels, files)


class Malicious:
    """Pickles as a command that writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.system, (f"touch '{self.marker}'",))


@pytest.mark.parametrize("key", ["fileitems", "unused"])
def test_a_malicious_npz_is_refused_and_does_not_run(tmp_path: Path, labels: Path, key: str) -> None:
    marker = tmp_path / "marker"
    content = pickle.dumps(Malicious(marker))
    pickle.loads(content)
    assert marker.exists()  # it would run
    marker.unlink()
    arrays = {"filenames": list(TRUTH), "fileitems": list(TRUTH.values())}
    np.savez(tmp_path / "a.npz", **{name: array for name, array in arrays.items() if name != key})
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive, archive.open(f"{key}.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|O", "fortran_order": False, "shape": ()})
        member.write(content)
    with pytest.raises(AffectError, match=rf"a\.npz: {key}: asks for \w+\.system, .* so it was not loaded"):
        read_predictions(labels, [tmp_path / "a.npz"])
    assert not marker.exists()
