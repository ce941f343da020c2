"""A small world, teams by their settings, and a record of what an episode asks of whom."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from affect_rl.config.load import load_config
from affect_rl.config.services import RetrievalConfig
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.evidence import Retrieve
from affect_rl.sample import AffectSample, LabelKind
from affect_rl.tasks import make_task
from affect_rl.team.agent import Request
from affect_rl.team.demonstrations import Annotator
from affect_rl.team.episode import Generate, play_episode
from affect_rl.team.prompts import Prompts
from affect_rl.team.team import Team
from affect_rl.trajectory import Generation, Prompt, Trajectory, Turn

WORLD = synthesise(SynthSettings(train=12, dev=1, test=1, expressions=40, absent=0))
RETRIEVAL = RetrievalConfig(library_splits=("library",))
CAREFUL = ("team.planner.careful=1", "team.filter.careful=1")
DEBATE = (
    "team.agents=[planner, filter, debater, generator]",
    "team.debater.kind=affect_rl.team.debater:Debater",
    "team.debater.careful=1",
)
NONE = "supportive: none\nconfusing: none\ncountering: none"
"""A filter's answer that keeps nothing."""


def make_team(*overrides: str, label_kind: LabelKind = "closed") -> Team:
    """The team of a configuration, two candidates a group, whose demonstrations are careful."""
    config = load_config(None, ["episode.k=2", *CAREFUL, *overrides])
    return Team(config.team, config.episode, make_task(config.task, label_kind))


@dataclass
class Recorder:
    """Plays by rule and remembers what it was asked; `spoken` replaces what an agent says, in any line."""

    generate: Generate
    spoken: Mapping[str | tuple[str, int], str] = field(default_factory=dict)
    calls: list[tuple[Prompt, Request]] = field(default_factory=list)

    @classmethod
    def of(cls, prompts: Prompts, spoken: Mapping[str | tuple[str, int], str] | None = None) -> Recorder:
        return cls(Annotator(prompts), spoken or {})

    async def __call__(self, prompt: Prompt, request: Request) -> Generation:
        self.calls.append((prompt, request))
        answer, name = await self.generate(prompt, request), request.agent.name
        for key in (name, (name, request.number)):
            if key in self.spoken:
                answer = replace(answer, text=self.spoken[key])
        return answer

    def asked(self, line: str) -> list[str]:
        """Who was asked in a line, in order; a line that came to a prompt of another did not ask again."""
        return [request.agent.name for _, request in self.calls if request.line == line]

    def prompts_of(self, agent: str, line: str) -> list[Prompt]:
        return [prompt for prompt, r in self.calls if (r.agent.name, r.line) == (agent, line)]


def play(
    sample: AffectSample,
    team: Team,
    generate: Generate,
    retrieve: Retrieve | None,
    prompts: Prompts,
    *,
    bypasses: bool = True,
    temperature: float | None = None,
    critic_sees: str = "own",
) -> Trajectory:
    options = {"bypasses": bypasses, "temperature": temperature, "critic_sees": critic_sees}
    return asyncio.run(play_episode(sample, team, generate, retrieve, prompts, 1, **options))  # type: ignore[arg-type]


def turn_of(trajectory: Trajectory, agent: str, number: int = 0) -> Turn:
    (turn,) = [t for t in trajectory.turns if (t.agent, t.number) == (agent, number)]
    return turn
