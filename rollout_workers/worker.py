"""The Ray actor that plays episodes on an engine of its own.

A plain class; the cluster layer makes it an actor. Everything is built in ``__init__``, so that Ray can
restart it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from affect_rl.config import Config
from affect_rl.episode import play_episode
from affect_rl.evidence import Cognitive, Exclusion, Group, Retrieve, Support
from affect_rl.prompts import Prompts
from affect_rl.sample import AffectSample
from affect_rl.trajectory import Generate, Generation, Prompt, Request, Role, Trajectory
from affect_rl.weights import WeightsHandle
from rollout_workers.engine import RolloutEngine


@dataclass(frozen=True, slots=True, eq=False)
class EpisodeJob:
    """An episode to be played.

    Attributes:
        key: tells the job from others; the worker does not look at it.
        sample: what it is played on.
        seed: seed of its generations.
        temperature: of its generations; 0 is greedy.
        counterfactuals: whether to play the counterfactuals, if the configuration has them.
    """

    key: object
    sample: AffectSample
    seed: int
    temperature: float
    counterfactuals: bool = True


class RolloutWorker:
    """One engine, and the episodes that run on it.

    In synchronous training with ``rollout.deterministic`` a call of `play` depends on nothing but its jobs
    and the weights: calls run one after the other, each from empty caches. So give it all jobs of a step
    in one call. In asynchronous training the calls share the engine as they come.

    Args:
        config: sections `rollout`, `episode`, `rewards`, `model` and `train`, and the seed.
        policy_dir: the policy to start with, as weight version 0.
        retrieval: the evidence service; None to play without.
    """

    def __init__(self, config: Config, policy_dir: Path, retrieval: Retrieve | None) -> None:
        self._config = config
        self._deterministic = config.rollout.deterministic and config.train.max_staleness == 0
        rollout = config.rollout.model_copy(update={"deterministic": self._deterministic})
        self.engine = RolloutEngine(policy_dir, rollout, context=config.model.context, seed=config.seed)
        self._retrieval = _Outside(retrieval, self.engine) if retrieval else None
        self._prompts = Prompts(
            self.engine.tokenizer,
            soft_tokens=self.engine.policy_config.fusion["soft_tokens"],
            context=config.model.context,
            evidence_tokens=config.episode.evidence_tokens,
        )
        self._places = asyncio.Semaphore(config.rollout.concurrency)
        self._turn: AbstractAsyncContextManager[None] = asyncio.Lock() if self._deterministic else nullcontext()

    async def play(self, jobs: Sequence[EpisodeJob]) -> list[Trajectory]:
        """Play episodes, ``rollout.concurrency`` at a time, and return them in the jobs' order.

        Raises:
            AffectError: a sample or a setting is at fault.
            EngineError: the engine died or was late.
            RetrievalError: the retrieval service was late.
        """
        async with self._turn:
            if self._deterministic:
                self.engine.forget()
            episodes = [asyncio.ensure_future(self._play(job)) for job in jobs]
            try:
                return await asyncio.gather(*episodes)
            finally:
                for episode in episodes:
                    episode.cancel()

    async def _play(self, job: EpisodeJob) -> Trajectory:
        settings = self._config.episode
        settings = settings.model_copy(update={"counterfactuals": settings.counterfactuals and job.counterfactuals})
        async with self._places:
            return await play_episode(
                job.sample,
                self._generate(job.temperature),
                self._retrieval,
                self._prompts,
                settings,
                self._config.rewards,
                job.seed,
            )

    def _generate(self, temperature: float) -> Generate:
        settings = self._config.episode
        limits: Mapping[Role, int] = {
            "planner": settings.planner_tokens,
            "filter": settings.filter_tokens,
            "generator": settings.generator_tokens,
        }

        async def generate(prompt: Prompt, request: Request) -> Generation:
            return await self.engine.generate(
                prompt, max_tokens=limits[request.role], temperature=temperature, seed=request.seed
            )

        return generate

    async def update_weights(self, handle: WeightsHandle) -> int:
        """Take other weights, episodes in flight included; returns the version the engine reports."""
        return await self.engine.update_weights(handle)

    async def weight_version(self) -> int:
        """The version the engine reports."""
        return self.engine.version

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


class _Outside:
    """A retrieval service that tells the engine when an episode waits for it."""

    def __init__(self, retrieve: Retrieve, engine: RolloutEngine) -> None:
        self._retrieve, self._engine = retrieve, engine

    async def cognitive(self, queries: Mapping[Group, str], exclusion: Exclusion) -> Cognitive:
        async with self._engine.outside():
            return await self._retrieve.cognitive(queries, exclusion)

    async def perceptual(self, audio: np.ndarray | None, video: np.ndarray | None, exclusion: Exclusion) -> Support:
        async with self._engine.outside():
            return await self._retrieve.perceptual(audio, video, exclusion)
