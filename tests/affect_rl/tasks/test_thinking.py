"""A thought and an answer: what is read of them, and what they are worth.

R1-Omni (arXiv 2503.05379) scores the answer alone; AffectGPT-R1 (arXiv 2508.01318) also what is named in the thought,
and lowers the score for each label beyond those that are free.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from affect_rl.sample import AffectSample
from affect_rl.section import read_section
from affect_rl.tasks.thinking import Thinking, ThinkingSettings, labels_in

CLOSED = AffectSample(
    "u", "made-up", "train", "c", "s", "a glass harbour", ("joy",), "closed", ("anger", "joy", "at ease", "not sure")
)
CHINESE = replace(CLOSED, labels=("愤怒",), candidates=("愤怒", "怒", "高兴"), language="zh")
OPEN = replace(CLOSED, labels=("joyful", "proud", "nervous"), label_kind="open", candidates=())


def task(**settings: Any) -> Thinking:
    return Thinking(read_section(ThinkingSettings, settings, "task"))


def score(text: str, sample: AffectSample = OPEN, **settings: Any) -> float:
    thinking = task(**settings)
    return asyncio.run(thinking.score(thinking.read(text, sample), sample))


def said(thought: str, answer: str) -> str:
    return f"<think>{thought}</think> <answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("joy", "the answer is not <think>...</think> <answer>...</answer>"),
        (f"So: {said('a', 'joy')}", "the answer is not"),
        (said("<think>a", "joy"), "the answer is not"),
        (said("joy", "sorrow"), "label: `sorrow` is not one of anger, joy"),
        (said("joy", ""), "label: 0 labels, expected one"),
    ],
)
def test_an_answer_that_cannot_be_read_is_worth_nothing_whatever_was_thought(text: str, problem: str) -> None:
    output = task().read(text, CLOSED)
    assert output.problem and output.problem.startswith(problem) and output.labels == ()
    assert score(text, CLOSED, thought=1.0) == 0


def test_a_single_label_is_right_or_wrong() -> None:
    """R1-Omni: accuracy 1 or 0; its format reward is the agent's `format_penalty`."""
    assert score(said("anger, I think", "joy"), CLOSED, score="exact") == 1
    assert score(said("joy, I think", "anger"), CLOSED, score="exact") == 0


def test_the_thought_earns_its_share() -> None:
    """Wheel F1 with truth {joy, fear} (two labels are of one cluster): an answer {joy} has 2/3, {joy, fear} has 1."""
    answer_alone, both = 2 / 3, 1.0
    assert score(said("nobody knows", "happy")) == pytest.approx(answer_alone)
    for share in (0.0, 0.2, 1.0):
        found = score(said("He smiles happily, and sounds afraid.", "happy"), thought=share)
        assert found == pytest.approx((1 - share) * answer_alone + share * both)
        nothing = score(said("nobody knows", "happy"), thought=share)
        assert nothing == pytest.approx((1 - share) * answer_alone)


def test_labels_beyond_the_free_ones_cost_also_where_they_mean_the_same() -> None:
    """The wheel does not price synonyms: {happy, glad, cheerful, merry} is one cluster, which is right."""
    one_cluster = 2 / 3
    for count, labels in enumerate(
        ("happy", "happy, glad", "happy, glad, cheerful", "happy, glad, cheerful, merry"), 1
    ):
        for free in (0, 2, 3):
            expected = one_cluster - 0.1 * max(0, count - free)
            assert score(said("so", labels), free_labels=free, extra_label=0.1) == pytest.approx(expected)
        assert score(said("so", labels)) == pytest.approx(one_cluster), "without a penalty synonyms are free"
    assert score(said("so", "happy, glad, merry"), free_labels=0, extra_label=0.5) == 0, "and never below 0"


@pytest.mark.parametrize(
    ("thought", "labels"),
    [
        ("Anger, no doubt; then JOY. And anger again.", ("anger", "joy")),
        ("He complains angrily, yet looks joyful.", ("anger", "joy")),
        ("She seems at ease, with a calm voice", ("at ease",)),
        ("I am not sure.", ("not sure",)),
        ("There is no anger in it, only joy.", ("joy",)),
        ("an angered joystick", ()),
        ("", ()),
    ],
)
def test_a_thought_names_candidates(thought: str, labels: tuple[str, ...]) -> None:
    """Of one word or more, in any inflection; what it denies it does not name."""
    assert labels_in(thought, CLOSED) == labels


@pytest.mark.parametrize(
    ("thought", "labels"),
    [("他的声音很大，非常愤怒。", ("愤怒",)), ("高兴还是愤怒？他怒了。", ("高兴", "愤怒", "怒")), ("声音平静", ())],
)
def test_a_thought_in_chinese_names_candidates(thought: str, labels: tuple[str, ...]) -> None:
    assert labels_in(thought, CHINESE) == labels
    assert score(said(thought, "高兴"), CHINESE, thought=0.5) == pytest.approx(
        0.5 * ("愤怒" in labels) / max(1, len(labels))
    )


@pytest.mark.parametrize(
    ("thought", "labels"),
    [
        ("Happily loud; a scared, matter-of-fact tone", ("happy", "scared", "matter of fact")),
        ("none of it is harbour", ()),
        ("not happy, but proud", ("proud",)),
    ],
)
def test_a_thought_names_words_of_the_wheel_where_labels_are_open(thought: str, labels: tuple[str, ...]) -> None:
    assert labels_in(thought, OPEN) == labels


@pytest.mark.parametrize("comma", [", ", "，", "、"])
def test_labels_stand_between_commas_of_any_language(comma: str) -> None:
    """The Chinese instruction asks for commas, and does not say which."""
    assert task().read(said("so", comma.join(("happy", "proud"))), OPEN).labels == ("happy", "proud")


@pytest.mark.parametrize("sample", [CLOSED, CHINESE, OPEN], ids=["closed", "Chinese", "open"])
def test_the_annotator_answers_right_and_names_it_in_the_thought(sample: AffectSample) -> None:
    answer = task().demonstrate(sample, {})
    assert task().read(answer, sample).problem is None
    assert score(answer, sample, thought=0.5) == pytest.approx(1)
