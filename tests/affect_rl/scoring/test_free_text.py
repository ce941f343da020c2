"""Labels in free text: which words count, which are denied, and what never changes them."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affect_rl.scoring.emotions import CLUSTER_OF_WORD, clusters
from affect_rl.scoring.free_text import AFFIRMATIONS, NEGATIONS, REACH, TURNS, WordReader
from affect_rl.scoring.wheels import Wheels, own_wheel, read_wheels

READER = WordReader.of_wheels(own_wheel())
LABELS = sorted(READER.labels.values())
PHRASES = WordReader.of_words("phrases", ["ill at ease", "at ease", "ease", "don’t care", "light-hearted"])


def read(text: str, reader: WordReader = READER) -> tuple[str, ...]:
    (labels,) = reader.read([text])
    return labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("The man sounds irritated, though not angry; he may be disappointed", ("irritated", "disappointed")),
        ("Happiness, then HAPPILY sad. Sad and happy!", ("happy", "sad")),
        ("a matter-of-fact tone, at\nease", ("matter of fact", "at ease")),
        ("“Ｊｏｙ” is the man's joy's joy", ("joy",)),
        ("unhappy, dissatisfied, happyish", ("unhappy", "dissatisfied")),
        ("She shows no emotion.", ("no emotion",)),
        ("他很高兴。Il est heureux, er freut sich", ()),
        ("", ()),
    ],
)
def test_words_of_the_list_in_order_of_mention(text: str, labels: tuple[str, ...]) -> None:
    assert read(text) == labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("ill at ease", ("ill at ease",)),
        ("at ease, ease", ("at ease", "ease")),
        ("at, ease", ("ease",)),
        ("at. Ease", ("ease",)),
        ("ill at easel", ()),
        ("They don't care", ("don’t care",)),
        ("light hearted Light-Hearted lighthearted", ("light-hearted",)),
    ],
)
def test_the_longest_form_wins_within_a_phrase(text: str, labels: tuple[str, ...]) -> None:
    assert read(text, PHRASES) == labels


@pytest.mark.parametrize(
    "denied",
    [
        "not angry", "isn't angry", "isn’t angry", "isnt angry", "no sign of anger", "without anger",
        "rather than angry", "instead of angry", "never angry", "nor angry", "lack of anger", "free from anger",
        "devoid of any anger",
        "anything but angry", "none of them looks angry", "non-angry", "does not appear to be particularly angry",
        "there is no indication that he is angry", "she cannot be called angry", "hardly angry", "not 'angry'",
        "neither angry nor mad", "not angry or visibly furious", "no anger, fury, or rage", "no anger, or any rage",
        "not angry, mad nor furious", "not angry, not mad", "lacking anger", "far from angry",
    ],
)  # fmt: skip
def test_what_is_denied(denied: str) -> None:
    assert read(denied) == ()
    assert read(f"{denied}; a man who {denied}, and is sad") == ("sad",)
    assert read(f"He is {denied}. Angry? Yes") == ("anger",)  # another mention counts


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("He does not smile, looking sad", ("sad",)),
        ("not alone and happy", ("happy",)),
        ("He does not cry but is sad", ("sad",)),
        ("Is he angry? No. Sad, rather", ("anger", "sad")),
        ("not angry, sad", ("sad",)),
        ("not angry and sad", ("sad",)),
        ("not angry; sad or tense", ("sad", "tense")),
        ("not angry, he is sad or tense", ("sad", "tense")),
        ("sad, rather than angry", ("sad",)),
        ("not only angry but also sad", ("anger", "sad")),
        ("isn't just angry", ("anger",)),
        ("no doubt angry", ("anger",)),
        ("nothing but joy, not without joy", ("joy",)),
        ("anger is absent", ("anger",)),
    ],
)
def test_how_far_a_negation_goes(text: str, labels: tuple[str, ...]) -> None:
    assert read(text) == labels


def test_a_negation_reaches_so_many_words() -> None:
    words = ["somewhat"] * REACH
    assert read(" ".join(["not", *words, "angry"])) == ()
    assert read(" ".join(["not", *words, "somewhat", "angry"])) == ("anger",)


def test_a_label_of_the_own_wheel_is_its_word(shared_data: Path) -> None:
    """Whatever the list, an answer that is one label is read as a label that the wheels group alike."""
    assert set(LABELS) == CLUSTER_OF_WORD.keys() - {"none"} and READER.read(LABELS) == [(label,) for label in LABELS]
    published = read_wheels(shared_data / "unibench" / "emotion_wheel")
    reader = WordReader.of_wheels(published)
    assert len(reader.labels) > 7000
    assert published.words.keys() - reader.labels.values() == {"lack", "lacks", "lacked", "lacking"}
    assert reader.read(list(reader.labels.values())) == [(label,) for label in reader.labels.values()]


def test_lists_are_read_as_the_lists_that_they_are(shared_data: Path) -> None:
    """Answers of a published system: lists of words, so that reading them as text leaves most as they are."""
    published = read_wheels(shared_data / "unibench" / "emotion_wheel")
    text = "[confused, curious, puzzled, anxious]"
    assert read(text, WordReader.of_wheels(published)) == ("confused", "curious", "puzzled", "anxious")
    assert clusters(read(text)) == {"surprise", "anticipation", "fear"}


def test_the_docs_list_all_words_of_the_rules() -> None:
    docs = (
        (Path(__file__).parents[3] / "docs" / "metrics.md").read_text().replace("(a) doubt", "doubt, without a doubt")
    )
    rules = " ".join(docs[docs.index("## Labels from free text") :].split())
    contracted = {phrase for phrase in NEGATIONS | AFFIRMATIONS if "nt" in phrase.split()[0] or "n't" in phrase}
    limited = {phrase for phrase in AFFIRMATIONS if phrase.startswith("cannot ")}
    for phrase in (NEGATIONS | AFFIRMATIONS | TURNS) - contracted - limited:
        assert re.search(rf"\b{phrase}\b", rules), phrase


def test_no_list_and_no_texts() -> None:
    empty = WordReader.of_wheels(Wheels("empty", {}, {1: ({},)}))
    assert empty.read(["angry", "not"]) == [(), ()]
    assert READER.read([]) == []
    assert READER.settings == {"list": "own", "reach": REACH} and READER.name == "words"


pieces = st.sampled_from(
    [*LABELS, *sorted(NEGATIONS), *sorted(AFFIRMATIONS), *sorted(TURNS), "or", "the", "man", ",", ".", ";"]
)
texts = st.lists(pieces | st.text(max_size=5), max_size=30).map(" ".join)


@given(texts)
def test_labels_are_on_the_list_once_each(text: str) -> None:
    labels = read(text)
    assert set(labels) <= set(LABELS) and len(set(labels)) == len(labels)


@given(texts)
def test_reading_its_own_labels_changes_nothing(text: str) -> None:
    labels = read(text)
    assert read(", ".join(labels)) == labels


@settings(deadline=None)
@given(st.lists(pieces, max_size=30), st.data())
def test_case_space_and_other_marks_do_not_matter(words: list[str], data: st.DataObject) -> None:
    space = st.text(string.whitespace, min_size=1, max_size=3)
    marks = st.text('"“”()[]{}*_/-–—+#', max_size=2)
    varied = "".join(
        data.draw(marks)
        + data.draw(st.sampled_from([word, word.upper(), word.title()]))
        + data.draw(marks | space)
        + " "
        for word in " ".join(words).split()
    )
    assert read(varied) == read(" ".join(words))


@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=8, unique=True))
def test_a_denied_row_has_no_labels_and_an_asserted_one_all(labels: list[str]) -> None:
    row = ", ".join(labels[:-1]) + f" or {labels[-1]}"
    assert read(row.removeprefix(" or ")) == tuple(labels)
    assert read(f"no {row}") == ()
