"""Answers of emotion recognition: what is read, what is refused and why, and what they are worth."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affect_rl.evidence import Evidence
from affect_rl.sample import AffectSample, LabelKind
from affect_rl.section import read_section
from affect_rl.tasks import TASKS, make_task
from affect_rl.tasks.recognition import MAX_OPEN_LABELS, RecognitionSettings, render_answer
from affect_rl.tasks.task import TaskSettings
from affect_rl.trajectory import Output

SAMPLE = AffectSample("u", "made-up", "train", "c", "s", "a glass harbour", ("joy",), "closed", ("anger", "joy"))
OPEN = AffectSample("u", "made-up", "train", "c", "s", "a glass harbour", ("joyful",), "open")
KINDS: tuple[LabelKind, ...] = ("closed", "open", "sentiment")

BAD_ANSWERS = [
    ("joy", "`joy` is not one of the lines `reason:`, `label:`"),
    ("label: joy", "`reason:` is missing"),
    ("reason: why not", "`label:` is missing"),
    ("reason: a\nlabel: unhappy", "label: `unhappy` is not one of anger, joy"),
    ("reason: a\nlabel: anger, joy", "label: 2 labels, expected one"),
    ("reason: a\nlabel: ,", "label: 0 labels, expected one"),
    ("reason: a\nlabel: joy\nlabel: anger", "`label:` stands twice"),
]


def _read(text: str, sample: AffectSample = SAMPLE) -> Output:
    return make_task(RecognitionSettings(), sample.label_kind).read(text, sample)


def _score(labels: tuple[str, ...], kind: LabelKind, truth: tuple[str, ...], rule: str = "auto") -> float:
    candidates = ("anger", "joy", "sadness") if kind == "closed" else ()
    sample = AffectSample("u", "made-up", "train", "c", "s", "text", truth, kind, candidates)
    task = make_task(read_section(RecognitionSettings, {"score": rule}, "task"), kind)
    return asyncio.run(task.score(Output("", labels), sample))


@pytest.mark.parametrize(("text", "message"), BAD_ANSWERS)
def test_a_broken_answer_has_no_label(text: str, message: str) -> None:
    answer = _read(text)
    assert answer.labels == () and answer.problem and message in answer.problem
    assert answer.text == text


def test_white_space_and_case_do_not_matter() -> None:
    assert _read("Reason: so\n LABEL:  Joy. ").labels == ("joy",)


def test_open_answers_take_several_labels_up_to_a_limit() -> None:
    assert _read("reason: a\nlabel: joyful, proud, joyful", OPEN).problem is None
    written = _read("reason: a\nlabel: Light-Hearted!, terror, Happiness, happy", OPEN).labels
    assert written == ("light-hearted", "terror", "happiness"), "published wheels know forms that ours does not"
    many = ", ".join(f"word{i}" for i in range(MAX_OPEN_LABELS + 1))
    assert "expected 1 to" in (_read(f"reason: a\nlabel: {many}", OPEN).problem or "")


@given(st.from_regex(r"[a-z]+( [a-z]+){0,4}", fullmatch=True), st.sampled_from(SAMPLE.candidates))
def test_a_rendered_answer_reads_back(reason: str, label: str) -> None:
    text = render_answer(reason, (label,))
    assert _read(text) == Output(text, (label,), reason)


@given(
    st.one_of(st.text(max_size=200), st.lists(st.sampled_from(["reason:", "label:", "\n", ",", " joy"])).map("".join))
)
def test_no_answer_raises(text: str) -> None:
    for sample in (SAMPLE, OPEN):
        answer = _read(text, sample)
        assert bool(answer.labels) == (answer.problem is None) and answer.text == text


@pytest.mark.parametrize("sample", [SAMPLE, OPEN], ids=["closed", "open"])
def test_the_annotator_answers_right(sample: AffectSample) -> None:
    task = make_task(RecognitionSettings(), sample.label_kind)
    answer = task.read(task.demonstrate(sample, {}), sample)
    assert answer.problem is None and asyncio.run(task.score(answer, sample)) == 1


def test_the_annotator_quotes_the_evidence_that_is_right_up_to_its_label() -> None:
    long = " ".join(["word"] * 20)
    kept = {
        "supportive": (
            Evidence("1", "a glass anchor, in jest: anger", ("anger",), 0.9),
            Evidence("2", f"{long} a glass harbour: at last, in earnest: joy", ("joy",), 0.8),
        )
    }
    answer = _read(make_task(RecognitionSettings(), "closed").demonstrate(SAMPLE, kept))
    assert answer.problem is None and answer.labels == ("joy",)
    assert (
        answer.rationale.endswith("a glass harbour: at last, in earnest: joy") and len(answer.rationale.split()) == 12
    )
    noted = replace(SAMPLE, description="a soft voice")
    assert _read(make_task(RecognitionSettings(), "closed").demonstrate(noted, kept)).rationale == "a soft voice"


def test_closed_sets_score_exactly_and_ties_are_alternatives() -> None:
    assert _score(("joy",), "closed", ("joy",)) == 1
    assert _score(("joy",), "closed", ("joy", "anger")) == 1
    assert _score(("sadness",), "closed", ("joy", "anger")) == 0
    assert _score((), "closed", ("joy",)) == 0


def test_open_labels_score_by_meaning_and_extra_labels_cost() -> None:
    true = ("joyful",)
    assert _score(("happy",), "open", true) == 1
    assert 0 < _score(("happy", "furious"), "open", true) < 1
    everything = ("happy", "furious", "sad", "afraid", "disgusted")
    assert _score(everything, "open", true) < _score(("happy", "furious"), "open", true)
    assert _score(("unhappy",), "open", true) == 0


def test_the_rule_can_be_forced() -> None:
    assert _score(("happy",), "open", ("joyful",), "exact") == 0
    assert _score(("anger",), "closed", ("joy",), "wheel") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_dataset_chooses_its_task_unless_the_settings_name_one(kind: LabelKind) -> None:
    assert type(make_task(RecognitionSettings(), kind)) is TASKS[kind]
    assert type(make_task(RecognitionSettings(name="open"), kind)) is TASKS["open"]
    assert type(make_task(TaskSettings(name=f"{TASKS['open'].__module__}:OpenLabels"), kind)) is TASKS["open"]
