"""One episode: planner, retriever, filter, generator, and the two counterfactuals that score the first two.

A coroutine that knows only the interfaces `Generate` and `Retrieve`. Nothing in it waits for another
episode; within it, whatever does not depend on each other runs at once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from affect_rl.config import EpisodeConfig, RewardConfig
from affect_rl.evidence import GROUPS, Cognitive, Evidence, Exclusion, Group, Retrieve, Support
from affect_rl.parsers import Answer, Plan, Selection, parse_answer, parse_plan, parse_selection
from affect_rl.prompts import Prompts
from affect_rl.rewards import agent_rewards, score
from affect_rl.sample import AffectSample
from affect_rl.trajectory import Generate, Generation, Prompt, Request, Role, Trajectory, Turn

Purpose = Literal["full", "label", "rank"]
NOTHING: Mapping[Group, tuple[Evidence, ...]] = dict.fromkeys(GROUPS, ())


async def play_episode(
    sample: AffectSample,
    generate: Generate,
    retrieve: Retrieve | None,
    prompts: Prompts,
    config: EpisodeConfig,
    rewards: RewardConfig,
    seed: int,
) -> Trajectory:
    """Play one episode and reward its agents.

    Without a retriever (or with ``config.retrieval`` off) the generator answers alone. A malformed
    answer is replaced by its role's fallback and costs its agent the format penalty.

    Args:
        sample: what is to be understood.
        generate: the engine.
        retrieve: the retrieval service.
        prompts: the templates.
        config: token limits, groups kept, counterfactuals.
        rewards: weights of the counterfactuals and the format penalty.
        seed: seed of all generations of this episode.
    """
    retriever = retrieve if config.retrieval else None
    return await _Episode(sample, generate, retriever, prompts, config, rewards, seed).play()


@dataclass(slots=True)
class _Episode:
    sample: AffectSample
    generate: Generate
    retrieve: Retrieve | None
    prompts: Prompts
    config: EpisodeConfig
    rewards: RewardConfig
    seed: int
    generated_tokens: int = 0
    prompt_tokens: int = 0
    degraded: bool = False

    async def play(self) -> Trajectory:
        if self.retrieve is None:
            return await self._play_alone()
        support_task = asyncio.ensure_future(self._perceive(self.retrieve))
        label_task = asyncio.ensure_future(self._label_counterfactual(self.retrieve, support_task))
        tasks: list[asyncio.Future[Any]] = [support_task, label_task]
        try:
            planner_turn, plan = await self._plan()
            candidates = await self._search(self.retrieve, plan.queries)
            support = await support_task
            rank_task = asyncio.ensure_future(self._rank_counterfactual(candidates, support))
            tasks.append(rank_task)
            filter_turn, selection = await self._filter(candidates, "full")
            generator_turn, answer = await self._answer(selection.kept, support, "full")
            counterfactuals = await asyncio.gather(label_task, rank_task)
        finally:  # after a failure nothing of the episode goes on
            for task in tasks:
                task.cancel()
        answers = {"full": answer.labels}
        if self.config.counterfactuals:
            answers |= dict(zip(("label", "rank"), counterfactuals, strict=True))
        return self._trajectory(
            (planner_turn, filter_turn, generator_turn),
            answers,
            answer,
            plan.queries,
            candidates,
            selection.kept,
            support,
        )

    async def _play_alone(self) -> Trajectory:
        turn, answer = await self._answer(NOTHING, Support(), "full")
        return self._trajectory((turn,), {"full": answer.labels}, answer, {}, NOTHING, NOTHING, Support())

    # -- the agents ------------------------------------------------------------------------------

    async def _plan(self) -> tuple[Turn, Plan]:
        prompt = self.prompts.planner(self.sample, self.config.planner_tokens)
        generation = await self._generate(prompt, "planner", NOTHING, "full")
        plan = parse_plan(generation.text, self.sample)
        return self._turn("planner", prompt, generation, plan.problem), plan

    async def _filter(
        self, candidates: Mapping[Group, tuple[Evidence, ...]], purpose: Purpose
    ) -> tuple[Turn, Selection]:
        prompt = self.prompts.filter(self.sample, candidates, self.config.filter_tokens)
        generation = await self._generate(prompt, "filter", candidates, purpose)
        selection = parse_selection(generation.text, candidates, self.config.keep)
        return self._turn("filter", prompt, generation, selection.problem), selection

    async def _answer(
        self, kept: Mapping[Group, tuple[Evidence, ...]], support: Support, purpose: Purpose
    ) -> tuple[Turn, Answer]:
        prompt = self.prompts.generator(self.sample, kept, support, self.config.generator_tokens)
        generation = await self._generate(prompt, "generator", kept, purpose)
        answer = parse_answer(generation.text, self.sample)
        return self._turn("generator", prompt, generation, answer.problem), answer

    async def _generate(
        self, prompt: Prompt, role: Role, evidence: Mapping[Group, tuple[Evidence, ...]], purpose: Purpose
    ) -> Generation:
        request = Request(role, self.sample, evidence, _seed(self.seed, role), purpose)
        generation = await self.generate(prompt, request)
        self.prompt_tokens += len(prompt.token_ids)
        self.generated_tokens += len(generation.token_ids)
        return generation

    @staticmethod
    def _turn(role: Role, prompt: Prompt, generation: Generation, problem: str | None) -> Turn:
        if problem is None and not generation.finished:
            problem = "the answer did not end within its token limit"
        return Turn(role, prompt, generation, problem)

    # -- evidence --------------------------------------------------------------------------------

    async def _search(self, retrieve: Retrieve, queries: Mapping[Group, str]) -> Mapping[Group, tuple[Evidence, ...]]:
        found: Cognitive = await retrieve.cognitive(queries, Exclusion.of(self.sample))
        self.degraded |= found.degraded
        return found.groups

    async def _perceive(self, retrieve: Retrieve) -> Support:
        support = await retrieve.perceptual(self.sample.audio, self.sample.video, Exclusion.of(self.sample))
        self.degraded |= support.degraded
        return support

    # -- counterfactuals -------------------------------------------------------------------------

    async def _label_counterfactual(self, retrieve: Retrieve, support_task: asyncio.Future[Support]) -> tuple[str, ...]:
        """Labels predicted when the planner's queries are replaced by one simple label.

        The label is the plurality of the perceptual neighbours' labels. It owes nothing to the
        planner, which therefore cannot raise its reward by spoiling it.
        """
        if not self.config.counterfactuals:
            return ()
        support = await support_task
        label = simple_label(self.sample, support)
        candidates = await self._search(retrieve, dict.fromkeys(GROUPS, label))
        _, selection = await self._filter(candidates, "label")
        _, answer = await self._answer(selection.kept, support, "label")
        return answer.labels

    async def _rank_counterfactual(
        self, candidates: Mapping[Group, tuple[Evidence, ...]], support: Support
    ) -> tuple[str, ...]:
        """Labels predicted when the filter is bypassed and retrieval order decides."""
        if not self.config.counterfactuals:
            return ()
        kept = {group: items[: self.config.keep] for group, items in candidates.items()}
        _, answer = await self._answer(kept, support, "rank")
        return answer.labels

    # -- the result ------------------------------------------------------------------------------

    def _trajectory(
        self,
        turns: tuple[Turn, ...],
        answers: Mapping[str, tuple[str, ...]],
        answer: Answer,
        queries: Mapping[Group, str],
        candidates: Mapping[Group, tuple[Evidence, ...]],
        kept: Mapping[Group, tuple[Evidence, ...]],
        support: Support,
    ) -> Trajectory:
        scores = {name: score(labels, self.sample, self.rewards.kind) for name, labels in answers.items()}
        earned = agent_rewards(
            scores,
            {turn.role: turn.problem is not None for turn in turns},
            planner_weight=self.rewards.planner_weight,
            filter_weight=self.rewards.filter_weight,
            format_penalty=self.rewards.format_penalty,
        )
        return Trajectory(
            sample_id=self.sample.id,
            labels=self.sample.labels,
            turns=tuple(
                Turn(turn.role, turn.prompt, turn.generation, turn.problem, earned[turn.role]) for turn in turns
            ),
            queries=dict(queries),
            candidates=dict(candidates),
            kept=dict(kept),
            support_ids=support.ids,
            predicted=answer.labels,
            rationale=answer.rationale,
            counterfactuals={name: labels for name, labels in answers.items() if name != "full"},
            scores=scores,
            degraded=self.degraded,
            generated_tokens=self.generated_tokens,
            prompt_tokens=self.prompt_tokens,
        )


def simple_label(sample: AffectSample, support: Support) -> str:
    """Plurality of the neighbours' labels (ties: the nearest's); the first candidate or ``emotion`` without any."""
    counts = Counter(label for labels in support.labels for label in labels)
    if counts:
        return counts.most_common(1)[0][0]
    return sample.candidates[0] if sample.candidates else "emotion"


def _seed(seed: int, role: Role) -> int:
    """A counterfactual draws the same random numbers as what it is compared with: the gain is then due to the agent.

    Where filter and ranking keep the same evidence it is exactly 0, not the difference of two draws.
    """
    digest = hashlib.blake2b(f"{seed}/{role}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
