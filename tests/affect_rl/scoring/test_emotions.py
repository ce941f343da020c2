"""The emotion wheel and the scores of answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affect_rl.scoring.emotions import CLUSTER_OF_WORD, clusters, exact_score, normalise, wheel_f1

CANDIDATES = ("anger", "disgust", "fear", "happiness", "neutral", "sadness")
words = st.sampled_from(sorted(CLUSTER_OF_WORD))
labels = st.one_of(words, st.text(max_size=12))
candidate_sets = st.sets(st.sampled_from(CANDIDATES), min_size=1)


@pytest.mark.parametrize(
    ("label", "word"),
    [
        ("Happy", "happy"),
        (" HAPPINESS! ", "happy"),
        ("at-ease", "at ease"),
        ("“sadly”", "sad"),
        ("Ｊｏｙ", "joy"),
        ("", ""),
    ],
)
def test_normalise_evens_out_form(label: str, word: str) -> None:
    assert normalise(label) == word


def test_only_whole_words_match() -> None:
    assert clusters(["unhappy"]) == {"sadness"}
    assert clusters(["not happy", "happyish", "dissatisfied"]) == {"anger"}


def test_basic_emotions_are_clusters() -> None:
    for name in ("joy", "sadness", "anger", "fear", "disgust", "surprise", "neutral"):
        assert clusters([name]) == {name}
    assert 150 <= len(CLUSTER_OF_WORD) <= 250


@pytest.mark.parametrize("label", ["anger", "disgust", "fear", "happiness", "joy", "neutral", "sadness", "surprise"])
def test_labels_of_the_imported_datasets_are_on_the_wheel(label: str) -> None:
    assert len(clusters([label])) == 1


@given(labels)
def test_normalise_is_idempotent(label: str) -> None:
    assert normalise(normalise(label)) == normalise(label)


@given(st.lists(labels, max_size=5), st.lists(words, min_size=1, max_size=5))
def test_wheel_f1_is_in_range_and_ignores_order_and_repetition(predicted: list[str], true: list[str]) -> None:
    score = wheel_f1(predicted, true)
    assert 0 <= score <= 1
    assert wheel_f1(predicted[::-1] + predicted, true) == score


@given(st.lists(words, min_size=1, max_size=5), st.lists(words, min_size=1, max_size=5))
def test_wheel_f1_is_symmetric_and_one_only_for_equal_clusters(a: list[str], b: list[str]) -> None:
    assert wheel_f1(a, b) == wheel_f1(b, a)
    assert (wheel_f1(a, b) == 1) == (clusters(a) == clusters(b))


@given(st.lists(words, min_size=1, max_size=4), st.lists(words, min_size=1, max_size=4), labels.filter(normalise))
def test_an_extra_label_that_is_wrong_lowers_wheel_f1(predicted: list[str], true: list[str], extra: str) -> None:
    found = clusters([extra])
    if found & (clusters(true) | clusters(predicted)):
        return
    before, after = wheel_f1(predicted, true), wheel_f1([*predicted, extra], true)
    assert after < before if before else after == 0


def test_wheel_f1_of_known_cases() -> None:
    assert wheel_f1(["joyful"], ["happy"]) == 1
    assert wheel_f1(["joyful", "qwerty"], ["happy"]) == pytest.approx(2 / 3)
    assert wheel_f1(list(CLUSTER_OF_WORD), ["happy"]) == pytest.approx(2 / (1 + len(clusters(CLUSTER_OF_WORD))))
    assert wheel_f1([], ["happy"]) == 0
    assert wheel_f1(["Qwerty"], ["qwerty!"]) == 1


def test_exact_score_of_known_cases() -> None:
    assert exact_score(["Happy"], ["happiness"], CANDIDATES) == 1
    assert exact_score(["anger"], ["anger", "fear"], CANDIDATES) == 1
    assert exact_score(["anger", "fear"], ["anger", "fear"], CANDIDATES) == 1
    assert exact_score(["anger", "fear"], ["anger"], CANDIDATES) == 0.5
    assert exact_score(["joy"], ["happiness"], CANDIDATES) == 0
    assert exact_score(["anger", "qwerty"], ["anger"], CANDIDATES) == 0.5
    assert exact_score([], ["anger"], CANDIDATES) == 0
    assert exact_score(["Shyness"], ["shy"], ()) == 1


@given(candidate_sets, st.lists(st.floats(0, 1), min_size=6, max_size=6).filter(lambda p: sum(p) > 0))
def test_no_hedge_beats_the_most_probable_label(answer: set[str], weights: list[float]) -> None:
    chance = {label: weight / sum(weights) for label, weight in zip(CANDIDATES, weights, strict=True)}
    expected = sum(p * exact_score(answer, [label], CANDIDATES) for label, p in chance.items())
    assert expected <= max(chance.values()) + 1e-9


@pytest.mark.parametrize("score", [lambda: wheel_f1(["joy"], []), lambda: exact_score(["joy"], [], CANDIDATES)])
def test_no_truth_is_an_error(score) -> None:
    with pytest.raises(ValueError, match="no true labels"):
        score()
