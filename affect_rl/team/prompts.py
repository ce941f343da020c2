"""Prompts, built the same way for SFT, RL, evaluation and serving.

Every prompt of an episode starts with the same prefix (the sample), so that a rollout engine computes
it once; what the agent is to do comes last. Evidence has a budget and is dropped from the end when the
context is short. The sample itself is never cut.

A model with a chat template is told what to do in full, inside the template and behind a system message; one without,
as the tiny policies, in short forms (`affect_rl.wording`).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from jinja2 import TemplateError

from affect_rl.errors import AffectError
from affect_rl.evidence import GROUPS
from affect_rl.policy.fusion import shape_from_dict
from affect_rl.policy.special_tokens import PERCEPT_TOKEN
from affect_rl.sample import AffectSample
from affect_rl.team.board import Found
from affect_rl.trajectory import Percept, Prompt
from affect_rl.wording import Wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from affect_rl.team.agent import EpisodeSettings

Form = Literal["auto", "short", "full"]

SYSTEM = Wording(
    short="",
    en="You belong to a team that recognises what people feel from what they say, how their voice sounds and what "
    "their face shows. You do one part of the work. Answer exactly in the format that you are asked for.",
    zh="你所在的团队根据人们说的话、声音和面部表情来识别他们的情绪。你负责其中一部分工作。请严格按照要求的格式回答。",
)
"""The message that a chat begins with."""

NOTED = "Noted:"
"""What a sample's description stands behind."""

# Stands for the conversation while a chat template is rendered around it.
_CONTENT = "<<content>>"
_REMEMBERED = 256
"""Characters of the longest text whose tokens are kept."""


class Prompts:
    """Builds the prompts of all agents for one tokenizer.

    Args:
        tokenizer: of the policy; its chat template, if any, is put around the prompt.
        soft_tokens: soft tokens of a percept.
        context: longest prompt plus answer, in tokens.
        evidence_tokens: longest one piece of evidence may be.
        wording: form of the instructions; ``auto``: in full if there is a chat template.
        described: tell the sample's description.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        soft_tokens: int,
        context: int,
        evidence_tokens: int,
        wording: Form = "auto",
        described: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.described = described
        self.context = context
        self.evidence_tokens = evidence_tokens
        self.in_full = wording == "full" or (wording == "auto" and bool(getattr(tokenizer, "chat_template", None)))
        self._percept = (int(tokenizer.convert_tokens_to_ids(PERCEPT_TOKEN)),) * soft_tokens
        frames = {language: _chat_frame(tokenizer, self._system(language)) for language in ("en", "zh")}
        self._frames = {
            language: tuple(self._encode(part, special=True) for part in frame) for language, frame in frames.items()
        }
        self._encode_known = lru_cache(maxsize=65536)(self._encode)

    @classmethod
    def for_policy(cls, policy_dir: Path, episode: EpisodeSettings, *, context: int) -> Self:
        """For the tokenizer and the soft tokens of the policy in a directory."""
        # Not above: configurations know the agents, and reading one must not take the seconds of this import.
        from transformers import AutoTokenizer

        from affect_rl.policy.config import AffectConfig

        return cls(
            AutoTokenizer.from_pretrained(policy_dir),
            soft_tokens=shape_from_dict(AffectConfig.from_pretrained(policy_dir).fusion).tokens,
            context=context,
            evidence_tokens=episode.evidence_tokens,
            wording=episode.wording,
            described=episode.described,
        )

    def answer(self, text: str) -> tuple[int, ...]:
        """Token ids of an agent's answer, the end token included."""
        return (*self._encode(text), int(self.tokenizer.eos_token_id))

    def build(
        self,
        sample: AffectSample,
        answer_tokens: int,
        instruction: Wording | str,
        *,
        evidence: Found | None = None,
        numbered: bool = False,
        percept: Percept | None = None,
        note: str = "",
    ) -> Prompt:
        """The sample, the evidence as far as there is room, a note, the percept, the instruction.

        Args:
            sample: what is to be understood.
            answer_tokens: room that is left for the answer.
            instruction: what the agent is to do; a text ends with a new line.
            evidence: what is shown of the evidence.
            numbered: number it from 1 through all groups.
            percept: the sample's features as the agent sees them, beside the plain ones of the prefix.
            note: lines that stand between evidence and instruction, whole.

        Raises:
            AffectError: without any evidence the prompt is too long already.
        """
        prefix = self.prefix(sample)
        tail = self._tail(note, percept, self.said(instruction, sample), sample)
        room = self.context - answer_tokens - len(prefix) - len(tail)
        if room < 0:
            raise AffectError(
                f"sample {sample.id}: its prompt takes {len(prefix) + len(tail)} tokens and an answer {answer_tokens}, "
                f"more than model.context={self.context}; raise model.context or leave the sample out"
            )
        shown = self._evidence(evidence, numbered, room) if evidence else ()
        percepts = (Percept(sample.audio, sample.video), *([percept] if percept else []))
        return Prompt((*prefix, *shown, *tail), percepts, len(prefix))

    def annotated(self, prompt: Prompt, note: str, answer_tokens: int) -> Prompt:
        """A prompt with a note behind it, cut to what the context leaves beside the answer."""
        room = max(0, self.context - answer_tokens - len(prompt.token_ids))
        return Prompt((*prompt.token_ids, *self._encode_cached(note)[:room]), prompt.percepts, prompt.prefix)

    def prefix(self, sample: AffectSample) -> tuple[int, ...]:
        """What all prompts of an episode start with."""
        noted = f"\n{NOTED} {' '.join(sample.description.split())}" if self.described and sample.description else ""
        labels = f"\nLabels: {', '.join(sample.candidates)}\n" if sample.candidates else "\n"
        return (
            *self._frame(sample)[0],
            *self._encode_cached(f"Text: {sample.text}\nVoice and face:"),
            *self._perceived(sample),
            *self._encode_cached(noted),
            *self._encode_cached(labels),
        )

    def said(self, instruction: Wording | str, sample: AffectSample) -> str:
        """An instruction in the form that the model is told it."""
        if isinstance(instruction, str):
            return instruction
        return instruction.in_full(sample.language) if self.in_full else instruction.short

    def _perceived(self, sample: AffectSample) -> tuple[int, ...]:
        """What stands for the sample's voice and face."""
        return self._percept

    def _system(self, language: str) -> str:
        return SYSTEM.in_full(language) if self.in_full else SYSTEM.short

    def _frame(self, sample: AffectSample) -> tuple[tuple[int, ...], ...]:
        """What stands before and after a prompt about a sample."""
        return self._frames["zh" if sample.language == "zh" else "en"]

    def _tail(self, note: str, percept: Percept | None, instruction: str, sample: AffectSample) -> tuple[int, ...]:
        view = (*self._encode_cached("With support:"), *self._percept, *self._encode_cached("\n")) if percept else ()
        return (*self._encode_cached(note), *view, *self._encode_cached(instruction), *self._frame(sample)[1])

    def _evidence(self, evidence: Found, numbered: bool, room: int) -> tuple[int, ...]:
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

    def _encode_cached(self, text: str) -> tuple[int, ...]:
        """Long texts are somebody's own and seldom come again; they would fill the memory of a server."""
        return self._encode_known(text) if len(text) <= _REMEMBERED else self._encode(text)

    def _encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """Token ids of `text`. Only the chat template may contain special tokens: in data they are plain characters."""
        if not text:
            return ()
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special))


def template_texts() -> list[str]:
    """Texts of every prompt that a tokenizer trained from scratch must know beside the data and the agents' own."""
    words = "Text: Voice and face: Labels: With support: supportive: confusing: countering: none"
    evidence = "".join(f"{group} evidence:\n" for group in GROUPS)
    numbers = "".join(f" {n}.\n" for n in range(1, 31))
    return [words, evidence, numbers]


def _chat_frame(tokenizer: PreTrainedTokenizerBase, system: str) -> tuple[str, str]:
    """What stands before and after a user's message: the tokenizer's chat template, if it has one, with the system
    message. A template that knows no system messages, or none at all, has it at the beginning of the user's."""
    if not getattr(tokenizer, "chat_template", None):
        return (f"{system}\n\n" if system else ""), ""
    user = [{"role": "user", "content": _CONTENT}]
    if system:
        try:
            return _rendered(tokenizer, [{"role": "system", "content": system}, *user])
        except TemplateError:
            opening, closing = _rendered(tokenizer, user)
            return f"{opening}{system}\n\n", closing
    return _rendered(tokenizer, user)


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> tuple[str, str]:
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    opening, _, closing = rendered.partition(_CONTENT)
    return opening, closing
