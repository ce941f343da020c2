"""Role prompts: one template per role, used by SFT, RL, evaluation and serving alike.

Every prompt of an episode starts with the same prefix (the sample), so that a rollout engine computes
it once; the role's task comes last. Evidence has a budget and is dropped from the end when the
context is short. The sample itself is never cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Self

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from affect_rl.config.load import Config
from affect_rl.errors import AffectError
from affect_rl.evidence import GROUPS, Evidence, Group
from affect_rl.policy.fusion import shape_from_dict
from affect_rl.policy.model import AffectConfig
from affect_rl.policy.tokens import PERCEPT_TOKEN
from affect_rl.sample import AffectSample
from affect_rl.trajectory import Percept, Prompt, Role

TASKS: Mapping[Role, str] = {
    "planner": "Task: write one search query per group.\n",
    "filter": "Task: keep the useful evidence.\n",
    "generator": "Task: reason, then name the emotion.\n",
}
"""What each role is told, after the sample and the evidence."""
PLAN_AND_LABEL = "Task: write one search query per group, then name the emotion.\n"
"""What a planner is told that also says which emotion it expects."""

# Stands for the conversation while a chat template is rendered around it.
_CONTENT = "<<content>>"


class Prompts:
    """Builds the prompts of all roles for one tokenizer.

    Args:
        tokenizer: of the policy; its chat template, if any, is put around the prompt.
        soft_tokens: soft tokens of a percept.
        context: longest prompt plus answer, in tokens.
        evidence_tokens: longest one piece of evidence may be.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, soft_tokens: int, context: int, evidence_tokens: int
    ) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.evidence_tokens = evidence_tokens
        self._percept = (int(tokenizer.convert_tokens_to_ids(PERCEPT_TOKEN)),) * soft_tokens
        opening, closing = _chat_frame(tokenizer)
        self._opening, self._closing = self.encode(opening), self.encode(closing)
        self._encode_cached = lru_cache(maxsize=65536)(self._encode)

    @classmethod
    def for_policy(cls, policy_dir: Path, config: Config) -> Self:
        """The prompts of a run, for the tokenizer and the soft tokens of the policy in a directory."""
        return cls(
            AutoTokenizer.from_pretrained(policy_dir),
            soft_tokens=shape_from_dict(AffectConfig.from_pretrained(policy_dir).fusion).tokens,
            context=config.model.context,
            evidence_tokens=config.episode.evidence_tokens,
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`, with no special tokens added."""
        return self._encode(text)

    def answer(self, text: str) -> tuple[int, ...]:
        """Token ids of an agent's answer, the end token included."""
        return (*self._encode(text), int(self.tokenizer.eos_token_id))

    def planner(self, sample: AffectSample, answer_tokens: int, *, with_label: bool = False) -> Prompt:
        """The planner sees the sample."""
        return self._build(sample, answer_tokens, task=PLAN_AND_LABEL if with_label else TASKS["planner"])

    def filter(
        self, sample: AffectSample, candidates: Mapping[Group, tuple[Evidence, ...]], answer_tokens: int
    ) -> Prompt:
        """The filter sees the sample and the candidates, numbered from 1 through all groups."""
        return self._build(sample, answer_tokens, task=TASKS["filter"], evidence=candidates, numbered=True)

    def generator(
        self,
        sample: AffectSample,
        kept: Mapping[Group, tuple[Evidence, ...]],
        fused: Percept,
        answer_tokens: int,
    ) -> Prompt:
        """The generator sees the sample, the kept evidence and the features fused with their support."""
        return self._build(sample, answer_tokens, task=TASKS["generator"], evidence=kept, fused=fused)

    def _build(
        self,
        sample: AffectSample,
        answer_tokens: int,
        *,
        task: str,
        evidence: Mapping[Group, tuple[Evidence, ...]] | None = None,
        numbered: bool = False,
        fused: Percept | None = None,
    ) -> Prompt:
        prefix = self.prefix(sample)
        tail = self._tail(task, fused)
        room = self.context - answer_tokens - len(prefix) - len(tail)
        if room < 0:
            raise AffectError(
                f"sample {sample.id}: its prompt takes {len(prefix) + len(tail)} tokens and an answer {answer_tokens}, "
                f"more than model.context={self.context}; raise model.context or leave the sample out"
            )
        shown = self._evidence(evidence, numbered, room) if evidence else ()
        percepts = (Percept(sample.audio, sample.video), *([fused] if fused else []))
        return Prompt((*prefix, *shown, *tail), percepts)

    def prefix(self, sample: AffectSample) -> tuple[int, ...]:
        """What all prompts of an episode start with."""
        labels = f"\nLabels: {', '.join(sample.candidates)}\n" if sample.candidates else "\n"
        return (
            *self._opening,
            *self._encode_cached(f"Text: {sample.text}\nVoice and face:"),
            *self._percept,
            *self._encode_cached(labels),
        )

    def _tail(self, task: str, fused: Percept | None) -> tuple[int, ...]:
        view = (*self._encode_cached("With support:"), *self._percept, *self._encode_cached("\n")) if fused else ()
        return (*view, *self._encode_cached(task), *self._closing)

    def _evidence(self, evidence: Mapping[Group, tuple[Evidence, ...]], numbered: bool, room: int) -> tuple[int, ...]:
        tokens: list[int] = []
        number = 0
        for group in GROUPS:
            header = self._encode_cached(f"{group} evidence:\n")
            lines: list[int] = []
            for item in evidence.get(group, ()):
                number += 1
                # A word is the same token in text, evidence and answer: always behind a space.
                mark = f" {number}." if numbered else " -"
                body = self._encode_cached(f" {item.text}")[: self.evidence_tokens]
                line = (*self._encode_cached(mark), *body, *self._encode_cached("\n"))
                if len(tokens) + len(header) + len(lines) + len(line) <= room:
                    lines.extend(line)
            if lines:
                tokens.extend((*header, *lines))
        return tuple(tokens)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False)) if text else ()


def template_texts() -> list[str]:
    """Texts that a tokenizer trained from scratch must know beside the data."""
    words = "Text: Voice and face: Labels: With support: supportive: confusing: countering: none reason: label:"
    evidence = "".join(f"{group} evidence:\n" for group in GROUPS)
    numbers = "".join(f" {n}.\n" for n in range(1, 31))
    return [words, evidence, numbers, *TASKS.values()]


def _chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the tokenizer's chat template puts before and after a user's message."""
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    messages = [{"role": "user", "content": _CONTENT}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    opening, _, closing = str(rendered).partition(_CONTENT)
    return opening, closing
