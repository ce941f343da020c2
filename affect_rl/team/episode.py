"""One episode of a team, and the same episode without each agent that has a bypass, which is what scores that agent.

A coroutine that knows only the interfaces `Generate` and `Retrieve`. Nothing in it waits for another episode; within
it, each step waits for what it reads and for nothing else. An episode has *lines*: the whole team's (`FULL`), and for
each agent with a bypass a line in which the bypass stands in its place and the rest is played again. Steps that owe
nothing to that agent are common to both lines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from affect_rl.evidence import Exclusion, Retrieve
from affect_rl.sample import AffectSample
from affect_rl.seeds import derived_seed
from affect_rl.team.agent import Agent, Request, Writes
from affect_rl.team.board import NOTHING, Board, Found, first
from affect_rl.team.knowledge import knowledge, note
from affect_rl.team.planner import whole_utterance
from affect_rl.team.prompts import Prompts
from affect_rl.team.rewards import rewarded
from affect_rl.team.team import ORDER, PERCEIVE, UTTERANCE, Team
from affect_rl.trajectory import FULL, Generation, Output, Percept, Prompt, Trajectory, Turn


class Generate(Protocol):
    """What an episode needs of an engine."""

    async def __call__(self, prompt: Prompt, request: Request) -> Generation: ...


OnStep = Callable[[str, Writes], None]
"""Is told the name of a step of the whole team once it is done, and what it wrote on the board."""


@dataclass(slots=True)
class Episode:
    """One episode and what has happened in it so far.

    Attributes:
        sample: as the team sees it.
        team: who plays.
        generate: the engine.
        retrieve: the retrieval service; None: the team plays without.
        prompts: what prompts are built with.
        seed: of all generations.
        bypasses: whether agents are also played without.
        temperature: of all generations; None: each agent's own.
        critic_sees: what a separate critic reads beside an agent's prompt, see `affect_rl.team.knowledge`.
        on_step: for somebody who watches.
    """

    sample: AffectSample
    team: Team
    generate: Generate
    retrieve: Retrieve | None
    prompts: Prompts
    seed: int
    bypasses: bool = True
    temperature: float | None = None
    critic_sees: str = "own"
    on_step: OnStep | None = None
    degraded: bool = False
    _group: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup)
    _done: dict[tuple[str, int], asyncio.Task[Writes]] = field(default_factory=dict)
    _spoken: list[tuple[str, int, float, Prompt, asyncio.Task[Generation]]] = field(default_factory=list)
    _turns: list[Turn] = field(default_factory=list)

    async def play(self) -> Trajectory:
        """Play all lines to their ends; after a failure nothing of the episode goes on."""
        try:
            async with self._group as group:
                ends = {line: group.create_task(self._output(line)) for line in self._lines()}
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return await self._trajectory({line: end.result() for line, end in ends.items()})

    def _lines(self) -> list[str]:
        """The lines to play: the team's own, and those of learning agents that are paid for what they are worth."""
        scored = [a.name for a in self.team.agents.values() if a.can_be_bypassed and a.settings.trains]
        return [FULL, *(name for name in scored if self.bypasses and self.team.agents[name].settings.weight)]

    # -- the steps -------------------------------------------------------------------------------

    async def _output(self, line: str) -> Output:
        return (await self._slots(("output",), line, len(self.team.steps)))["output"]

    async def _slots(self, names: tuple[str, ...], line: str, before: int) -> dict[str, Any]:
        """What stands in slots before step number `before` of a line; slots that nobody has written are left out."""
        sources = {name: self.team.source(name, before) for name in names}
        steps = {index: self._step(line, index) for index in sources.values() if index is not None}
        written = dict(zip(steps, await asyncio.gather(*steps.values()), strict=True))
        return {name: written[index][name] for name, index in sources.items() if index is not None}

    def _step(self, line: str, index: int) -> asyncio.Task[Writes]:
        """What a step writes; in a counterfactual branch that of the full one, unless it follows from the agent."""
        if line != FULL and not self.team.depends(index, line):
            line = FULL
        if (line, index) not in self._done:
            self._done[line, index] = self._group.create_task(self._watched(line, index))
        return self._done[line, index]

    async def _watched(self, line: str, index: int) -> Writes:
        writes = await self._act(line, index)
        if self.on_step and line == FULL:
            act = self.team.steps[index].act
            self.on_step(act.name if isinstance(act, Agent) else act, writes)
        return writes

    async def _act(self, line: str, index: int) -> Writes:
        step = self.team.steps[index]
        if isinstance(step.act, Agent) and step.act.name == line:
            known = await self._slots(step.act.bypass_reads, line, index)
            copied = await self._slots(step.act.bypass_copies, FULL, index + 1)
            return step.act.bypass(Board(self.sample, {**known, **copied})) or {}
        board = Board(self.sample, await self._slots(step.reads, line, index))
        if isinstance(step.act, Agent):
            return (await step.act.act(board, self, step.number, line)).writes
        if step.act == UTTERANCE:
            return {"queries": whole_utterance(self.sample)}
        if step.act == ORDER:
            return {"kept": first(board.candidates, self.team.episode.keep)}
        return await (self._perceive() if step.act == PERCEIVE else self._search(board))

    async def _perceive(self) -> Writes:
        assert self.retrieve is not None
        known = self.sample.without(self.team.episode.absent)  # zeros are no features to search by
        support = await self.retrieve.perceptual(known.audio, known.video, Exclusion.of(self.sample))
        self.degraded |= support.degraded
        return {"support": support}

    async def _search(self, board: Board) -> Writes:
        """What the queries find, ahead of what was found in earlier rounds."""
        assert self.retrieve is not None
        asked = {group: board.queries[group] for group in self.team.episode.groups}
        found = await self.retrieve.cognitive(asked, self.team.episode.k, Exclusion.of(self.sample))
        self.degraded |= found.degraded
        return {"candidates": _joined(found.groups, board.candidates)}

    # -- what agents ask for ---------------------------------------------------------------------

    async def speak(self, agent: Agent, prompt: Prompt, board: Board, number: int, line: str) -> Generation:
        """Let the model answer as `agent`.

        Lines draw the same random numbers: what an agent gains is then due to the agent, and where a line comes to a
        prompt that was played already, its answer is that one's and need not be generated again.
        """
        temperature = agent.settings.temperature if self.temperature is None else self.temperature
        for name, turn, warmth, asked, answer in self._spoken:
            if (name, turn, warmth) == (agent.name, number, temperature) and _equal(asked, prompt):
                return await answer
        turn_name = agent.name if number == 0 else f"{agent.name}-{number + 1}"
        request = Request(agent, board, number, derived_seed(self.seed, turn_name), line, temperature)
        task = self._group.create_task(_awaited(self.generate(prompt, request)))
        self._spoken.append((agent.name, number, temperature, prompt, task))
        return await task

    async def score_with(self, writes: Writes) -> float:
        """Score of the team's answer if its last agent saw `writes` in place of what the board has."""
        last = next(agent for agent in self.team.agents.values() if "output" in agent.writes)
        index = next(i for i, step in enumerate(self.team.steps) if step.act is last)
        reads = tuple(slot for slot in last.reads if slot not in writes)
        board = Board(self.sample, {**await self._slots(reads, FULL, index), **writes})
        generation = await self.speak(last, last.prompt(board, self.prompts), board, 0, "search")
        return await self.team.task.score(last.read(generation.text, board).writes["output"], self.sample)

    def record(
        self, agent: Agent, prompt: Prompt, generation: Generation, problem: str | None, number: int, line: str
    ) -> None:
        """Keep a turn of the full line; those of other lines only serve to score it."""
        if line == FULL:
            temperature = agent.settings.temperature if self.temperature is None else self.temperature
            turn = Turn(agent.name, prompt, generation, problem, number, 0.0, agent.settings.trains, temperature)
            self._turns.append(turn)

    # -- the result ------------------------------------------------------------------------------

    async def _trajectory(self, outputs: Mapping[str, Output]) -> Trajectory:
        scores = {}
        if self.sample.labels:
            scored = await asyncio.gather(*(self.team.task.score(o, self.sample) for o in outputs.values()))
            scores = dict(zip(outputs, scored, strict=True))
        turns = rewarded(sorted(self._turns, key=self._place), scores, self.team.config)
        known = {name: self._final(name) for name in ("queries", "candidates", "kept", "support")}
        return Trajectory(
            sample_id=self.sample.id,
            labels=self.sample.labels,
            turns=tuple(self._told(turn, scores) for turn in turns),
            output=outputs[FULL],
            queries=dict(known["queries"] or {}),
            candidates=dict(known["candidates"] or NOTHING),
            kept=dict(known["kept"] or NOTHING),
            support_ids=known["support"].ids if known["support"] else (),
            bypassed={line: output for line, output in outputs.items() if line != FULL},
            scores=scores,
            degraded=self.degraded,
            generated_tokens=sum(len(task.result().token_ids) for *_, task in self._spoken),
            prompt_tokens=sum(len(prompt.token_ids) for _, _, _, prompt, _ in self._spoken),
        )

    def _final(self, slot: str, before: int | None = None) -> Any:
        """What the full line left in a slot (before a step), or None; a step whose slots nobody read was not taken."""
        index = self.team.source(slot, len(self.team.steps) if before is None else before)
        if index is None or (FULL, index) not in self._done:
            return None
        return self._done[FULL, index].result().get(slot)

    def _told(self, turn: Turn, scores: Mapping[str, float]) -> Turn:
        """A turn with what a critic may know of it: the board as it stood before, and the score without the agent."""
        slots, place = dict.fromkeys(slot for step in self.team.steps for slot in step.writes), self._place(turn)
        before = {name: self._final(name, place) for name in slots}
        board = Board(self.sample, {name: value for name, value in before.items() if value is not None})
        copies = self.team.agents[turn.agent].bypass_copies  # then the score without it hangs on what it said
        without = None if copies else scores.get(turn.agent)
        turn = replace(turn, knowledge=knowledge(board, without))
        if self.critic_sees == "own":
            return turn
        text = note(board, without, self.critic_sees)
        tokens = self.team.config[turn.agent].tokens
        return replace(turn, critic_prompt=self.prompts.annotated(turn.prompt, text, tokens))

    def _place(self, turn: Turn) -> int:
        """Number of the step that a turn is."""
        agent = self.team.agents[turn.agent]
        return next(i for i, s in enumerate(self.team.steps) if s.act is agent and s.number == turn.number)


async def play_episode(
    sample: AffectSample,
    team: Team,
    generate: Generate,
    retrieve: Retrieve | None,
    prompts: Prompts,
    seed: int,
    *,
    bypasses: bool = True,
    temperature: float | None = None,
    critic_sees: str = "own",
    on_step: OnStep | None = None,
) -> Trajectory:
    """Play one episode and reward its agents.

    A malformed answer is replaced by its agent's fallback and costs the agent its format penalty. A sample without
    labels is played and not scored.

    Args:
        sample: what is to be understood.
        team: who plays.
        generate: the engine.
        retrieve: the retrieval service; None is right for teams without retrieval.
        prompts: what prompts are built with.
        seed: seed of all generations of this episode.
        bypasses: also play the counterfactual branches without each agent, which score the agents (training).
        temperature: of all generations, 0: greedily; None: each agent's own.
        critic_sees: what the prompts of a separate critic hold beside the agents' own.
        on_step: is told each step of the whole team.
    """
    settings = team.episode
    seen = sample.without(settings.absent, zeros=settings.zero_absent)
    labelled = bypasses and bool(sample.labels)
    episode = Episode(seen, team, generate, retrieve, prompts, seed, labelled, temperature, critic_sees, on_step)
    return await episode.play()


def _joined(new: Found, old: Found) -> Found:
    """Candidates of two searches, the later ones first; no text, and so no id, stands in two groups."""
    seen = {item.text for items in new.values() for item in items}
    return {g: (*items, *(e for e in old.get(g, ()) if e.text not in seen)) for g, items in new.items()}


async def _awaited(generation: Awaitable[Generation]) -> Generation:
    return await generation


def _equal(a: Prompt, b: Prompt) -> bool:
    """Whether two prompts hold the same tokens and features."""
    return a.token_ids == b.token_ids and all(map(_equal_percepts, a.percepts, b.percepts))


def _equal_percepts(a: Percept, b: Percept) -> bool:
    pairs = [(getattr(a, n), getattr(b, n)) for n in ("audio", "video", "audio_support", "video_support")]
    return a.fused == b.fused and all(x is y or np.array_equal(x, y) for x, y in pairs if not (x is None and y is None))
