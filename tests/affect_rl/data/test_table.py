"""Import of tables of one's own."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affect_rl.data.dataset import MEDIA, Dataset
from affect_rl.data.table import Columns, import_table
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample

ROWS = [
    {"said": "Fine, thanks.", "mood": "joy", "who": "Ann", "part": "train"},
    {"said": "Go!", "mood": "anger|fear", "who": "Bob", "part": "train"},
    {"said": "Well …", "mood": "joy", "who": "Cy", "part": "validation"},
    {"said": "No.", "mood": "fear", "who": "Di", "part": "TEST"},
]
COLUMNS = Columns(text="said", label="mood", speaker="who", split="part")


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a table of the kind that the suffix says."""
    names = list(rows[0])
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf8") as file:
            csv.writer(file).writerows([names, *([row[name] for name in names] for row in rows)])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        book = openpyxl.Workbook()
        for row in [names, *([row[name] for name in names] for row in rows)]:
            book.active.append(row)
        book.save(path)
    return path


def read(directory: Path) -> list[AffectSample]:
    dataset = Dataset.load(directory)
    return [sample for split in dataset.counts for sample in dataset.samples(split)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".xlsx"])
def test_all_kinds_of_tables_say_the_same(suffix: str, tmp_path: Path) -> None:
    report = import_table(write(tmp_path / f"mine{suffix}", ROWS), tmp_path / "out", COLUMNS)
    assert report.counts == {"train": 2, "dev": 1, "test": 1} and report.skipped == 0
    assert report.notes == ("labels: anger, fear, joy; --labels says which ones a row may have",)
    samples = read(tmp_path / "out")
    assert [s.text for s in samples] == ["Fine, thanks.", "Go!", "Well …", "No."]
    assert [s.labels for s in samples] == [("joy",), ("anger", "fear"), ("joy",), ("fear",)]
    assert [s.speaker for s in samples] == ["Ann", "Bob", "Cy", "Di"]
    assert {s.dataset for s in samples} == {"mine"} and {s.candidates for s in samples} == {("anger", "fear", "joy")}
    assert len({s.id for s in samples}) == 4 and all(s.clip == s.id for s in samples)


def test_splits_are_drawn_by_speaker(tmp_path: Path) -> None:
    rows = [{"t": f"word {i}", "l": "ab"[i % 2], "s": f"s{i % 10}"} for i in range(60)]
    table = write(tmp_path / "a.csv", rows)
    found = {}
    for seed in (0, 0, 1):
        report = import_table(
            table, tmp_path / "out", Columns("t", "l", speaker="s"), seed=seed, overwrite=True, dev_share=0.2
        )
        splits = {s.speaker: s.split for s in read(tmp_path / "out")}
        assert report.counts == {"train": 36, "dev": 12, "test": 12}, "whole speakers"
        assert found.setdefault(seed, splits) == splits
        assert f"dev and test: drawn from train by speakers, with seed {seed}" in report.notes
    assert found[0] != found[1]


def test_dialogues_and_clips_stay_whole_even_where_speakers_meet(tmp_path: Path) -> None:
    rows = [{"t": f"{i}", "l": "ab"[i % 2], "s": f"s{i % 3}", "d": i // 4, "c": i // 8} for i in range(80)]
    columns = Columns("t", "l", speaker="s", dialogue="d", clip="c")
    report = import_table(write(tmp_path / "a.csv", rows), tmp_path / "out", columns)
    assert report.counts == {"train": 56, "dev": 8, "test": 16}, "of ten clips one and two"
    assert "dev and test: drawn from train by dialogues, with seed 0" in report.notes


def test_dev_alone_is_drawn_where_the_table_names_splits(tmp_path: Path) -> None:
    rows = [{"t": f"word {i}", "l": "ab"[i % 2], "p": "test" if i < 4 else "train"} for i in range(24)]
    report = import_table(write(tmp_path / "a.csv", rows), tmp_path / "out", Columns("t", "l", split="p"))
    assert report.counts == {"train": 18, "dev": 2, "test": 4}
    assert {s.text for s in read(tmp_path / "out") if s.split == "test"} == {f"word {i}" for i in range(4)}


def test_sentiment_values_alone_are_labels_enough(tmp_path: Path) -> None:
    rows = [{"t": f"{v}", "v": v} for v in (-2.5, 0, 1.5)]
    import_table(
        write(tmp_path / "a.jsonl", rows),
        tmp_path / "out",
        Columns("t", value="v"),
        kind="sentiment",
        dev_share=0,
        test_share=0,
    )
    assert [(s.value, s.labels) for s in read(tmp_path / "out")] == [
        (-2.5, ("negative",)),
        (0.0, ("neutral",)),
        (1.5, ("positive",)),
    ]


def test_lists_of_open_labels(tmp_path: Path) -> None:
    rows = [{"t": "so", "l": ["proud", "a little shy"]}, {"t": "oh", "l": ["sad"]}]
    import_table(
        write(tmp_path / "a.jsonl", rows), tmp_path / "out", Columns("t", "l"), kind="open", dev_share=0, test_share=0
    )
    assert [s.labels for s in read(tmp_path / "out")] == [("proud", "a little shy"), ("sad",)]


def test_media_are_for_extraction(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").touch()
    rows = [{"t": "a", "l": "x", "f": "clips/a.mp4"}, {"t": "b", "l": "y", "f": ""}]
    columns = Columns("t", "l", audio="f", video="f")
    import_table(write(tmp_path / "a.csv", rows), tmp_path / "out", columns, dev_share=0, test_share=0)
    media = pq.read_table(tmp_path / "out" / MEDIA)
    assert media.to_pydict() == {
        "sample_id": ["row-2", "row-3"],
        "audio": ["clips/a.mp4", ""],
        "video": ["clips/a.mp4", ""],
    }
    assert media.schema.metadata[b"root"].decode() == str(tmp_path)


def test_bad_rows_are_listed_and_may_be_skipped(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "said": " "}, {**ROWS[0], "mood": "rage"}, {**ROWS[0], "part": "vall"}]
    table, out = write(tmp_path / "a.csv", rows), tmp_path / "out"
    with pytest.raises(AffectError) as caught:
        import_table(table, out, COLUMNS, candidates=["joy", "anger", "fear"])
    for line in (
        "a.csv:6: said is empty; fill it in, or remove the row",
        "a.csv:7: label 'rage' is unknown; did you mean 'anger'?",
        "a.csv:8: part 'vall' is no split; did you mean 'val'?",
    ):
        assert line in str(caught.value)
    assert not out.exists()
    report = import_table(table, out, COLUMNS, candidates=["joy", "anger", "fear"], skip_bad=True)
    assert report.skipped == 3 and sum(report.counts.values()) == 4


@pytest.mark.parametrize(
    ("rows", "columns", "more", "message"),
    [
        (ROWS, Columns("said", "moo"), {}, "a.jsonl: column 'moo' is missing; did you mean 'mood'?"),
        (ROWS, Columns("said"), {}, "no column of labels; name one"),
        (ROWS, Columns("said", value="who"), {}, "only labels of kind 'sentiment' have values"),
        (ROWS, Columns("said", "mood"), {"kind": "open", "candidates": ["joy"]}, "open labels have no candidates"),
        (ROWS[:2], COLUMNS, {"dev_share": 1.0}, "leave none of 2 speakers for train"),
        (
            [{"t": "a", "l": "happy"}, {"t": "b", "l": "Happiness"}],
            Columns("t", "l"),
            {},
            "has 'Happiness' (1 times) and 'happy' (1), forms of one label",
        ),
        ([{"t": "a", "l": "x", "f": "no.wav"}], Columns("t", "l", audio="f"), {}, "f 'no.wav' is no file below"),
    ],
)
def test_what_cannot_be_imported_is_named(
    rows: list[dict[str, str]], columns: Columns, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AffectError) as caught:
        import_table(write(tmp_path / "a.jsonl", rows), tmp_path / "out", columns, **more)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


@given(st.lists(st.text().filter(str.strip), min_size=1, max_size=6))
def test_any_text_survives(texts: list[str]) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:  # half a surrogate pair is no text that a file can hold
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"t": text, "l": "ab"[i % 2], "p": "train"} for i, text in enumerate([*texts, "one more"])]
        table = write(Path(folder) / "a.csv", rows)
        import_table(table, Path(folder) / "out", Columns("t", "l", split="p"), candidates=["a", "b"], dev_share=0)
        expected = [" ".join(text.split()) for text in [*texts, "one more"]]
        assert [" ".join(s.text.split()) for s in read(Path(folder) / "out")] == expected
