"""Emotion wheels, made up and published: reading, grouping, and lists of labels."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affect_rl.errors import AffectError
from affect_rl.scoring.emotions import CLUSTER_OF_WORD, clusters, normalise
from affect_rl.scoring.wheels import RUNS, WHEELS, Wheels, own_wheel, parse_labels, read_wheels

TREE = [
    ("level1", "level2", "level3"),
    (" Happy ", "Proud", "Brave"),
    (None, None, "Fearless"),
    (None, "Calm", " Serene "),
    ("Bad", "Mad", "Tense"),
    (None, "Afraid", "Scared"),
    (None, "Busy", "Serene"),
]
SYNONYMS = {"Brave": "fearless, bold", "Scared": "afraid, 'fearful'", "Tense": "bold", "Mad": "angry"}


def write_xlsx(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    workbook = openpyxl.Workbook()
    for row in rows:
        workbook.worksheets[0].append(list(row))
    workbook.save(path)


def write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_forms(directory: Path, fearless: str = "fear,fearlessly") -> None:
    rows = [("name", "format"), ("fearless", fearless), ("fearful", "fear,fearfully"), ("bold", "boldly"), ("mad", "")]
    write_csv(directory / "format.csv", [*rows, ("serene", "serenity"), ("happy", "happily"), ("elsewhere", "away")])


@pytest.fixture
def wheel_dir(tmp_path: Path) -> Path:
    """The published layout with four synonyms; wheels 2 to 5 know Happy > Proud > Brave alone."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    for file in WHEELS:
        write_xlsx(directory / file, TREE if file == WHEELS[0] else TREE[:2])
    runs = [[(word, synonyms) for _ in RUNS] for word, synonyms in SYNONYMS.items()]
    runs += [[(word, None) for _ in RUNS] for word in ("Serene", "Happy")]
    runs[0][7] = ("Brave", "Serene")  # named in the last run only
    rows = [[name for run in RUNS for name in run], *([cell for run in row for cell in run] for row in runs)]
    write_xlsx(directory / "synonym.xlsx", rows)
    write_forms(directory)
    return directory


def first(wheels: Wheels, *labels: str, level: Any = 1) -> set[str]:
    return set(wheels.group(labels, level)[0])


def test_a_label_goes_through_forms_and_synonyms_to_the_first_word_of_a_wheel(wheel_dir: Path) -> None:
    wheels = read_wheels(wheel_dir)
    assert wheels.name == "unibench" and len(wheels.clusters[1]) == 5
    assert wheels.words["fear"] == ["brave", "scared"]
    assert first(wheels, "fearfully") == {"bad"}
    assert first(wheels, "fear") == {"happy"}  # brave comes before scared
    assert first(wheels, "boldly") == {"happy"}  # brave before tense
    assert first(wheels, "mad", "fearless") == {"bad", "happy"}
    assert first(wheels, "away") == first(wheels, "unheard of") == first(wheels) == set()


def test_what_one_wheel_does_not_know_another_may(wheel_dir: Path) -> None:
    assert [bool(found) for found in read_wheels(wheel_dir).group(["mad"])] == [True, False, False, False, False]
    assert [bool(found) for found in read_wheels(wheel_dir).group(["fear"])] == [True] * 5


def test_the_second_level_of_a_first_level_word_is_its_first(wheel_dir: Path) -> None:
    wheels = read_wheels(wheel_dir)
    assert first(wheels, "happily", level=2) == {"calm"}
    assert first(wheels, "fear", level=2) == {"proud"}
    assert first(wheels, "mad", level=2) == {"mad"}


def test_empty_rows_and_columns_of_a_sheet_are_passed_over(wheel_dir: Path) -> None:
    before = read_wheels(wheel_dir)
    write_xlsx(wheel_dir / WHEELS[0], [(), *[(*row, None, None) for row in TREE], (), (None, None, None)])
    assert read_wheels(wheel_dir) == before


def test_of_a_word_that_stands_twice_in_a_wheel_the_last_place_counts(wheel_dir: Path) -> None:
    wheels = read_wheels(wheel_dir)
    assert wheels.words["serenity"] == ["brave", "serene"]  # the union over runs
    assert wheels.clusters[1][0]["serene"] == "bad"
    assert wheels.clusters[2][0]["serene"] == "busy"


def test_mer2026_mends_fear(wheel_dir: Path) -> None:
    write_forms(wheel_dir, fearless="fearlessly")
    wheels = read_wheels(wheel_dir, "mer2026")
    assert wheels.name == "mer2026"
    assert first(wheels, "fear") == {"bad"} and first(wheels, "fearlessly") == {"happy"}


@settings(deadline=None)
@given(st.lists(st.sampled_from([*CLUSTER_OF_WORD, "Joyful!", "happily", "unheard of", ""])))
def test_the_own_wheel_groups_as_rewards_do(labels: list[str]) -> None:
    assert own_wheel().group(labels) == (clusters(labels),)
    assert normalise("Joyful!") == "joy"


# -- the published tables --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Wheels:
    return read_wheels(shared_data / "unibench" / "emotion_wheel")


def test_published_sizes(published: Wheels) -> None:
    assert len(published.clusters[1]) == 5
    assert len(published.words) == 7386  # as the authors count their written forms


def test_published_quirks(published: Wheels) -> None:
    assert not any(published.group(["neutral"]))
    assert [bool(found) for found in published.group(["disgust"])] == [True, True, False, True, False]
    assert [bool(found) for found in published.group(["surprise"])] == [True, True, True, True, False]
    assert [set(found) for found in published.group(["fear"])] == [
        {"scared"}, {"happy"}, {"joyful"}, {"genius"}, {"joyful"},
    ]  # fmt: skip
    # It stands under "fearful" and, later, under "bad".
    assert [set(published.group(["overwhelmed"])[1]), published.clusters[2][1]["overwhelmed"]] == [{"bad"}, "stressed"]


def test_the_published_files_are_not_those_of_mer2026(shared_data: Path) -> None:
    with pytest.raises(AffectError, match=r"format.csv: belongs to the mapping unibench, not mer2026; choose that"):
        read_wheels(shared_data / "unibench" / "emotion_wheel", "mer2026")


# -- lists of labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        ("[happy, excited]", ("happy", "excited")),
        ("happy", ("happy",)),
        (" ['Happy', \"light-hearted\"] ", ("happy", "light-hearted")),
        ("[[happy]]", ("[happy]",)),
        ("[happy", ("happy",)),
        ("[]", ()),
        ("", ()),
        (", ,'',", ()),
        (None, ()),
        (["Happy", "sad, calm", ""], ("happy", "sad", "calm")),
        ("sad, calm]", ("sad", "calm")),
        (["[happy]"], ("happy",)),
        ("happy,happy", ("happy", "happy")),
        ("at a loss", ("at a loss",)),
    ],
)
def test_parse_labels(answer: Any, labels: tuple[str, ...]) -> None:
    assert parse_labels(answer) == labels


texts = st.text() | st.text(alphabet="[]'\", aBÉİß\n")


@settings(deadline=None)
@given(texts | st.lists(texts))
def test_any_answer_can_be_parsed(answer: Any) -> None:
    for label in parse_labels(answer):
        assert label and label == label.strip() == label.lower()
        assert not set(label) & set("\"',")
    if isinstance(answer, str):
        assert parse_labels([answer]) == parse_labels(answer)


# -- wrong input -----------------------------------------------------------------------------------------


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=r"absent: is not a directory; give the one that holds wheel1\.xlsx"):
        read_wheels(tmp_path / "absent")


def test_unknown_mapping(wheel_dir: Path) -> None:
    with pytest.raises(AffectError, match=r"mapping 'mer2025' is unknown; did you mean 'mer2026'\?"):
        read_wheels(wheel_dir, "mer2025")  # type: ignore[arg-type]


def test_the_own_wheel_has_one_level() -> None:
    with pytest.raises(AffectError, match="level 2: the wheel 'own' has none; choose 1"):
        own_wheel().group(["joy"], 2)


def rename(name: str, other: str) -> Callable[[Path], Any]:
    return lambda directory: (directory / name).rename(directory / other)


def write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda directory: (directory / name).write_bytes(content)


def sheet(name: str, *rows: Sequence[Any]) -> Callable[[Path], Any]:
    return lambda directory: write_xlsx(directory / name, rows)


BAD_WHEELS = [
    (rename("wheel3.xlsx", "wheel-3.xlsx"), "wheel3.xlsx: is missing; did you mean 'wheel-3.xlsx'?"),
    (rename("format.csv", "format.txt"), "format.csv: is missing; no .csv beside it"),
    (write("wheel1.xlsx", b"level1,level2,level3"), "wheel1.xlsx: is not an Excel workbook, or damaged"),
    (write("wheel1.xlsx", b""), "wheel1.xlsx: is not an Excel workbook, or damaged"),
    (write("format.csv", b""), "format.csv: holds no rows"),
    (write("format.csv", b"name,format\n"), "format.csv: holds no rows"),
    (write("format.csv", b"name,fromat\nhappy,happily\n"), "column 'format' is missing; did you mean 'fromat'?"),
    (write("format.csv", b"name,format\nhappy,happily,sadly\n"), "format.csv:2: has 3 cells where 2 are expected"),
    (write("format.csv", b'name,format\nhappy,"hap\n'), "format.csv:2: is not CSV"),
    (write("format.csv", b"name,format\n,happily\n"), "format.csv:2: name is empty; fill it in"),
    (write("format.csv", b"name,format\nhappy,\xff\n"), "format.csv:2: is not UTF-8 text; convert the file"),
    (sheet("wheel2.xlsx"), "wheel2.xlsx: holds no rows"),
    (sheet("wheel2.xlsx", TREE[0]), "wheel2.xlsx: holds no rows"),
    (sheet("wheel2.xlsx", ("level1", "level2", "level2"), "abc"), "wheel2.xlsx:1: column 'level2' stands twice"),
    (sheet("wheel2.xlsx", ("level1", "level2", "level_3"), "abc"), "'level3' is missing; did you mean 'level_3'?"),
    (sheet("wheel2.xlsx", TREE[0], (None, "proud", "brave")), "wheel2.xlsx:2: level1 is empty; fill it in"),
    (sheet("synonym.xlsx", ("word_run1", "synonym_run1"), "ab"), "synonym.xlsx:2: column 'word_run2' is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BAD_WHEELS, ids=[message for _, message in BAD_WHEELS])
def test_bad_wheels(wheel_dir: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(wheel_dir)
    with pytest.raises(AffectError, match=re.escape(message)):
        read_wheels(wheel_dir)
