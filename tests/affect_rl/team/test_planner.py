"""Agents' answers: what is read, what is refused and why; nothing an agent writes raises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affect_rl.evidence import GROUPS, Evidence
from affect_rl.sample import AffectSample
from affect_rl.team.parsers import (
    MAX_OPEN_LABELS,
    parse_answer,
    parse_plan,
    parse_selection,
    render_answer,
    render_plan,
    render_selection,
)

SAMPLE = AffectSample("u", "made-up", "train", "c", "s", "a glass harbour", ("joy",), "closed", ("anger", "joy"))
OPEN = AffectSample("u", "made-up", "train", "c", "s", "a glass harbour", ("joyful",), "open")
CANDIDATES = {
    "supportive": tuple(Evidence(f"s{i}", f"text {i}", ("joy",), 0.5) for i in (1, 2)),
    "confusing": (Evidence("c3", "text 3", ("anger",), 0.4),),
    "countering": (),
}

BAD_PLANS = [
    ("", "`supportive:` is missing"),
    ("glass harbour", "`glass harbour` is not one of the lines"),
    ("supportive: a\nconfusing: b", "`countering:` is missing"),
    ("supportive: a\nsupportive: b\nconfusing: c\ncountering: d", "`supportive:` stands twice"),
    ("supportive:\nconfusing: b\ncountering: c", "`supportive:` is empty"),
    ("supportive: a\nconfusing: b\ncountering: c\nlabel: joy", "`label: joy` is not one of the lines"),
]
BAD_SELECTIONS = [
    ("supportive: first\nconfusing: none\ncountering: none", "supportive: `first` is neither numbers nor `none`"),
    ("supportive: 3\nconfusing: none\ncountering: none", "supportive: 3 is not a candidate of this group"),
    ("supportive: 0\nconfusing: none\ncountering: none", "supportive: 0 is not a candidate of this group"),
    ("supportive: 1, 1\nconfusing: none\ncountering: none", "supportive: a number stands twice"),
    ("supportive: 1, 2\nconfusing: none\ncountering: none", "supportive: 2 kept, at most 1"),
    ("supportive: 1\nconfusing: 3\ncountering: 4", "countering: 4 is not a candidate of this group"),
    ("supportive: -1\nconfusing: none\ncountering: none", "supportive: `-1` is neither numbers nor `none`"),
    ("supportive: ١\nconfusing: none\ncountering: none", "supportive: `١` is neither numbers nor `none`"),
    ("supportive: 1,\nconfusing: none\ncountering: none", "supportive: `1,` is neither numbers nor `none`"),
    ("supportive: 1", "`confusing:` is missing"),
]
BAD_ANSWERS = [
    ("joy", "`joy` is not one of the lines `reason:`, `label:`"),
    ("label: joy", "`reason:` is missing"),
    ("reason: why not", "`label:` is missing"),
    ("reason: a\nlabel: unhappy", "label: `unhappy` is not one of anger, joy"),
    ("reason: a\nlabel: anger, joy", "label: 2 labels, expected one"),
    ("reason: a\nlabel: ,", "label: 0 labels, expected one"),
    ("reason: a\nlabel: joy\nlabel: anger", "`label:` stands twice"),
]


@pytest.mark.parametrize(("text", "message"), BAD_PLANS)
def test_a_broken_plan_falls_back_to_the_text(text: str, message: str) -> None:
    plan = parse_plan(text, SAMPLE)
    assert plan.problem and message in plan.problem
    assert plan.queries == dict.fromkeys(GROUPS, "a glass harbour")


@pytest.mark.parametrize(("text", "message"), BAD_SELECTIONS)
def test_a_broken_selection_falls_back_to_retrieval_order(text: str, message: str) -> None:
    selection = parse_selection(text, CANDIDATES, keep=1)  # type: ignore[arg-type]
    assert selection.problem and message in selection.problem
    assert {g: [e.id for e in selection.kept[g]] for g in GROUPS} == {
        "supportive": ["s1"],
        "confusing": ["c3"],
        "countering": [],
    }


@pytest.mark.parametrize(("text", "message"), BAD_ANSWERS)
def test_a_broken_answer_has_no_label(text: str, message: str) -> None:
    answer = parse_answer(text, SAMPLE)
    assert answer.labels == () and answer.problem and message in answer.problem


def test_white_space_and_case_do_not_matter() -> None:
    assert parse_plan("  Supportive :  a   b \n\nCONFUSING: c\n countering: d ", SAMPLE).queries["supportive"] == "a b"
    assert parse_answer("Reason: so\n LABEL:  Joy. ", SAMPLE).labels == ("joy",)
    kept = parse_selection("SUPPORTIVE: 2\nconfusing: None\ncountering: NONE", CANDIDATES, keep=1).kept  # type: ignore[arg-type]
    assert [e.id for e in kept["supportive"]] == ["s2"]


def test_open_answers_take_several_labels_up_to_a_limit() -> None:
    assert parse_answer("reason: a\nlabel: joyful, proud, joyful", OPEN).problem is None
    written = parse_answer("reason: a\nlabel: Light-Hearted!, terror, Happiness, happy", OPEN).labels
    assert written == ("light-hearted", "terror", "happiness"), "published wheels know forms that ours does not"
    many = ", ".join(f"word{i}" for i in range(MAX_OPEN_LABELS + 1))
    assert "expected 1 to" in (parse_answer(f"reason: a\nlabel: {many}", OPEN).problem or "")


WORDS = st.from_regex(r"[a-z]+( [a-z]+){0,4}", fullmatch=True)


@given(st.fixed_dictionaries(dict.fromkeys(GROUPS, WORDS)))
def test_a_rendered_plan_reads_back(queries: dict) -> None:
    plan = parse_plan(render_plan(queries), SAMPLE)
    assert plan.problem is None and plan.queries == queries


@given(st.sampled_from([(), (1,), (2,)]), st.sampled_from([(), (3,)]))
def test_a_rendered_selection_reads_back(supportive: tuple[int, ...], confusing: tuple[int, ...]) -> None:
    text = render_selection({"supportive": supportive, "confusing": confusing})
    selection = parse_selection(text, CANDIDATES, keep=1)  # type: ignore[arg-type]
    assert selection.problem is None
    assert [e.id for e in selection.kept["supportive"]] == [f"s{n}" for n in supportive]
    assert [e.id for e in selection.kept["confusing"]] == [f"c{n}" for n in confusing]


@given(WORDS, st.sampled_from(SAMPLE.candidates))
def test_a_rendered_answer_reads_back(reason: str, label: str) -> None:
    answer = parse_answer(render_answer(reason, (label,)), SAMPLE)
    assert (answer.labels, answer.rationale, answer.problem) == ((label,), reason, None)


@pytest.mark.parametrize(
    "parse",
    [
        lambda text: parse_plan(text, SAMPLE),
        lambda text: parse_selection(text, CANDIDATES, keep=1),
        lambda text: parse_answer(text, SAMPLE),
        lambda text: parse_answer(text, OPEN),
    ],
)
def test_no_answer_raises(parse: Callable[[str], object]) -> None:
    fragments = st.sampled_from(
        ["supportive:", "confusing:", "countering:", "reason:", "label:", "\n", "1", ",", "none", " "]
    )
    texts = st.one_of(st.text(max_size=200), st.lists(fragments, max_size=30).map("".join))

    @given(texts)
    def check(text: str) -> None:
        result = parse(text)
        assert result.problem is None or result.problem  # type: ignore[attr-defined]

    check()
