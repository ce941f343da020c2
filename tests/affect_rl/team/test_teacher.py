"""A teacher is asked in the agents' own words and told the truth, which no student's prompt has."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from team_cases import DEBATE, NONE, make_team

from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample
from affect_rl.team.board import Board
from affect_rl.team.demonstrations import annotated
from affect_rl.team.prompts import Prompts
from affect_rl.team.taught import Demonstration, Replay
from affect_rl.team.teacher import (
    Answer,
    LeftOutError,
    Question,
    RefusedError,
    Teacher,
    Teaching,
    WrittenPrompts,
    told,
)
from affect_rl.team.team import Team
from affect_rl.trajectory import Trajectory
from retrieval_service.retriever import LocalRetriever

PLAN = "supportive: one thing\nconfusing: another\ncountering: a third"
WRITTEN = WrittenPrompts()
ALONE = make_team("team.retrieval=false")
"""A generator and nobody else."""
TASKS = {"write three search queries": "planner", "choose the evidence": "filter", "decide what": "generator"}


@dataclass
class Model:
    """Answers by agent, the last one again and again, and remembers the questions."""

    answers: Mapping[str, list[str | None]]
    asked: list[tuple[str, Question]] = field(default_factory=list)

    async def __call__(self, question: Question) -> Answer:
        agent = next((name for task, name in TASKS.items() if f"Task: {task}" in question.text), "debater")
        answers = self.answers[agent]
        text = answers[min(sum(name == agent for name, _ in self.asked), len(answers) - 1)]
        self.asked.append((agent, question))
        if text is None:
            raise RefusedError("not this one")
        return Answer(text.removesuffix("..."), finished=not text.endswith("..."))

    def of(self, agent: str) -> list[Question]:
        return [question for name, question in self.asked if name == agent]


def right(sample: AffectSample) -> str:
    return f"reason: it sounds so\nlabel: {', '.join(sample.labels)}"


def teach(
    sample: AffectSample, team: Team, retriever: LocalRetriever | None, teacher: Teacher, seed: int = 1
) -> Trajectory:
    return asyncio.run(annotated(sample, team, teacher, retriever, WRITTEN, seed))


def test_it_is_asked_in_the_agents_words_and_told_the_truth(
    world: list[AffectSample], retriever: LocalRetriever
) -> None:
    sample = replace(world[0], description="a soft\nvoice")
    model = Model({"planner": [PLAN], "filter": [NONE], "generator": [right(sample)]})
    played = teach(sample, make_team(), retriever, Teacher(model, Teaching(temperature=0.5)))
    assert [name for name, _ in model.asked] == ["planner", "filter", "generator"]
    for _, question in model.asked:
        assert (
            f"Text: {sample.text}\nVoice and face: a soft voice\nLabels: {', '.join(sample.candidates)}"
            in question.text
        )
        assert question.text.endswith(told(sample)) and f"this person: {sample.labels[0]}." in question.text
        assert (question.temperature, question.pattern) == (0.5, "")
    assert "For example:\nsupportive: tired words" in model.of("planner")[0].text
    found = [item for items in played.candidates.values() for item in items]
    shown = model.of("filter")[0].text
    assert found and all(f" {number}. {item.text}\n" in shown for number, item in enumerate(found, 1))
    assert "evidence:" not in model.of("generator")[0].text and "With support" not in model.of("generator")[0].text
    assert [turn.generation.text for turn in played.turns] == [PLAN, NONE, right(sample)]
    assert played.scores["full"] == 1


def test_what_it_is_told_is_in_no_prompt_of_the_student(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    """Of open labels, which no list in a prompt names; the label is a word that stands nowhere else."""
    secret = "zorblax"
    sample = replace(world[0], labels=(secret,), label_kind="open", candidates=())
    model = Model(
        {
            "planner": [PLAN],
            "filter": ["supportive: 1\nconfusing: none\ncountering: none"],
            "debater": ["against: nothing"],
            "generator": [right(sample)],
        }
    )
    team = make_team(*DEBATE, label_kind="open")
    written = Demonstration.of(teach(sample, team, retriever, Teacher(model, Teaching())))
    assert len(model.asked) == 4 and all(secret in question.text for _, question in model.asked)

    replayed = asyncio.run(annotated(sample, team, Replay(prompts, written), retriever, prompts, 1))
    assert [turn.agent for turn in replayed.turns] == ["planner", "filter", "debater", "generator"]
    for turn in replayed.turns:
        shown = prompts.tokenizer.decode(turn.prompt.token_ids)
        assert sample.text in shown and secret not in shown
        assert prompts.tokenizer.decode(turn.generation.token_ids, skip_special_tokens=True) == turn.generation.text
    assert secret in replayed.turns[-1].generation.text


def test_an_answer_that_is_of_no_use_is_asked_for_again(world: list[AffectSample], retriever: LocalRetriever) -> None:
    sample = world[0]
    wrong = next(label for label in sample.candidates if label not in sample.labels)
    model = Model(
        {
            "planner": ["I would search for this.", f"{PLAN[:-5]}...", f"\n{PLAN}\n"],
            "filter": ["supportive: 99\nconfusing: none\ncountering: none", NONE],
            "generator": [f"reason: so\nlabel: {wrong}", right(sample)],
        }
    )
    teacher = Teacher(model, Teaching(attempts=3))
    played = teach(sample, make_team(), retriever, teacher)
    assert [turn.generation.text for turn in played.turns] == [PLAN, NONE, right(sample)]
    assert teacher.answered == {("planner", 3): 1, ("filter", 2): 1, ("generator", 2): 1}
    for agent in ("planner", "filter", "generator"):
        assert len({question.text for question in model.of(agent)}) == 1
        assert len({question.seed for question in model.of(agent)}) == len(model.of(agent))


@pytest.mark.parametrize(
    ("agent", "answer", "cause"),
    [
        ("planner", "supportive: one thing", "format"),
        ("planner", f"{PLAN}...", "length"),
        ("filter", None, "refused"),
        ("generator", "reason: so\nlabel: WRONG", "label"),
        ("generator", "label: joy", "format"),
    ],
)
def test_a_sample_is_left_out_after_the_last_attempt(
    world: list[AffectSample], retriever: LocalRetriever, agent: str, answer: str | None, cause: str
) -> None:
    sample = world[0]
    wrong = next(label for label in sample.candidates if label not in sample.labels)
    answers: dict[str, list[str | None]] = {"planner": [PLAN], "filter": [NONE], "generator": [right(sample)]}
    model = Model({**answers, agent: [answer and answer.replace("WRONG", wrong)]})
    with pytest.raises(LeftOutError, match=f"^{agent}: ") as caught:
        teach(sample, make_team(), retriever, Teacher(model, Teaching(attempts=2)))
    assert (caught.value.agent, caught.value.cause) == (agent, cause)
    assert Counter(name for name, _ in model.asked)[agent] == (1 if cause == "refused" else 2)


def test_open_labels_may_be_named_in_other_words_that_mean_the_same(world: list[AffectSample]) -> None:
    sample = replace(world[0], labels=("joyful", "sad"), label_kind="open", candidates=())
    team = make_team("team.retrieval=false", label_kind="open")
    same, half = "reason: so\nlabel: happy, sadness", "reason: so\nlabel: happy"
    model = Model({"generator": [half, same]})
    (turn,) = teach(sample, team, None, Teacher(model, Teaching())).turns
    assert turn.generation.text == same and "person: joyful, sad." in model.asked[0][1].text
    tied = replace(world[0], labels=("sadness", "joy"), candidates=("joy", "sadness"))
    assert "person: sadness." in told(tied), "on a closed set one of the labels on which raters tie"


@pytest.mark.parametrize("split", ["dev", "test", "library"])
def test_no_teacher_is_told_labels_of_other_splits(world: list[AffectSample], split: str) -> None:
    sample = replace(world[0], split=split)
    model = Model({"generator": [right(sample)]})
    message = f"sample {sample.id}: is of {split}, whose labels no teacher is told; give train samples"
    with pytest.raises(AffectError, match=message):
        teach(sample, ALONE, None, Teacher(model, Teaching()))
    assert not model.asked


def test_a_structured_question_has_the_agents_pattern_and_a_thinking_model_its_tokens(
    world: list[AffectSample],
) -> None:
    for teaching, pattern, tokens in (
        (Teaching(structured=True), ALONE.agents["generator"].pattern(Board(world[0])), 40),
        (Teaching(tokens=900), "", 900),
    ):
        model = Model({"generator": [right(world[0])]})
        teach(world[0], ALONE, None, Teacher(model, teaching))
        ((_, question),) = model.asked
        assert (question.pattern, question.tokens) == (pattern, tokens)


def test_a_chinese_sample_is_asked_about_in_chinese(world: list[AffectSample]) -> None:
    sample = replace(world[0], language="zh")
    assert f"真实情绪是：{sample.labels[0]}。" in told(sample)


@given(st.text(), st.text())
def test_written_prompts_hold_any_words(text: str, description: str) -> None:
    sample = AffectSample(
        "u", "made-up", "train", "c", "s", text, ("joy",), "closed", ("anger", "joy"), description=description
    )
    prompt = ALONE.agents["generator"].prompt(Board(sample), WRITTEN)
    heard = " ".join(description.split()) or "not described"
    assert f"\n\nText: {text}\nVoice and face: {heard}\nLabels: anger, joy\nTask: " in WRITTEN.text(prompt)


@given(st.text(), st.booleans())
def test_any_answer_is_of_use_or_leaves_the_sample_out(text: str, finished: bool) -> None:
    async def ask(question: Question) -> Answer:
        return Answer(text, finished)

    sample = AffectSample("u", "made-up", "train", "c", "s", "well", ("joy",), "closed", ("anger", "joy"))
    try:
        (turn,) = teach(sample, ALONE, None, Teacher(ask, Teaching(attempts=1))).turns
    except LeftOutError:
        return
    assert finished and turn.generation.text == text.strip() and turn.problem is None
