"""A language model as annotator: it plays the team's turns, knows the truth, and answers as somebody who does not.

A teacher implements the `Generate` interface, so later turns see what came of earlier ones. It is asked in words: the
agent's own prompt, built by `WrittenPrompts`, and behind it the true labels and how to use them (`TOLD`). Only its
answers are kept; a student's prompts are built anew, without what it was told. What asks the model is an `Ask`, see
`rollout_workers.served_model` and `rollout_workers.local_model`.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample
from affect_rl.seeds import derived_seed
from affect_rl.team.agent import Request
from affect_rl.team.prompts import Prompts
from affect_rl.trajectory import Generation, Percept, Prompt
from affect_rl.wording import Wording

TOLD = Wording(
    short="",
    en="You are told the true emotion of this person: {labels}. Use it to choose well, but answer as somebody who was "
    "not told and finds out from what is given above. Name the emotion only where a label is asked for, and never say "
    "that you knew it.\n",
    zh="这个人的真实情绪是：{labels}。利用它来做出好的选择，但要像没有被告知、只根据以上内容判断的人那样回答。"
    "只在要求写出标签的地方写出情绪，绝不要说你事先知道。\n",
)
"""What a teacher is told behind an agent's prompt. There small models heed it more than before the prompt."""

Cause = Literal["length", "format", "label", "refused"]
"""Why an answer is of no use: it did not end, it cannot be read, it names other labels than the true ones, or the model
would not answer at all."""


class LeftOutError(Exception):
    """A sample that the teacher did not demonstrate: no answer of one of its turns was of use.

    Attributes:
        agent: whose turn it was.
        cause: what was wrong with the last answer.
    """

    def __init__(self, agent: str, cause: Cause, reason: str) -> None:
        super().__init__(f"{agent}: {reason}")
        self.agent, self.cause = agent, cause


class RefusedError(Exception):
    """The model does not answer this question, however often it is asked."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked; the same question has the same answer.

    Attributes:
        text: a message to a chat model.
        tokens: most tokens of the answer.
        temperature: of sampling.
        seed: of sampling.
        pattern: regular expression that the answer is held to; empty: any text.
    """

    text: str
    tokens: int
    temperature: float
    seed: int
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered; `finished`: it came to an end within the tokens of the question."""

    text: str
    finished: bool


class Ask(Protocol):
    """What a teacher needs of a model."""

    async def __call__(self, question: Question) -> Answer:
        """Answer a question.

        Raises:
            RefusedError: the model does not answer this one.
            AffectError: it answers none as it is set up.
            FailureError: it cannot be reached.
        """
        ...


@dataclass(frozen=True, slots=True)
class Teaching:
    """How a teacher is asked.

    Attributes:
        attempts: how often for a turn, each time with another seed, before the sample is left out.
        temperature: of sampling.
        tokens: most tokens of an answer, thoughts included; 0: as the agent's own answers.
        structured: hold the model to the agents' formats.
    """

    attempts: int = 3
    temperature: float = 0.7
    tokens: int = 0
    structured: bool = False


@dataclass(frozen=True, slots=True)
class Teacher:
    """Plays any agent by asking a model; the prompts of its episodes are `WrittenPrompts`.

    Attributes:
        ask: the model.
        teaching: how it is asked.
        answered: turns by agent and by the attempt, from 1, that brought an answer of use.
    """

    ask: Ask
    teaching: Teaching
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)

    async def __call__(self, prompt: Prompt, request: Request) -> Generation:
        """The first answer of use.

        Raises:
            LeftOutError: there was none.
        """
        name = request.agent.name
        for attempt in itertools.count(1):
            try:
                answer = await self.ask(self._question(prompt, request, attempt))
            except RefusedError as error:
                raise LeftOutError(name, "refused", str(error)) from None
            fault = await _fault(answer, request)
            if fault is None:
                break
            if attempt == self.teaching.attempts:
                raise LeftOutError(name, *fault)
        self.answered[name, attempt] += 1
        return Generation((), (), (), answer.text.strip(), finished=True)

    def _question(self, prompt: Prompt, request: Request, attempt: int) -> Question:
        agent, sample, teaching = request.agent, request.board.sample, self.teaching
        return Question(
            WrittenPrompts.text(prompt) + told(sample),
            teaching.tokens or agent.settings.tokens,
            teaching.temperature,
            derived_seed(request.seed, "attempt", attempt),
            agent.pattern(request.board) if teaching.structured else "",
        )


def told(sample: AffectSample) -> str:
    """What a teacher is told of a sample: all labels of an open set, one of several on which raters tie.

    Raises:
        AffectError: the sample is not for training.
    """
    if sample.split != "train":
        raise AffectError(
            f"sample {sample.id}: is of {sample.split}, whose labels no teacher is told; give train samples"
        )
    labels = sample.labels if sample.label_kind == "open" else sample.labels[:1]
    return TOLD.filled(labels=", ".join(labels)).in_full(sample.language)


async def _fault(answer: Answer, request: Request) -> tuple[Cause, str] | None:
    """What is wrong with an answer, as its agent reads it; None: nothing.

    The team's answer must score no less than the one that the agent itself would demonstrate, who knows the truth.
    """
    agent, board = request.agent, request.board
    reading = agent.read(answer.text, board)
    if not answer.finished:
        return "length", "the answer did not end within its token limit"
    if reading.problem:
        return "format", reading.problem
    if "output" in agent.writes:
        right = agent.read(agent.demonstrate(board, careful=True), board).writes["output"]
        named, score = reading.writes["output"], agent.task.score
        if await score(named, board.sample) < await score(right, board.sample):
            return "label", f"names {', '.join(named.labels)}, not {', '.join(right.labels)}"
    return None


class WrittenPrompts(Prompts):
    """Builds the same prompts in words, for who is no policy: their tokens are characters.

    Instructions are in full, evidence is whole, and the sample's description stands for its voice and face.
    """

    def __init__(self) -> None:
        super().__init__(_Characters(), soft_tokens=0, context=sys.maxsize, evidence_tokens=sys.maxsize, wording="full")

    @staticmethod
    def text(prompt: Prompt) -> str:
        """A prompt's words."""
        return "".join(map(chr, prompt.token_ids))

    def _perceived(self, sample: AffectSample) -> tuple[int, ...]:
        return self._encode_cached(f" {' '.join(sample.description.split()) or 'not described'}")

    def _tail(self, note: str, percept: Percept | None, instruction: str, sample: AffectSample) -> tuple[int, ...]:
        return super()._tail(note, None, instruction, sample)  # fused features have no words


class _Characters:
    """A tokenizer whose tokens are characters, without special ones."""

    eos_token_id = 0

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(map(ord, text))

    def convert_tokens_to_ids(self, _: str) -> int:
        return 0
