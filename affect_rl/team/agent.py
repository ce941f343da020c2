"""What an agent is: what it reads, what it asks the model, how its answer is understood, and what stands in for it.

A team is a list of agents (`affect_rl.team.team`); the episode plays any team (`affect_rl.team.episode`). To write
one, derive from `Agent` in a module of your own and name it in the configuration; docs/extending.md walks through it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from affect_rl.evidence import GROUPS, Group
from affect_rl.sample import Modality
from affect_rl.section import (
    EVALUATION,
    SFT,
    TRAINING,
    Affects,
    Fraction,
    NonNegative,
    Positive,
    Section,
)
from affect_rl.tasks.task import Task
from affect_rl.team.board import Board
from affect_rl.trajectory import Prompt

if TYPE_CHECKING:
    from affect_rl.team.episode import Episode
    from affect_rl.team.prompts import Prompts

Writes = Mapping[str, Any]
"""What an agent puts on the board, by slot."""


class AgentSettings(Section, affects=(SFT, TRAINING, EVALUATION)):
    """Settings that every agent has; an agent's class may add its own."""

    kind: str = ""
    """Which agent it is: a name of `affect_rl.team.AGENTS`, or ``module:Class``; empty: the one of its own name."""
    tokens: Positive = 48
    """Longest answer, in tokens."""
    weight: Annotated[NonNegative, Affects(TRAINING)] = 0.5
    """lambda of equations 2 and 3: how much the agent is paid for what it is worth, ``S_full - S_without_it``. 0: that
    is not played."""
    trains: Annotated[bool, Affects(TRAINING)] = True
    """Whether it learns."""
    temperature: Annotated[NonNegative, Affects(TRAINING)] = 1.0
    """Sampling temperature of training episodes; 0: greedily. Evaluation is greedy unless told otherwise."""
    entropy: Annotated[NonNegative, Affects(TRAINING)] = 0.0
    """Weight of the entropy bonus."""
    policy: Annotated[str, Affects(TRAINING, EVALUATION)] = ""
    """What it plays with: empty: the weights in training; ``start``: those that training began with; or the directory
    of a policy. The last two have an engine of their own and cannot train."""
    adapter: str = "team"
    """Name of its LoRA adapter; agents that name the same one share it."""
    lr: Annotated[NonNegative | None, Affects(TRAINING)] = None
    """Learning rate of its adapter, if it has one for itself; None: ``learner.lr``."""
    careful: Annotated[Fraction, Affects(SFT)] = 0.5
    """Share of its demonstrations that are careful; the others follow habit, see `affect_rl.team.demonstrations`."""
    demonstrated: Annotated[Fraction, Affects(SFT)] = 1.0
    """Share of the demonstrated episodes whose turns of it the warm start learns. One who has little more to learn than
    a format needs few, and leaves the time to others."""
    format_penalty: Annotated[NonNegative, Affects(TRAINING)] = 0.5
    """Taken from its reward for an answer that cannot be read."""
    length_penalty: Annotated[NonNegative, Affects(TRAINING)] = 0.0
    """Taken from its reward for an answer as long as its limit, and less in proportion for a shorter one."""

    @model_validator(mode="after")
    def _can_train(self) -> Self:
        if self.trains and self.policy:
            raise ValueError(f"policy={self.policy} does not change, so it cannot train; set trains: false")
        if self.trains and not self.temperature:
            raise ValueError("temperature=0 never tries anything, so it cannot train; raise it or set trains: false")
        return self


class EpisodeSettings(Section, affects=(SFT, TRAINING, EVALUATION)):
    """What all agents of an episode have in common: the sample as they see it, and the evidence."""

    k: Positive = 3
    """Candidates per group."""
    keep: Positive = 1
    """Evidence the filter may keep per group; at most `k`."""
    evidence_tokens: Positive = 32
    """Longest one piece of evidence may be in a prompt; the sample itself is never cut."""
    groups: tuple[Group, ...] = GROUPS
    """Groups of evidence in play."""
    absent: tuple[Modality, ...] = ()
    """Modalities withheld from agents and search, to see what their loss costs."""
    wording: Literal["auto", "short", "full"] = "auto"
    """What agents are told: their tasks in full, with format and example, or in a line each. ``auto``: in full if the
    model has a chat template, that is, has been taught to follow instructions."""
    described: bool = False
    """Tell all agents the sample's description, beside its text and soft tokens. For descriptions that are made of the
    input (``affect-rl data describe``, CREMA-D's, MELD's): one by somebody who knew the label would give it away."""
    zero_absent: bool = False
    """Show zeros where audio or video is withheld, instead of telling that it is missing."""
    dropout: Annotated[Fraction, Affects(SFT, TRAINING)] = 0.0
    """Chance that voice or face is withheld from an episode of the warm start or of training, where there are both. So
    an agent learns to do without, and RAAF to stand in."""

    @model_validator(mode="after")
    def _has_evidence(self) -> Self:
        if self.keep > self.k:
            raise ValueError(f"keep={self.keep} exceeds k={self.k}; lower keep or raise k")
        if not self.groups:
            raise ValueError("groups is empty; name at least one of supportive, confusing, countering")
        return self


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer was understood as.

    Attributes:
        writes: what goes on the board; the agent's fallback if the answer was unusable.
        problem: why it was unusable, or None.
    """

    writes: Writes
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What a generation is asked for: everything but the prompt's token ids, for humans and rules.

    Attributes:
        agent: who speaks.
        board: what it knows.
        number: which of its turns it is, from 0.
        seed: of this generation.
        line: `FULL`, or the name of the agent that this line of the episode is played without.
        temperature: to sample at; 0: greedily.
    """

    agent: Agent
    board: Board
    number: int
    seed: int
    line: str
    temperature: float


class Agent(ABC):
    """One agent of a team.

    Attributes:
        reads: slots that its prompt and its reader need; they decide what it waits for.
        writes: slots that `read` and `bypass` fill.
        bypass_reads: slots that `bypass` needs, as the counterfactual branch without the agent has them.
        bypass_copies: slots of its own that `bypass` needs, as the agent filled them. Its reward then hangs on what it
            says there, and it may earn more by spoiling it; published code does so.
        needs_retrieval: it plays only in teams with retrieval.
        every_round: it speaks once in each of the team's rounds, others in the last one alone.
        Settings: class of its settings.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]]
    bypass_reads: ClassVar[tuple[str, ...]] = ()
    bypass_copies: ClassVar[tuple[str, ...]] = ()
    needs_retrieval: ClassVar[bool] = True
    every_round: ClassVar[bool] = False
    Settings: ClassVar[type[AgentSettings]] = AgentSettings

    def __init__(self, name: str, settings: AgentSettings, episode: EpisodeSettings, task: Task) -> None:
        self.name, self.settings, self.episode, self.task = name, settings, episode, task

    @abstractmethod
    def prompt(self, board: Board, prompts: Prompts) -> Prompt:
        """What it sees of the board, as tokens."""

    @abstractmethod
    def read(self, text: str, board: Board) -> Reading:
        """Understand its answer; a malformed one is a `Reading` with a fallback and a problem, never an error."""

    @abstractmethod
    def demonstrate(self, board: Board, *, careful: bool) -> str:
        """What an annotator who knows the truth would answer, carefully or by habit (for the warm start)."""

    def bypass(self, board: Board) -> Writes | None:
        """What its slots would hold without it, from a board of `bypass_reads` and `bypass_copies`. The default, None,
        says that the agent has no bypass: it is paid for the team's score alone.
        """
        return None

    def pattern(self, board: Board) -> str:
        """A regular expression of answers that can be read, for engines that are held to it; empty: any text."""
        return ""

    def texts(self) -> list[str]:
        """Words of its prompts and answers that a tokenizer trained from nothing must know."""
        return []

    async def act(self, board: Board, episode: Episode, number: int, line: str) -> Reading:
        """Take a turn. Override it for an agent that does not ask the model."""
        prompt = self.prompt(board, episode.prompts)
        generation = await episode.speak(self, prompt, board, number, line)
        reading = self.read(generation.text, board)
        if reading.problem is None and not generation.finished:
            reading = Reading(reading.writes, "the answer did not end within its token limit")
        episode.record(self, prompt, generation, reading.problem, number, line)
        return reading

    @property
    def can_be_bypassed(self) -> bool:
        return type(self).bypass is not Agent.bypass
