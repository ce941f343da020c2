"""A team: its agents, and the order in which what they read and write lets them act."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ConfigDict, model_validator

from affect_rl.registry import resolve
from affect_rl.section import EVALUATION, SFT, TRAINING, Positive, Section, read_section
from affect_rl.tasks.task import Task
from affect_rl.team.agent import Agent, AgentSettings, EpisodeSettings
from affect_rl.team.filter import Filter, SilverFilter
from affect_rl.team.generator import Generator
from affect_rl.team.planner import LabellingPlanner, Planner

AGENTS: Mapping[str, type[Agent]] = {
    "planner": Planner,
    "labelling_planner": LabellingPlanner,
    "filter": Filter,
    "silver_filter": SilverFilter,
    "generator": Generator,
}
"""Our own agents by kind."""

PERCEIVE, SEARCH = "perceive", "search"
"""Steps of an episode that are no agent's: the neighbours of the sample's features; the evidence for the queries."""
UTTERANCE, ORDER = "utterance", "order"
"""What is done where no agent does it: the utterance as every query; the first of each group in retrieval order."""


class TeamConfig(Section, affects=(SFT, TRAINING, EVALUATION)):
    """The agents, each with a section of its own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]

    agents: tuple[str, ...] = ("planner", "filter", "generator")
    """Who plays, in this order; somebody must give the team's answer. Without a planner the utterance is the query of
    every group, without a filter retrieval order decides. Each agent's settings stand under its name."""
    rounds: Positive = 1
    """How often the planner searches; from the second round on it sees what came back."""
    retrieval: bool = True
    """False: nothing is retrieved, and agents that need evidence do not play."""

    @model_validator(mode="before")
    @classmethod
    def _read_agents(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        own = {name: value for name, value in tree.items() if name in cls.model_fields}
        agents = own.get("agents", cls.model_fields["agents"].default)
        if not isinstance(agents, list | tuple):
            raise ValueError(f"team.agents: expected a list of names (given: {agents!r})")
        names = [name for name in tree if name not in own]
        names += [name for name in (*AGENTS, *agents) if name not in names and name in (*agents, *_COMMON)]
        return own | {name: _agent_settings(name, tree.get(name, {})) for name in names}

    @model_validator(mode="after")
    def _plays(self) -> Self:
        if len(set(self.agents)) < len(self.agents):
            raise ValueError(f"agents={list(self.agents)} names one twice; an agent that speaks again has rounds")
        if "output" not in {slot for name in self.playing for slot in agent_class(name, self[name]).writes}:
            raise ValueError(f"agents={list(self.agents)} lacks one that answers; add generator")
        rates: dict[str, float | None] = {}
        for name, adapter in self.adapters.items():
            if rates.setdefault(adapter, self[name].lr) != self[name].lr:
                raise ValueError(f"{name}: agents that share adapter={adapter} have one learning rate; give all one lr")
        return self

    def __getitem__(self, name: str) -> AgentSettings:
        """The settings of an agent."""
        return self.__pydantic_extra__[name]

    def with_agent(self, name: str, **changes: Any) -> Self:
        """The team with other settings of one agent."""
        return self.model_copy(update={name: self[name].model_copy(update=changes)})

    @property
    def playing(self) -> tuple[str, ...]:
        """The agents that play."""
        return tuple(
            name for name in self.agents if self.retrieval or not agent_class(name, self[name]).needs_retrieval
        )

    @property
    def trained(self) -> tuple[str, ...]:
        """The agents that play and learn, in their order."""
        return tuple(name for name in self.playing if self[name].trains)

    @property
    def adapters(self) -> dict[str, str]:
        """The adapter of each agent that trains."""
        return {name: self[name].adapter for name in self.trained}

    @property
    def frozen(self) -> tuple[str, ...]:
        """The agents that play with a policy that does not change."""
        return tuple(name for name in self.playing if self[name].policy)


_COMMON = ("planner", "filter", "generator")
"""Agents that have settings in every team, whether they play or not."""


def agent_class(name: str, settings: AgentSettings) -> type[Agent]:
    """The class behind an agent's name and settings."""
    return resolve(settings.kind or name, AGENTS, Agent, "agent")  # type: ignore[type-abstract]


def _agent_settings(name: str, given: Any) -> AgentSettings:
    """An agent's section, read as its class says."""
    if isinstance(given, AgentSettings):
        return given
    kind = given.get("kind") if isinstance(given, dict) else None
    near = difflib.get_close_matches(name, TeamConfig.model_fields, n=1)
    if near and not isinstance(given, dict):
        raise ValueError(f"unknown key `team.{name}`; did you mean `{near[0]}`?")
    found = resolve(str(kind or name), AGENTS, Agent, "agent")  # type: ignore[type-abstract]
    return read_section(found.Settings, given, f"team.{name}")


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One thing that happens in an episode.

    Attributes:
        act: the agent that acts, or one of `PERCEIVE`, `SEARCH`, `UTTERANCE`, `ORDER`.
        reads: slots that it needs.
        writes: slots that it fills.
        number: which of the agent's turns it is, from 0.
    """

    act: Agent | str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    number: int = 0


class Team:
    """The agents in play and the steps of their episodes.

    Args:
        config: who plays and how.
        episode: what agents have in common.
        task: what they work on.

    Attributes:
        agents: the agents in play, by name, in their order.
        steps: what happens in an episode. A step reads each slot as the last step before it left it.
    """

    def __init__(self, config: TeamConfig, episode: EpisodeSettings, task: Task) -> None:
        self.config, self.episode, self.task = config, episode, task
        self.agents = {
            name: agent_class(name, config[name])(name, config[name], episode, task) for name in config.playing
        }
        self.steps = tuple(_steps(tuple(self.agents.values()), config.rounds, config.retrieval))
        self._after = {name: self._owed_to(agent) for name, agent in self.agents.items()}

    def source(self, slot: str, before: int) -> int | None:
        """The last of the steps before number `before` that writes a slot; None: nobody does."""
        return next((i for i in reversed(range(before)) if slot in self.steps[i].writes), None)

    def depends(self, index: int, agent: str) -> bool:
        """Whether a step is an agent's own or follows from what the agent wrote."""
        return index in self._after[agent]

    def _owed_to(self, agent: Agent) -> set[int]:
        found: set[int] = set()
        for index, step in enumerate(self.steps):
            if step.act is agent or found & {self.source(slot, index) for slot in step.reads}:
                found.add(index)
        return found

    def texts(self) -> list[str]:
        """Words of all agents' prompts and answers."""
        return [text for agent in self.agents.values() for text in agent.texts()]


def _steps(agents: Sequence[Agent], rounds: int, retrieval: bool) -> Iterator[Step]:
    """The steps of an episode. A search follows queries; what is read and no agent writes is done the simple way."""
    written: set[str] = set()
    if retrieval:
        yield Step(PERCEIVE, (), ("support",))
    for number in range(rounds):
        for agent in agents:
            if number < rounds - 1 and not agent.every_round:
                continue
            if retrieval and "queries" not in agent.writes:
                for step in _simple_way(agent.reads, written):
                    written |= set(step.writes)
                    yield step
            written |= set(agent.writes)
            yield Step(agent, agent.reads, agent.writes, number if agent.every_round else 0)
            if "queries" in agent.writes:
                written.add("candidates")
                yield Step(SEARCH, ("queries", "candidates"), ("candidates",))


def _simple_way(reads: Sequence[str], written: set[str]) -> Iterator[Step]:
    """Steps for what is read and nobody has written."""
    if "kept" in reads and "kept" not in written:
        yield from _simple_way(("candidates",), written)
        yield Step(ORDER, ("candidates",), ("kept",))
    elif "candidates" in reads and not written & {"candidates", "queries"}:
        yield Step(UTTERANCE, (), ("queries",))
        yield Step(SEARCH, ("queries",), ("candidates",))
