"""What a task is: how an answer is asked for and read, what it is worth, and what it is measured by.

The team does not know what it works on: the agent that answers asks its task (`affect_rl.team.generator`), and
everything that compares policies asks the task's `Scoring`. To write one, derive from `Task` in a module of your own
and name it in the configuration; docs/extending.md walks through it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from affect_rl.evidence import Evidence, Group
from affect_rl.sample import AffectSample
from affect_rl.scoring.scoring import Scoring
from affect_rl.scoring.wheels import Wheels
from affect_rl.section import EVALUATION, SCORES, SFT, TRAINING, Section
from affect_rl.trajectory import Output
from affect_rl.wording import Wording


class TaskSettings(Section, affects=(SFT, TRAINING, EVALUATION, SCORES)):
    """Settings that every task has; a task's class may add its own."""

    name: str = ""
    """Which task: a name of `affect_rl.tasks.TASKS`, or ``module:Class``; empty: as the dataset's labels are,
    ``closed``, ``open`` or ``sentiment``."""


class Task(ABC):
    """One task.

    Attributes:
        instruction: what the agent that answers is told, after the sample and the evidence; it ends with a new line.
        Settings: class of its settings.
    """

    instruction: ClassVar[Wording | str]
    Settings: ClassVar[type[TaskSettings]] = TaskSettings

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings

    def instruct(self, sample: AffectSample) -> Wording | str:
        """The instruction for a sample, with an example that its labels allow."""
        return self.instruction

    @abstractmethod
    def read(self, text: str, sample: AffectSample) -> Output:
        """Understand an answer. It never raises: a malformed one is an `Output` with a problem and no labels."""

    def pattern(self, sample: AffectSample, tokens: int) -> str:
        """A regular expression of answers of at most `tokens` tokens that can be read; empty: any text."""
        return ""

    @abstractmethod
    async def score(self, output: Output, sample: AffectSample) -> float:
        """What an answer is worth, in [0, 1]; S of equations 1 to 3. A judge may be asked, so it can be awaited.

        It is not called for a sample without labels.
        """

    @abstractmethod
    def scoring(self, samples: Sequence[AffectSample], wheels: Wheels | None = None) -> Scoring:
        """The metrics of `Output.labels` of answers to `samples`, with the published emotion wheels if asked for.

        Raises:
            AffectError: the samples do not fit the task.
        """

    @abstractmethod
    def demonstrate(self, sample: AffectSample, kept: Mapping[Group, tuple[Evidence, ...]]) -> str:
        """What an annotator who knows the truth would answer, given the evidence that was kept (for the warm start)."""

    def texts(self) -> list[str]:
        """Words of its answers that a tokenizer trained from nothing must know."""
        return []
