"""The Ray actor that plays episodes on an engine of its own.

A plain class; the cluster layer makes it an actor. Everything is built in ``__init__``, so that Ray can
restart it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from affect_rl.config.load import Config
from affect_rl.config.sections import EpisodeConfig, RewardConfig
from affect_rl.evidence import CognitiveResult, Exclusion, Group, Retrieve, Support
from affect_rl.policy.adapters import Lora
from affect_rl.policy.weights import WeightsHandle, stored_weights
from affect_rl.sample import AffectSample
from affect_rl.team.episode import Episode, play_episode
from affect_rl.team.prompts import Prompts
from affect_rl.team.silver import SilverEpisode
from affect_rl.trajectory import Generate, Generation, Prompt, Request, Trajectory

if TYPE_CHECKING:
    from rollout_workers.vllm.engine import RolloutEngine


@dataclass(frozen=True, slots=True, eq=False)
class EpisodeJob:
    """An episode to be played.

    Attributes:
        key: tells the job from others; the worker does not look at it.
        sample: what it is played on.
        seed: seed of its generations.
        temperature: of its generations; 0 is greedy.
        episode: who plays, and how.
        rewards: what is paid.
        frozen_policy: directory of the policy that ``episode.frozen`` agents play with; None if there are none.
        silver: search for the filter's turn instead of asking the filter, see `affect_rl.team.silver`.
    """

    key: object
    sample: AffectSample
    seed: int
    temperature: float
    episode: EpisodeConfig
    rewards: RewardConfig
    frozen_policy: Path | None = None
    silver: bool = False

    @classmethod
    def of(
        cls, config: Config, key: object, sample: AffectSample, seed: int, temperature: float, *, evaluate: bool = False
    ) -> Self:
        """An episode of a run; one that is played to `evaluate` has no counterfactuals."""
        episode = config.episode.model_copy(update={"counterfactuals": False}) if evaluate else config.episode
        frozen = Path(episode.frozen_policy or config.initial_policy).resolve() if episode.frozen else None
        return cls(key, sample, seed, temperature, episode, config.rewards, frozen)


class RolloutWorker:
    """One engine, and the episodes that run on it.

    In synchronous training with ``rollout.deterministic`` a call of `play` depends on nothing but its jobs
    and the weights: calls run one after the other, each from empty caches. So give it all jobs of a step
    in one call. In asynchronous training the calls share the engine as they come.

    Args:
        config: sections `rollout`, `episode` (what a prompt holds), `model` and `train`, and the seed.
        policy_dir: the policy to start with, as weight version 0.
        retrieval: the evidence service; None to play without.
    """

    def __init__(self, config: Config, policy_dir: Path, retrieval: Retrieve | None) -> None:
        self._config = config
        self._deterministic = config.deterministic
        self.engine = self._start_engine(policy_dir)
        self._frozen_engine: RolloutEngine | None = None
        self._frozen_policy: Path | None = None
        self._retrieval = retrieval
        self._prompts = Prompts.for_policy(policy_dir, config)
        self._places = asyncio.Semaphore(config.rollout.concurrency)
        self._turn: AbstractAsyncContextManager[None] = asyncio.Lock() if self._deterministic else nullcontext()

    def _start_engine(self, policy_dir: Path) -> RolloutEngine:
        from rollout_workers.vllm.engine import (
            RolloutEngine,  # not above: drivers, which import this file, need no vLLM
        )

        rollout = self._config.rollout.model_copy(update={"deterministic": self._deterministic})
        lora = self._config.model.lora
        return RolloutEngine(
            policy_dir,
            rollout,
            context=self._config.model.context,
            seed=self._config.seed,
            lora=Lora(lora.rank, lora.alpha, lora.targets) if lora.rank else None,
        )

    @property
    def _engines(self) -> list[RolloutEngine]:
        return [self.engine, *([self._frozen_engine] if self._frozen_engine else [])]

    async def play(self, jobs: Sequence[EpisodeJob]) -> list[Trajectory]:
        """Play episodes, ``rollout.concurrency`` at a time, and return them in the jobs' order.

        Raises:
            AffectError: a sample or a setting is at fault.
            EngineError: the engine died or was late.
            RetrievalError: the retrieval service was late.
        """
        async with self._turn:
            for policy in {job.frozen_policy for job in jobs if job.frozen_policy}:
                await self._freeze(policy)
            if self._deterministic:
                for engine in self._engines:
                    engine.forget()
            episodes = [asyncio.ensure_future(self._play(job)) for job in jobs]
            try:
                return await asyncio.gather(*episodes)
            finally:
                for episode in episodes:
                    episode.cancel()

    async def _freeze(self, policy: Path) -> None:
        """Let agents that are not trained play with `policy`; an engine for them is started when first needed."""
        if self._frozen_engine is None:
            self._frozen_engine = self._start_engine(policy)
        elif policy != self._frozen_policy:
            await self._frozen_engine.update_weights(stored_weights(policy, self._frozen_engine.version + 1))
        self._frozen_policy = policy

    async def _play(self, job: EpisodeJob) -> Trajectory:
        retrieval = _AnnouncedRetrieval(self._retrieval, self._engines) if self._retrieval else None
        kind = SilverEpisode if job.silver else Episode
        async with self._places:
            return await play_episode(
                job.sample, self._generate(job), retrieval, self._prompts, job.episode, job.rewards, job.seed, kind
            )

    def _generate(self, job: EpisodeJob) -> Generate:
        async def generate(prompt: Prompt, request: Request) -> Generation:
            frozen = self._frozen_engine if request.role in job.episode.frozen else None
            # One at a time: the trained engine rests while an episode is with the frozen one. Not the other way round
            # as well, or each would wait for the other.
            with self.engine.waiting_elsewhere() if frozen else nullcontext():
                return await (frozen or self.engine).generate(
                    prompt,
                    max_tokens=job.episode.limit(request.role),
                    temperature=job.temperature if request.role in job.episode.sampled else 0.0,
                    seed=request.seed,
                )

        return generate

    async def update_weights(self, handle: WeightsHandle) -> int:
        """Take other weights, episodes in flight included; returns the version the engine reports."""
        return await self.engine.update_weights(handle)

    async def checksum(self) -> int:
        """Checksum of the engine's tensors, comparable with `WeightsHandle.checksum`."""
        return self.engine.checksum()

    async def stats(self) -> dict[str, float]:
        """See `RolloutEngine.stats`."""
        return self.engine.stats()

    async def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `func` on this actor: RLlib's actor manager reaches every method through this one."""
        result = func(self, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    async def ping(self) -> str:
        """Answers ``pong``, or raises what the engine died of."""
        self.engine.check()
        return "pong"


class _AnnouncedRetrieval:
    """A retrieval service that tells the engines when an episode waits for it."""

    def __init__(self, retrieve: Retrieve, engines: Sequence[RolloutEngine]) -> None:
        self._retrieve, self._engines = retrieve, engines

    async def cognitive(self, queries: Mapping[Group, str], k: int, exclusion: Exclusion) -> CognitiveResult:
        with ExitStack() as waiting:
            for engine in self._engines:
                waiting.enter_context(engine.waiting_elsewhere())
            return await self._retrieve.cognitive(queries, k, exclusion)

    async def perceptual(self, audio: np.ndarray | None, video: np.ndarray | None, exclusion: Exclusion) -> Support:
        with ExitStack() as waiting:
            for engine in self._engines:
                waiting.enter_context(engine.waiting_elsewhere())
            return await self._retrieve.perceptual(audio, video, exclusion)
