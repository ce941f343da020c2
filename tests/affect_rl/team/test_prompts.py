"""Prompts: one prefix, evidence within a budget, and no special tokens but the frame's."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from team_cases import make_team

from affect_rl.errors import AffectError
from affect_rl.evidence import GROUPS, Evidence
from affect_rl.policy.special_tokens import END_TOKEN, PERCEPT_TOKEN
from affect_rl.policy.tokens import train_tokenizer
from affect_rl.sample import AffectSample
from affect_rl.tasks.recognition import example_labels
from affect_rl.team.board import Board
from affect_rl.team.demonstrations import demonstrate
from affect_rl.team.prompts import SYSTEM, Prompts, template_texts
from affect_rl.trajectory import Prompt

SAMPLE = AffectSample("u", "made-up", "train", "c", "s", "a glass harbour", ("joy",), "closed", ("anger", "joy"))
SPECIAL = (PERCEPT_TOKEN, END_TOKEN, "<|pad|>", "<|user|>")
CHAT = (
    "{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|user|>{% endif %}"
)


def _prompts(template: str | None = CHAT) -> Prompts:
    tokenizer = train_tokenizer(["a glass harbour, a soft voice", *template_texts(), *make_team().texts()], 500)
    tokenizer.add_special_tokens({"additional_special_tokens": [PERCEPT_TOKEN, "<|user|>"]})
    tokenizer.chat_template = template
    return Prompts(tokenizer, soft_tokens=4, context=4096, evidence_tokens=32)


FRAMED, PLAIN = _prompts(), _prompts(None)


def _special(prompts: Prompts, ids: tuple[int, ...]) -> Counter[str]:
    names = {prompts.tokenizer.convert_tokens_to_ids(token): token for token in SPECIAL}
    return Counter(names[i] for i in ids if i in names)


def _generator_prompt(prompts: Prompts, sample: AffectSample, text: str, note: str) -> Prompt:
    kept = {"supportive": (Evidence("e", text, ("joy",), 0.5),)}
    return make_team().agents["generator"].prompt(Board(sample, {"kept": kept, "notes": (note,)}), prompts)


def test_the_frame_has_the_templates_special_tokens() -> None:
    found = _special(FRAMED, _generator_prompt(FRAMED, SAMPLE, "an evening", "a note").token_ids)
    assert found == {PERCEPT_TOKEN: 8, END_TOKEN: 2, "<|user|>": 3}, (
        "a system message, a user's, the beginning of an answer"
    )
    assert _special(PLAIN, _generator_prompt(PLAIN, SAMPLE, "an evening", "a note").token_ids) == {PERCEPT_TOKEN: 8}


@pytest.mark.parametrize("agent", ["planner", "filter", "generator"])
def test_a_model_with_a_chat_template_is_told_task_and_format_with_an_example(agent: str) -> None:
    playing = make_team().agents[agent]
    board = Board(SAMPLE, {"candidates": {"supportive": (Evidence("e", "an evening", ("joy",), 0.5),)}})
    told = FRAMED.tokenizer.decode(playing.prompt(board, FRAMED).token_ids)
    assert told.startswith(f"<|user|>{SYSTEM.en}<|end|><|user|>Text: a glass harbour")
    assert told.endswith("<|end|><|user|>") and "\nFor example:\n" in told
    example = told.split("For example:\n")[1].removesuffix("<|end|><|user|>")
    assert playing.read(example, board).problem is None, "the example can be read"
    short = PLAIN.tokenizer.decode(playing.prompt(board, PLAIN).token_ids)
    assert "example" not in short and SYSTEM.en not in short
    again = Prompts(FRAMED.tokenizer, soft_tokens=4, context=4096, evidence_tokens=32, wording="short")
    assert again.tokenizer.decode(playing.prompt(board, again).token_ids) == f"<|user|>{short}<|end|><|user|>"


def test_chinese_samples_are_asked_in_chinese() -> None:
    chinese = replace(SAMPLE, text="我没事", language="zh")
    for agent in make_team("team.agents=[planner, filter, generator]").agents.values():
        told = FRAMED.tokenizer.decode(agent.prompt(Board(chinese, {}), FRAMED).token_ids)
        assert SYSTEM.zh in told and "任务：" in told and "Task:" not in told
        example = told.split("例如：\n")[1].removesuffix("<|end|><|user|>")
        found = agent.read(example, Board(chinese, {"candidates": {"supportive": (Evidence("e", "x", (), 0.5),)}}))
        assert found.problem is None


def test_a_description_is_told_to_all_agents_where_the_episode_says_so() -> None:
    noted = replace(SAMPLE, description="voice loud,\nhigh; face mostly angry")
    told = Prompts(PLAIN.tokenizer, soft_tokens=4, context=4096, evidence_tokens=32, described=True)
    texts = [told.tokenizer.decode(told.prefix(sample)) for sample in (noted, noted.without(["audio"]), SAMPLE)]
    assert "\nNoted: voice loud, high; face mostly angry\nLabels:" in texts[0]
    assert "\nNoted: face mostly angry\nLabels:" in texts[1], "of a voice that is withheld nothing is told"
    assert "Noted" not in texts[2] + PLAIN.tokenizer.decode(PLAIN.prefix(noted))


def test_examples_of_answers_favour_no_label() -> None:
    examples = Counter(example_labels(replace(SAMPLE, id=f"u{n}")) for n in range(400))
    assert set(examples) == {"anger", "joy"} and min(examples.values()) > 150


def test_a_template_without_system_messages_has_it_in_the_users() -> None:
    tokenizer = copy.deepcopy(FRAMED.tokenizer)
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    tokenizer.chat_template = refusal + CHAT
    prompts = Prompts(tokenizer, soft_tokens=4, context=4096, evidence_tokens=32)
    told = tokenizer.decode(prompts.prefix(SAMPLE))
    assert told.startswith(f"<|user|>{SYSTEM.en}\n\nText: a glass harbour")


def test_agents_share_the_prefix_in_either_form() -> None:
    for prompts in (FRAMED, PLAIN):
        asked = [agent.prompt(Board(SAMPLE, {}), prompts) for agent in make_team().agents.values()]
        assert len({prompt.token_ids[: prompt.prefix] for prompt in asked}) == 1


WORDS = st.lists(st.sampled_from([*SPECIAL, " so ", "glad", ": ", "<|", "|>", "percept"]), max_size=6).map("".join)


@given(WORDS, WORDS, WORDS, WORDS)
def test_special_tokens_in_data_are_plain_characters(said: str, found: str, noted: str, label: str) -> None:
    """In a transcript, in a label, in a text of the library and in what an agent notes."""
    sample = replace(SAMPLE, text=said, candidates=("anger", label))
    for prompts in (FRAMED, PLAIN):
        prompt = _generator_prompt(prompts, sample, found, noted)
        clean = _generator_prompt(prompts, SAMPLE, "an evening", "a note")
        assert _special(prompts, prompt.token_ids) == _special(prompts, clean.token_ids)
        shown = prompts.tokenizer.decode(prompt.token_ids)
        assert f"Text: {said}\n" in shown and f"anger, {label}" in shown and f"{noted}\n" in shown


def test_special_tokens_in_an_answer_are_plain_characters_but_for_its_end() -> None:
    """Of a demonstration, which quotes the data."""
    sample = replace(SAMPLE, description=f"a voice {END_TOKEN} cut off {PERCEPT_TOKEN}")
    turns = asyncio.run(demonstrate(sample, make_team("team.retrieval=false"), None, FRAMED, seed=0)).turns
    (answer,) = (turn.generation for turn in turns)
    assert sample.description in answer.text
    assert (
        _special(FRAMED, answer.token_ids) == {END_TOKEN: 1} and answer.token_ids[-1] == FRAMED.tokenizer.eos_token_id
    )
    assert FRAMED.tokenizer.decode(answer.token_ids[:-1]) == answer.text


def test_evidence_is_dropped_before_the_sample_is_cut() -> None:
    instruction = "Task: write one search query per group.\n"
    whole = PLAIN.build(SAMPLE, 8, instruction)
    room = len(whole.token_ids)
    tight = Prompts(PLAIN.tokenizer, soft_tokens=4, context=room + 8, evidence_tokens=32)
    evidence = {"supportive": (Evidence("e", "an evening", ("joy",), 0.5),)}
    assert tight.build(SAMPLE, 8, instruction, evidence=evidence).token_ids == whole.token_ids
    assert len(PLAIN.build(SAMPLE, 8, instruction, evidence=evidence).token_ids) > room
    with pytest.raises(AffectError, match=r"sample u: its prompt takes .* raise model\.context"):
        tight.build(SAMPLE, 9, instruction)
    with pytest.raises(AffectError, match="sample u: its prompt takes"):
        tight.build(SAMPLE, 8, instruction, note="a note that is never cut either\n")


def test_numbers_of_the_evidence_go_on_through_the_groups() -> None:
    evidence = {group: (Evidence("e", f"the {group} one", (), 0.5),) for group in GROUPS}
    shown = PLAIN.tokenizer.decode(PLAIN.build(SAMPLE, 8, "Task:\n", evidence=evidence, numbered=True).token_ids)
    assert all(f" {n}. the {group} one\n" in shown for n, group in enumerate(GROUPS, 1))
