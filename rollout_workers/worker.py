"""The Ray actor that plays episodes on an engine of its own.

A plain class; the cluster layer makes it an actor. Everything is built in ``__init__``, so that Ray can
restart it.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import ray
from joblib import cpu_count

from affect_rl.config.load import Config
from affect_rl.config.services import RolloutConfig
from affect_rl.errors import AffectError
from affect_rl.evidence import CognitiveResult, Exclusion, Group, Retrieve, Support
from affect_rl.memory import release_memory
from affect_rl.network import interface_of
from affect_rl.policy.adapters import TEAM, Lora
from affect_rl.policy.publication import Announcement
from affect_rl.policy.transfer import Meeting
from affect_rl.policy.weights import WeightsHandle, stored_weights
from affect_rl.sample import AffectSample
from affect_rl.seeds import derived_seed
from affect_rl.tasks import TaskSettings, make_task
from affect_rl.team.agent import AgentSettings, EpisodeSettings, Request, Writes
from affect_rl.team.episode import Generate, OnStep, play_episode
from affect_rl.team.prompts import Prompts
from affect_rl.team.team import Team, TeamConfig
from affect_rl.timeline import Span
from affect_rl.trajectory import Generation, Output, Prompt, Trajectory

if TYPE_CHECKING:
    from rollout_workers.vllm.engine import RolloutEngine
    from rollout_workers.vllm.statistics import Sample

Found = TypeVar("Found", CognitiveResult, Support)

RETRIEVAL_STEPS = 3
"""Steps of a deterministic engine that a search takes, however long it really takes: enough to hide most of it."""


@dataclass(frozen=True, slots=True, eq=False)
class EpisodeSpec:
    """An episode to be played.

    Attributes:
        key: tells it from others; the worker does not look at it.
        sample: what it is played on.
        seed: seed of its generations.
        team: who plays.
        episode: what agents have in common.
        task: what they work on.
        start: directory of the policy that training began with, for agents that play with it.
        temperature: of its generations, 0: greedily; None: each agent's own.
        bypasses: whether it is also played without each agent, which scores the agents.
        critic_sees: what the prompts of a separate critic hold beside the agents' own.
        structured: hold the engine to the agents' formats.
    """

    key: object
    sample: AffectSample
    seed: int
    team: TeamConfig
    episode: EpisodeSettings
    task: TaskSettings
    start: Path
    temperature: float | None = None
    bypasses: bool = True
    critic_sees: str = "own"
    structured: bool = False

    @classmethod
    def to_train(cls, config: Config, key: object, sample: AffectSample, seed: int, place: int = 0) -> Self:
        """An episode to learn from; `place` is its sample's, see `Config.in_turn`."""
        seen = sample.with_dropout(config.episode.dropout, seed)
        team, start = config.in_turn(place), config.initial_policy.resolve()
        critic = config.algorithm.critic_settings
        sees = critic.sees if critic and critic.kind == "separate" else "own"
        return cls(key, seen, seed, team, config.episode, config.task, start, critic_sees=sees)

    @classmethod
    def to_measure(
        cls, config: Config, purpose: str, sample: AffectSample, *, temperature: float = 0.0, bypasses: bool = False
    ) -> Self:
        """An episode that nobody learns from; its key is `purpose` and the sample, its seed owes nothing to others."""
        key, seed = (purpose, sample.id), derived_seed(config.seed, purpose, sample.id)
        start = config.initial_policy.resolve()
        common = (config.team, config.episode, config.task, start, temperature, bypasses)
        return cls(key, sample, seed, *common, structured=config.evaluate.structured)

    @classmethod
    def to_select(cls, config: Config, sample: AffectSample) -> Self:
        """An episode that tells how good a policy in training is; as in training, no format is enforced."""
        return replace(cls.to_measure(config, "dev", sample), structured=False)

    @property
    def frozen_policies(self) -> Mapping[str, Path]:
        """By agent, the policies that do not change."""
        policies = {name: self.team[name].policy for name in self.team.frozen}
        return {name: self.start if policy == "start" else Path(policy) for name, policy in policies.items()}


def threads_of_rank(rollout: RolloutConfig, neighbours: int) -> int:
    """CPU threads of each rank of an engine that shares the cores of its node with so many, itself included."""
    return rollout.threads or max(1, cpu_count() // (neighbours * rollout.tensor_parallel))


class RolloutWorker:
    """One engine, and the episodes that run on it.

    In synchronous training with ``rollout.deterministic`` a call of `play` depends on nothing but its specs
    and the weights: calls run one after the other, each from empty caches. So give it all specs of a step
    in one call. In asynchronous training the calls share the engine as they come.

    Args:
        config: sections `rollout`, `episode` (what a prompt holds), `model` and `train`, and the seed. What is played
            stands in the episodes' specifications.
        policy_dir: the policy to start with, as weight version 0. Its files are not hashed, which takes a minute for a
            large model: call `check_manifest` once for all workers.
        retrieval: the evidence service; None to play without.
        number: tells it from the pool's others.
        neighbours: workers on its node, itself included, who share the cores where ``rollout.threads`` is 0; None: it
            is not known, so it may be all of ``rollout.workers``.
    """

    def __init__(
        self,
        config: Config,
        policy_dir: Path,
        retrieval: Retrieve | None,
        number: int = 0,
        neighbours: int | None = None,
    ) -> None:
        self._number, self._neighbours = number, neighbours or config.rollout.bounds[0]
        self._config, self._policy_dir = config, policy_dir
        self._deterministic = config.deterministic
        if config.rollout.gpus_per_worker:
            # NCCL chooses an interface once for each process, and by itself not the one that learners are told.
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface_of(ray.util.get_node_ip_address())}")
        self.engine = self._start_engine(policy_dir)
        self._frozen_engine: RolloutEngine | None = None
        self._frozen_policy: Path | None = None
        self._retrieval = retrieval
        self._searches = SearchStats()
        self._prompts = Prompts.for_policy(policy_dir, config.episode, context=config.model.context)
        self._places = asyncio.Semaphore(config.rollout.concurrency)
        self._turn: AbstractAsyncContextManager[None] = asyncio.Lock() if self._deterministic else nullcontext()

    def __repr__(self) -> str:
        return f"rollout-{self._number}"  # in Ray's dashboard and logs

    def _start_engine(self, policy_dir: Path) -> RolloutEngine:
        from rollout_workers.vllm.engine import RolloutEngine  # not above: drivers import this file and need no vLLM

        settings = self._config.rollout
        threads = threads_of_rank(settings, self._neighbours)
        rollout = settings.model_copy(update={"deterministic": self._deterministic, "threads": threads})
        lora = self._config.model.lora
        return RolloutEngine(
            policy_dir,
            rollout,
            context=self._config.model.context,
            seed=self._config.seed,
            lora=Lora(lora.rank, lora.alpha, lora.targets) if lora.rank else None,
            adapters=len(set(self._config.team.adapters.values())),
            verify=policy_dir != self._policy_dir,  # policies that do not change are no other's to check
        )

    @property
    def _engines(self) -> list[RolloutEngine]:
        return [self.engine, *([self._frozen_engine] if self._frozen_engine else [])]

    async def play(self, specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
        """Play episodes, ``rollout.concurrency`` at a time, and return them in their order.

        Raises:
            EngineError: the engine died or was late.
            RetrievalError: the retrieval service was late.
        """
        async with self._turn:
            for policy in {policy for spec in specs for policy in spec.frozen_policies.values()}:
                await self._freeze(policy)
            if self._deterministic:
                for engine in self._engines:
                    engine.forget()
            episodes = [asyncio.ensure_future(self._play(spec)) for spec in specs]
            try:
                return await asyncio.gather(*episodes)
            finally:
                for episode in episodes:
                    episode.cancel()
                if self._deterministic:  # then nobody plays on, and a learner, whose turn it is, may be on this machine
                    release_memory()

    async def _freeze(self, policy: Path) -> None:
        """Let agents that are not trained play with `policy`; an engine for them is started when first needed."""
        if self._frozen_engine is None:
            self._frozen_engine = self._start_engine(policy)
        elif policy != self._frozen_policy:
            await self._frozen_engine.update_weights(stored_weights(policy, self._frozen_engine.version + 1))
        self._frozen_policy = policy

    async def watch(self, spec: EpisodeSpec) -> AsyncIterator[tuple[str, Writes] | Trajectory]:
        """Play one episode: each step of the team with what it wrote, as it comes, and the whole episode at the end.

        For engines that are not deterministic: nobody waits until it is his turn.
        """
        for policy in spec.frozen_policies.values():
            await self._freeze(policy)
        steps: asyncio.Queue[tuple[str, Writes] | None] = asyncio.Queue()
        episode = asyncio.ensure_future(self._play(spec, lambda name, writes: steps.put_nowait((name, writes))))
        episode.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while step := await steps.get():
                yield step
            yield await episode
        finally:
            episode.cancel()

    async def _play(self, spec: EpisodeSpec, on_step: OnStep | None = None) -> Trajectory:
        """One episode; where its sample is at fault, a trajectory without turns that says why."""
        generate = self._generate(spec)  # what this raises is no fault of the sample
        retrieval = _AnnouncedRetrieval(self._retrieval, self._engines, self._searches) if self._retrieval else None
        team = Team(spec.team, spec.episode, make_task(spec.task, spec.sample.label_kind))
        async with self._places:
            try:
                return await play_episode(
                    spec.sample,
                    team,
                    generate,
                    retrieval,
                    self._prompts,
                    spec.seed,
                    bypasses=spec.bypasses,
                    temperature=spec.temperature,
                    critic_sees=spec.critic_sees,
                    on_step=on_step,
                )
            except AffectError as error:
                return Trajectory(spec.sample.id, spec.sample.labels, (), Output("", problem=str(error)))

    def _generate(self, spec: EpisodeSpec) -> Generate:
        adapters = {name: self._adapter(name, spec.team[name]) for name in spec.team.playing}

        async def generate(prompt: Prompt, request: Request) -> Generation:
            settings = request.agent.settings
            frozen = self._frozen_engine if settings.policy else None
            engine = frozen or self.engine
            # One at a time: the trained engine rests while an episode is with the frozen one. Not the other way round
            # as well, or each would wait for the other.
            async with self.engine.waiting_elsewhere() if frozen else nullcontext():
                return await engine.generate(
                    prompt,
                    max_tokens=settings.tokens,
                    temperature=request.temperature,
                    seed=request.seed,
                    adapter=adapters[request.agent.name],
                    pattern=request.agent.pattern(request.board) if spec.structured else "",
                )

        return generate

    def _adapter(self, name: str, settings: AgentSettings) -> str | None:
        """The adapter that an agent plays with; None: the base, for one that neither trains nor names an adapter.

        Raises:
            AffectError: the policy has adapters, and not the one that the agent was trained with.
        """
        engine = self._frozen_engine if settings.policy and self._frozen_engine else self.engine
        known = engine.adapters
        if not known or settings.adapter in known:  # a plain policy is itself under any name
            return settings.adapter
        if settings.trains or settings.policy or settings.adapter != TEAM:
            raise AffectError(
                f"team.{name}.adapter={settings.adapter}: the policy has no such adapter (it has: {', '.join(known)}); "
                "name the one that the agent was trained with"
            )
        return None

    async def update_weights(self, handle: WeightsHandle) -> int:
        """Take other weights, episodes in flight included; returns the version the engine reports."""
        return await self.engine.update_weights(handle)

    async def address(self) -> str:
        """Address of this actor's node in Ray."""
        return ray.util.get_node_ip_address()

    async def join_group(self, meeting: Meeting) -> bool:
        """Meet the learner for broadcasts; False: not all came in time."""
        return await self.engine.join_group(meeting, ray.util.get_node_ip_address())

    async def receive_weights(self, announcement: Announcement) -> int | None:
        """As `update_weights`, by a broadcast; None: it broke off, and the engine rests until it has whole weights."""
        return await self.engine.receive_weights(announcement)

    async def checksum(self) -> int:
        """Checksum of the engine's tensors, comparable with `WeightsHandle.checksum`."""
        return self.engine.checksum()

    async def stats(self) -> dict[str, float]:
        """Those of `RolloutEngine.stats`, and of `SearchStats`."""
        return {**self.engine.stats(), **asdict(self._searches)}

    async def vllm_statistics(self) -> list[Sample]:
        """See `RolloutEngine.vllm_statistics`."""
        return self.engine.vllm_statistics()

    async def spans(self) -> list[Span]:
        """What the engine has done since this was asked last."""
        return self.engine.spans.fetch()

    async def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `func` on this actor: RLlib's actor manager reaches every method through this one."""
        result = func(self, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    async def ping(self) -> str:
        """Answers ``pong``, or raises what the engine died of."""
        self.engine.check()
        return "pong"


@dataclass(slots=True)
class SearchStats:
    """Searches of a worker's episodes since its start.

    Attributes:
        searches: how many.
        search_s: seconds that episodes waited for them, added up.
        degraded_searches: those that a shard did not answer in time.
    """

    searches: int = 0
    search_s: float = 0.0
    degraded_searches: int = 0


class _AnnouncedRetrieval:
    """A retrieval service that tells the engines when an episode waits for it, and counts."""

    def __init__(self, retrieve: Retrieve, engines: Sequence[RolloutEngine], stats: SearchStats) -> None:
        self._retrieve, self._engines, self._stats = retrieve, engines, stats

    async def cognitive(self, queries: Mapping[Group, str], k: int, exclusion: Exclusion) -> CognitiveResult:
        return await self._announced(self._retrieve.cognitive(queries, k, exclusion))

    async def perceptual(self, audio: np.ndarray | None, video: np.ndarray | None, exclusion: Exclusion) -> Support:
        return await self._announced(self._retrieve.perceptual(audio, video, exclusion))

    async def _announced(self, search: Coroutine[Any, Any, Found]) -> Found:
        engine, *frozen = self._engines
        async with AsyncExitStack() as waiting:
            await waiting.enter_async_context(engine.waiting_elsewhere(RETRIEVAL_STEPS))
            for other in frozen:  # whose steps are no measure, for it has work only while the other rests
                await waiting.enter_async_context(other.waiting_elsewhere())
            begun = time.perf_counter()
            found = await search
            seconds = time.perf_counter() - begun
        self._stats.searches += 1
        self._stats.search_s += seconds
        self._stats.degraded_searches += found.degraded
        return found
