"""Prompts: one prefix, evidence within a budget, and no special tokens but the frame's."""

from __future__ import annotations

import asyncio
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
from affect_rl.team.board import Board
from affect_rl.team.demonstrations import demonstrate
from affect_rl.team.prompts import Prompts, template_texts
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
    return Prompts(tokenizer, soft_tokens=4, context=600, evidence_tokens=32)


FRAMED, PLAIN = _prompts(), _prompts(None)


def _special(prompts: Prompts, ids: tuple[int, ...]) -> Counter[str]:
    names = {prompts.tokenizer.convert_tokens_to_ids(token): token for token in SPECIAL}
    return Counter(names[i] for i in ids if i in names)


def _generator_prompt(prompts: Prompts, sample: AffectSample, text: str, note: str) -> Prompt:
    kept = {"supportive": (Evidence("e", text, ("joy",), 0.5),)}
    return make_team().agents["generator"].prompt(Board(sample, {"kept": kept, "notes": (note,)}), prompts)


def test_the_frame_has_the_templates_special_tokens() -> None:
    found = _special(FRAMED, _generator_prompt(FRAMED, SAMPLE, "an evening", "a note").token_ids)
    assert found == {PERCEPT_TOKEN: 8, END_TOKEN: 1, "<|user|>": 2}
    assert _special(PLAIN, _generator_prompt(PLAIN, SAMPLE, "an evening", "a note").token_ids) == {PERCEPT_TOKEN: 8}


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
    turns = asyncio.run(demonstrate(sample, make_team("team.retrieval=false"), None, FRAMED, seed=0))
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
