"""One episode: planner, retriever, filter, generator, and the two counterfactuals that score the first two.

A coroutine that knows only the interfaces `Generate` and `Retrieve`. Nothing in it waits for another
episode; within it, whatever does not depend on each other runs at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from affect_rl.config.sections import EpisodeConfig, RewardConfig
from affect_rl.evidence import GROUPS, CognitiveResult, Evidence, Exclusion, Group, Retrieve, Support
from affect_rl.sample import AffectSample, Modality
from affect_rl.seeds import derived_seed
from affect_rl.team.parsers import Answer, Plan, parse_answer, parse_plan, parse_selection
from affect_rl.team.prompts import Prompts
from affect_rl.team.rewards import agent_rewards, score
from affect_rl.trajectory import Generate, Generation, Percept, Prompt, Purpose, Request, Role, Trajectory, Turn

NOTHING: Mapping[Group, tuple[Evidence, ...]] = dict.fromkeys(GROUPS, ())


@dataclass(slots=True)
class Episode:
    """One episode and what has happened in it so far."""

    sample: AffectSample
    generate: Generate
    retrieve: Retrieve | None
    prompts: Prompts
    config: EpisodeConfig
    rewards: RewardConfig
    seed: int
    support: Support = field(default_factory=Support)
    turns: list[Turn] = field(default_factory=list)
    generated_tokens: int = 0
    prompt_tokens: int = 0
    degraded: bool = False

    async def play(self) -> Trajectory:
        if self.retrieve is None:
            return await self._play_alone()
        support_task = asyncio.ensure_future(self._perceive(self.retrieve))
        plan_task = asyncio.ensure_future(self._plan())
        label_task = asyncio.ensure_future(self._label_counterfactual(self.retrieve, support_task, plan_task))
        tasks: list[asyncio.Future[Any]] = [support_task, plan_task, label_task]
        try:
            queries = (await plan_task).queries
            candidates = await self._search(self.retrieve, queries)
            await support_task
            rank_task = asyncio.ensure_future(self._rank_counterfactual(candidates))
            tasks.append(rank_task)
            kept = await self._filter(candidates, "full")
            answer = await self._answer(kept, "full")
            counterfactuals = {"label": await label_task, "rank": await rank_task}
        finally:  # after a failure nothing of the episode goes on
            for task in tasks:
                task.cancel()
        played = {name: labels for name, labels in counterfactuals.items() if labels is not None}
        return self._trajectory(answer, played, queries, candidates, kept)

    async def _play_alone(self) -> Trajectory:
        answer = await self._answer(NOTHING, "full")
        return self._trajectory(answer, {}, {}, NOTHING, NOTHING)

    # -- the agents ------------------------------------------------------------------------------

    async def _plan(self) -> Plan:
        if "planner" not in self.config.agents:
            return Plan(dict.fromkeys(GROUPS, self.sample.text))
        with_label = self.config.planner_label
        prompt = self.prompts.planner(self.sample, self.config.limit("planner"), with_label=with_label)
        generation = await self._generate(prompt, "planner", NOTHING, "full")
        plan = parse_plan(generation.text, self.sample, with_label=with_label)
        self._record("planner", prompt, generation, plan.problem, "full")
        return plan

    async def _filter(
        self, candidates: Mapping[Group, tuple[Evidence, ...]], purpose: Purpose
    ) -> Mapping[Group, tuple[Evidence, ...]]:
        if "filter" not in self.config.agents:
            return self._first(candidates)
        prompt = self.prompts.filter(self.sample, candidates, self.config.limit("filter"))
        generation = await self._generate(prompt, "filter", candidates, purpose)
        selection = parse_selection(generation.text, candidates, self.config.keep)
        self._record("filter", prompt, generation, selection.problem, purpose)
        return selection.kept

    async def _answer(self, kept: Mapping[Group, tuple[Evidence, ...]], purpose: Purpose) -> Answer:
        prompt = self.prompts.generator(self.sample, kept, self._view(), self.config.limit("generator"))
        generation = await self._generate(prompt, "generator", kept, purpose)
        answer = parse_answer(generation.text, self.sample)
        self._record("generator", prompt, generation, answer.problem, purpose)
        return answer

    async def _generate(
        self, prompt: Prompt, role: Role, evidence: Mapping[Group, tuple[Evidence, ...]], purpose: Purpose
    ) -> Generation:
        # A counterfactual draws the same random numbers as what it is compared with: the gain is then due to the agent.
        # Where filter and ranking keep the same evidence it is exactly 0, not the difference of two draws.
        request = Request(role, self.sample, evidence, derived_seed(self.seed, role), purpose)
        generation = await self.generate(prompt, request)
        self.prompt_tokens += len(prompt.token_ids)
        self.generated_tokens += len(generation.token_ids)
        return generation

    def _record(
        self, role: Role, prompt: Prompt, generation: Generation, problem: str | None, purpose: Purpose
    ) -> None:
        """Keep a turn of the episode itself; those of counterfactuals only serve to score it."""
        if purpose != "full":
            return
        if problem is None and not generation.finished:
            problem = "the answer did not end within its token limit"
        self.turns.append(Turn(role, prompt, generation, problem, trained=role in self.config.learning))

    # -- evidence --------------------------------------------------------------------------------

    def _first(self, candidates: Mapping[Group, tuple[Evidence, ...]]) -> Mapping[Group, tuple[Evidence, ...]]:
        """What retrieval order alone would keep."""
        return {group: items[: self.config.keep] for group, items in candidates.items()}

    async def _search(self, retrieve: Retrieve, queries: Mapping[Group, str]) -> Mapping[Group, tuple[Evidence, ...]]:
        asked = {group: queries[group] for group in self.config.groups}
        found: CognitiveResult = await retrieve.cognitive(asked, self.config.k, Exclusion.of(self.sample))
        self.degraded |= found.degraded
        return found.groups

    async def _perceive(self, retrieve: Retrieve) -> None:
        known = self.sample.without(self.config.absent)  # zeros are no features to search by
        self.support = await retrieve.perceptual(known.audio, known.video, Exclusion.of(self.sample))
        self.degraded |= self.support.degraded

    def _view(self) -> Percept:
        """The sample's features and their support, as the generator gets them."""
        audio, audio_support = self._with_support("audio", self.sample.audio, self.support.audio)
        video, video_support = self._with_support("video", self.sample.video, self.support.video)
        return Percept(audio, video, audio_support, video_support, fused=True)

    def _with_support(
        self, modality: Modality, own: np.ndarray | None, neighbours: np.ndarray | None
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Frames of one modality and what RAAF is to fuse them with."""
        lacking = own is None or modality in self.config.absent  # zeros are no features
        use = (self.config.stand_in if lacking else "") or self.config.support
        if use == "direct":
            return _joined(own, neighbours), None
        return own, neighbours if use == "raaf" else None

    # -- counterfactuals -------------------------------------------------------------------------

    async def _label_counterfactual(
        self, retrieve: Retrieve, support_task: asyncio.Future[None], plan_task: asyncio.Future[Plan]
    ) -> tuple[str, ...] | None:
        """Labels predicted when the planner's queries are replaced by one simple label; None if it is not played.

        The label is the plurality of the perceptual neighbours' labels. It owes nothing to the
        planner, which therefore cannot raise its reward by spoiling it (unless ``planner_label`` asks for that).
        """
        if not (self.config.counterfactuals and "planner" in self.config.agents):
            return None
        await support_task
        named = (await plan_task).label if self.config.planner_label else None
        label = named or simple_label(self.sample, self.support)
        candidates = await self._search(retrieve, dict.fromkeys(GROUPS, label))
        answer = await self._answer(await self._filter(candidates, "label"), "label")
        return answer.labels

    async def _rank_counterfactual(self, candidates: Mapping[Group, tuple[Evidence, ...]]) -> tuple[str, ...] | None:
        """Labels predicted when the filter is bypassed and retrieval order decides; None if it is not played."""
        if not (self.config.counterfactuals and "filter" in self.config.agents):
            return None
        answer = await self._answer(self._first(candidates), "rank")
        return answer.labels

    # -- the result ------------------------------------------------------------------------------

    def _trajectory(
        self,
        answer: Answer,
        counterfactuals: Mapping[str, tuple[str, ...]],
        queries: Mapping[Group, str],
        candidates: Mapping[Group, tuple[Evidence, ...]],
        kept: Mapping[Group, tuple[Evidence, ...]],
    ) -> Trajectory:
        answers = {"full": answer.labels, **counterfactuals}
        scores = {name: score(labels, self.sample, self.rewards.kind) for name, labels in answers.items()}
        earned = agent_rewards(
            scores,
            {turn.role: turn.problem is not None for turn in self.turns},
            {turn.role: len(turn.generation.token_ids) / self.config.limit(turn.role) for turn in self.turns},
            planner_weight=self.rewards.planner_weight,
            filter_weight=self.rewards.filter_weight,
            format_penalty=self.rewards.format_penalty,
            length_penalty=self.rewards.length_penalty,
        )
        return Trajectory(
            sample_id=self.sample.id,
            labels=self.sample.labels,
            turns=tuple(replace(turn, reward=earned[turn.role]) for turn in self.turns),
            queries=dict(queries),
            candidates=dict(candidates),
            kept=dict(kept),
            support_ids=self.support.ids,
            predicted=answer.labels,
            rationale=answer.rationale,
            counterfactuals=dict(counterfactuals),
            scores=scores,
            degraded=self.degraded,
            generated_tokens=self.generated_tokens,
            prompt_tokens=self.prompt_tokens,
        )


async def play_episode(
    sample: AffectSample,
    generate: Generate,
    retrieve: Retrieve | None,
    prompts: Prompts,
    config: EpisodeConfig,
    rewards: RewardConfig,
    seed: int,
    kind: type[Episode] = Episode,
) -> Trajectory:
    """Play one episode and reward its agents.

    Without a retriever (or with ``config.retrieval`` off) the generator answers alone. Without the planner among
    ``config.agents`` the utterance is every query, without the filter retrieval order decides. A malformed answer
    is replaced by its role's fallback and costs its agent the format penalty.

    Args:
        sample: what is to be understood.
        generate: the engine.
        retrieve: the retrieval service.
        prompts: the templates.
        config: token limits, agents and groups in play, counterfactuals.
        rewards: weights of the counterfactuals and penalties.
        seed: seed of all generations of this episode.
        kind: `Episode`, or one whose agents act otherwise (`affect_rl.team.silver`).
    """
    retriever = retrieve if config.retrieval else None
    seen = sample.without(config.absent, zeros=config.zero_absent)
    return await kind(seen, generate, retriever, prompts, config, rewards, seed).play()


def simple_label(sample: AffectSample, support: Support) -> str:
    """Plurality of the neighbours' labels (ties: the nearest's); the first candidate or ``emotion`` without any."""
    counts = Counter(label for labels in support.labels for label in labels)
    if counts:
        return counts.most_common(1)[0][0]
    return sample.candidates[0] if sample.candidates else "emotion"


def _joined(own: np.ndarray | None, neighbours: np.ndarray | None) -> np.ndarray | None:
    """The neighbours' frames behind the sample's own ``[T + S, d]``; None if there are none at all."""
    frames = [x for x in (own, neighbours) if x is not None]
    return np.concatenate(frames) if frames else None
