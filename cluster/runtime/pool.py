"""The pool of rollout actors: hands out episodes, survives dead and stuck actors, keeps weights in step.

Health and restarts are RLlib's `FaultTolerantActorManager`. What it leaves open is added here: a
deadline of our own on every call (the manager does not count a timeout as a fault), the episodes of
a lost actor are played again elsewhere, and an actor is let back in only once its engine reports the
current weight version and, if weights are verified, their checksum.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorUnavailableError, RayTaskError
from ray.rllib.utils.actor_manager import CallResult, FaultTolerantActorManager

from affect_rl.config.actors import Place, anywhere, engines
from affect_rl.config.load import Config
from affect_rl.errors import AffectError
from affect_rl.policy.weights import WeightsHandle
from affect_rl.timeline import Span
from affect_rl.trajectory import Trajectory
from retrieval_service.client import RetrievalClient
from rollout_workers.worker import EpisodeSpec, RolloutWorker

if TYPE_CHECKING:
    from rollout_workers.vllm.statistics import Sample

logger = logging.getLogger(__name__)

POLL_S = 0.05
PROBE_S = 1.0
READ_S = 5.0
EPISODES_PER_CALL = 16
"""Episodes in one call to an actor: what is lost, and played again, when the actor dies."""

_PROBE, _RESYNC, _VERIFY = "probe", "resync", "verify"
_READMISSION = (_PROBE, _RESYNC, _VERIFY)


class RolloutError(RuntimeError):
    """Episodes could not be played; the message names the stage, the actor and the weight version."""


@dataclass(slots=True)
class _Call:
    """Some episodes on an actor."""

    specs: list[EpisodeSpec]
    actor: int
    deadline: float


@dataclass(slots=True)
class _Outage:
    """An actor out of service.

    Attributes:
        deadline: until when it must be back.
        next_probe: when to ask it again; inf: an answer is due.
        version: of the weights whose checksum it was asked for.
    """

    deadline: float
    next_probe: float
    version: int = 0


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the pool knows of an engine.

    Attributes:
        healthy: it is given episodes.
        playing: episodes that it has.
        faults: how often it failed.
    """

    healthy: bool
    playing: int
    faults: int


@dataclass(frozen=True, slots=True)
class PoolState:
    """What the pool has to do, for whoever watches it.

    Attributes:
        version: of the weights that all healthy engines have.
        waiting: episodes that no engine has yet.
        replayed: episodes played again because their actor was lost.
        engines: by number of the actor.
    """

    version: int
    waiting: int
    replayed: int
    engines: dict[int, EngineState]


class RolloutPool:
    """`rollout.workers` engines behind one queue of episodes.

    Args:
        config: sections `rollout`, `episode` and `model`.
        policy_dir: the policy the engines start with, as weight version 0.
        retrieval: the evidence service; None to play without.
        place: says where the engines go.
    """

    def __init__(
        self, config: Config, policy_dir: Path, retrieval: RetrievalClient | None, place: Place = anywhere
    ) -> None:
        settings = config.rollout
        self._settings, self._deterministic = settings, config.deterministic
        actor = ray.remote(max_restarts=settings.max_restarts, max_concurrency=10_000)(RolloutWorker)
        self._actors = {
            i: actor.options(**options).remote(config, policy_dir.resolve(), retrieval, i)
            for i, options in enumerate(place(engines(settings)))
        }
        self._manager = FaultTolerantActorManager(
            list(self._actors.values()), max_remote_requests_in_flight_per_actor=1_000_000
        )
        self._waiting: deque[EpisodeSpec] = deque()
        self._calls: dict[str, _Call] = {}
        self._done: dict[object, Trajectory] = {}
        self._faults = dict.fromkeys(self._actors, 0)
        self._outages: dict[int, _Outage] = {}
        self._next_call = 0
        self._handle: WeightsHandle | None = None
        self._verify = False
        self._stored: Callable[[], WeightsHandle | None] = lambda: None
        self.replayed = 0
        self._await_start()

    @property
    def version(self) -> int:
        """The weight version that all healthy engines have."""
        return self._handle.version if self._handle else 0

    # -- episodes --------------------------------------------------------------------------------

    def submit(self, specs: Iterable[EpisodeSpec]) -> list[object]:
        """Queue episodes; they start as soon as an actor is healthy. Returns their keys."""
        queued = list(specs)
        self._waiting.extend(queued)
        self._dispatch()
        return [spec.key for spec in queued]

    def collect(self, keys: Sequence[object], on_progress: Any = None) -> list[Trajectory]:
        """Wait for the episodes with these keys, in their order; each is handed out once.

        Raises:
            RolloutError: an actor failed more often than ``rollout.max_restarts``.
            AffectError: the data or the settings are at fault.
        """
        wanted = set(keys)
        while missing := wanted - self._done.keys():
            self._poll()
            if on_progress:
                on_progress(len(wanted) - len(missing))
        return [self._done.pop(key) for key in keys]

    def play(self, specs: Iterable[EpisodeSpec], on_progress: Any = None) -> list[Trajectory]:
        """Submit and collect."""
        return self.collect(self.submit(specs), on_progress)

    def _dispatch(self) -> None:
        healthy = self._manager.healthy_actor_ids()
        if not healthy:
            return
        # A deterministic engine forms its batches within a call, so a call then holds all it is to play.
        share = -(-len(self._waiting) // len(healthy))
        size = share if self._deterministic else min(share, EPISODES_PER_CALL)
        while self._waiting:
            specs = [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
            # Round-robin over the actors, not first come first served: who plays what must not depend on timing.
            actor = healthy[self._next_call % len(healthy)]
            tag = f"play-{self._next_call}"
            self._next_call += 1
            self._calls[tag] = _Call(specs, actor, self._deadline(actor, len(specs)))
            self._manager.foreach_actor_async("play", tag, kwargs={"specs": specs}, remote_actor_ids=[actor])

    def _deadline(self, actor: int, episodes: int) -> float:
        """When further episodes on an actor are late; `rollout.concurrency` run at once, in the order they came."""
        ahead = sum(len(call.specs) for call in self._calls.values() if call.actor == actor)
        turns = -(-(ahead + episodes) // self._settings.concurrency)
        return time.monotonic() + turns * self._settings.deadline_s

    def _poll(self) -> None:
        for result in self._manager.fetch_ready_async_reqs(timeout_seconds=POLL_S):
            self._take(result)
        self._expire()
        self._revive()
        self._dispatch()

    def _take(self, result: CallResult) -> None:
        if not result.ok:
            self._take_error(result.actor_id, result.tag, result.get())
        elif result.tag == _PROBE:
            self._resync(result.actor_id)
        elif result.tag == _RESYNC:
            self._examine(result.actor_id, result.get())
        elif result.tag == _VERIFY:
            self._compare(result.actor_id, result.get())
        elif call := self._calls.pop(result.tag, None):
            self._done.update(zip((spec.key for spec in call.specs), result.get(), strict=True))

    def _take_error(self, actor: int, tag: str, error: Exception) -> None:
        if actor in self._outages and tag in _READMISSION and isinstance(error, ActorUnavailableError):
            self._outages[actor].next_probe = time.monotonic() + PROBE_S  # Ray is still restarting it
        elif actor not in self._outages or tag in _READMISSION:
            self._fault(actor, error)

    # -- faults ----------------------------------------------------------------------------------

    def _expire(self) -> None:
        now = time.monotonic()
        for call in [call for call in self._calls.values() if call.deadline < now]:
            if self._manager.is_actor_healthy(call.actor):
                ray.kill(self._actors[call.actor], no_restart=False)
                self._fault(
                    call.actor, TimeoutError(f"no answer within rollout.deadline_s={self._settings.deadline_s:g}")
                )

    def _fault(self, actor: int, error: Exception) -> None:
        """Take an actor out of service and queue its episodes again, ahead of the others."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, AffectError):
            raise cause
        self._faults[actor] += 1
        message = f"rollout: actor {actor} at weight version {self.version}: {type(cause).__name__}: {cause}"
        if self._faults[actor] > self._settings.max_restarts:
            raise RolloutError(
                f"{message}; it failed more than rollout.max_restarts={self._settings.max_restarts} times"
            ) from error
        logger.warning("%s; its episodes are played again", message)
        self._manager.set_actor_state(actor, healthy=False)
        if isinstance(error, RayTaskError):  # the process lives, but its engine may not: begin anew
            ray.kill(self._actors[actor], no_restart=False)
        now = time.monotonic()
        # Not asked at once: a process that was just killed may still answer.
        self._outages[actor] = _Outage(now + self._settings.deadline_s, now + PROBE_S)
        for tag in [tag for tag, call in self._calls.items() if call.actor == actor]:
            lost = self._calls.pop(tag).specs
            self.replayed += len(lost)
            self._waiting.extendleft(reversed(lost))

    def _revive(self) -> None:
        """Ask actors that are out of service whether Ray has brought them back, until a deadline."""
        now = time.monotonic()
        for actor, outage in list(self._outages.items()):
            if outage.next_probe <= now:
                outage.next_probe = math.inf
                self._manager.foreach_actor_async("ping", _PROBE, healthy_only=False, remote_actor_ids=[actor])
            elif outage.deadline < now:
                ray.kill(self._actors[actor], no_restart=False)
                self._fault(actor, TimeoutError(f"not back within rollout.deadline_s={self._settings.deadline_s:g}"))

    def _resync(self, actor: int) -> None:
        if self._handle is None:
            self._readmit(actor)
        elif stored := self._stored():
            self._manager.foreach_actor_async(
                "update_weights", _RESYNC, kwargs={"handle": stored}, healthy_only=False, remote_actor_ids=[actor]
            )
        else:  # the learner has moved on, so it waits for the next sync
            now = time.monotonic()
            self._outages[actor] = _Outage(now + self._settings.deadline_s, now + PROBE_S)

    def _examine(self, actor: int, version: int) -> None:
        """Let an actor back in that has the current weights, or ask first for their checksum."""
        if version != self.version:  # the learner has moved on in the meantime
            self._resync(actor)
        elif self._verify:
            self._outages[actor].version = version
            self._manager.foreach_actor_async("checksum", _VERIFY, healthy_only=False, remote_actor_ids=[actor])
        else:
            self._readmit(actor)

    def _compare(self, actor: int, checksum: int) -> None:
        if self._outages[actor].version != self.version:
            self._resync(actor)
        else:
            self._check(actor, checksum)
            self._readmit(actor)

    def _readmit(self, actor: int) -> None:
        del self._outages[actor]
        self._manager.set_actor_state(actor, healthy=True)
        logger.warning("rollout: actor %d is back, at weight version %d", actor, self.version)

    # -- weights ---------------------------------------------------------------------------------

    def sync(
        self,
        handle: WeightsHandle,
        *,
        verify: bool = False,
        only: Sequence[int] | None = None,
        stored: Callable[[], WeightsHandle | None] | None = None,
    ) -> None:
        """Give healthy engines new weights and make sure that all of them have them.

        Args:
            handle: the weights, in a file unless `only` is empty.
            verify: compare checksums as well.
            only: the engines that do not have them yet; None: all.
            stored: gives the same weights in a file for engines that come back, or None if there is none any more;
                they then wait for the next sync. By default the file of `handle`.

        Raises:
            RolloutError: an engine reports another version or, with `verify`, another checksum.
        """
        self._handle, self._verify, self._stored = handle, verify, stored or (lambda: handle)
        for actor, version in self.ask("update_weights", only=only, handle=handle):
            if version != handle.version:
                raise RolloutError(f"sync: actor {actor} reports weight version {version}, expected {handle.version}")
        if verify:
            for actor, checksum in self.ask("checksum"):
                self._check(actor, checksum)

    def incarnations(self) -> dict[int, int]:
        """The healthy actors, and how often each has begun anew."""
        return {actor: self._faults[actor] for actor in self._manager.healthy_actor_ids()}

    def _check(self, actor: int, checksum: int) -> None:
        assert self._handle is not None
        if checksum != self._handle.checksum:
            raise RolloutError(
                f"sync: actor {actor} has other weights than the learner at version {self.version}: "
                f"checksum {checksum:#x}, expected {self._handle.checksum:#x}"
            )

    def stats(self) -> Counter[str]:
        """Counters of the healthy engines since their start, added up."""
        return sum((Counter(stats) for _, stats in self.ask("stats")), Counter())

    def state(self) -> PoolState:
        """How things stand; may be asked from any thread."""
        playing: Counter[int] = Counter()
        for call in list(self._calls.values()):
            playing[call.actor] += len(call.specs)
        engines = {
            actor: EngineState(actor not in self._outages, playing[actor], faults)
            for actor, faults in list(self._faults.items())
        }
        return PoolState(self.version, len(self._waiting), self.replayed, engines)

    def engine_stats(self, timeout_s: float) -> dict[int, dict[str, float]]:
        """`RolloutWorker.stats` of the engines that answer in time; may be asked from any thread."""
        return self._read("stats", timeout_s)

    def vllm_statistics(self, timeout_s: float) -> dict[int, list[Sample]]:
        """`RolloutWorker.vllm_statistics` of the engines that answer in time; may be asked from any thread."""
        return self._read("vllm_statistics", timeout_s) if self._settings.vllm_statistics else {}

    def spans(self) -> dict[str, list[Span]]:
        """What the engines that answer have done since this was asked last."""
        return {f"rollout-{actor}": found for actor, found in self._read("spans", READ_S).items()}

    def _read(self, method: str, timeout_s: float) -> dict[int, Any]:
        """Answers of engines in service, for whoever watches: they have no say in who is healthy."""
        asked = {
            getattr(handle, method).remote(): actor
            for actor, handle in list(self._actors.items())
            if actor not in self._outages
        }
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
        answers = {}
        for ref in ready:
            with suppress(ray.exceptions.RayError):  # it is down, which the pool will find out itself
                answers[asked[ref]] = ray.get(ref)
        return answers

    def ask(
        self,
        method: str,
        *,
        only: Sequence[int] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
        **kwargs: Any,
    ) -> list[tuple[int, Any]]:
        """Call all healthy actors and wait; an actor that fails or is late is taken out of service.

        Args:
            method: of `RolloutWorker`.
            only: which of them; None: all.
            meanwhile: is done once they have been called.
            kwargs: of the call.
        """
        tag = f"{method}-{time.monotonic_ns()}"
        asked = [a for a in self._manager.healthy_actor_ids() if only is None or a in only]
        if asked:
            self._manager.foreach_actor_async(method, tag, kwargs=kwargs, remote_actor_ids=asked)
        meanwhile()
        answers: dict[int, Any] = {}
        ends = time.monotonic() + self._settings.deadline_s
        while open_ := [a for a in asked if a not in answers and self._manager.is_actor_healthy(a)]:
            for result in self._manager.fetch_ready_async_reqs(timeout_seconds=POLL_S, tags=tag):
                if result.ok:
                    answers[result.actor_id] = result.get()
                else:
                    self._fault(result.actor_id, result.get())
            if time.monotonic() > ends:
                for actor in open_:
                    ray.kill(self._actors[actor], no_restart=False)
                    self._fault(actor, TimeoutError(f"{method}: no answer within {self._settings.deadline_s:g} s"))
        return sorted(answers.items())

    # -- life ------------------------------------------------------------------------------------

    def _await_start(self) -> None:
        """Wait until all engines have started, so that a wrong policy or setting shows at once."""
        pings = {actor.ping.remote(): i for i, actor in self._actors.items()}
        ready, late = ray.wait(list(pings), num_returns=len(pings), timeout=self._settings.deadline_s)
        if late:
            names = sorted(pings[ref] for ref in late)
            raise RolloutError(f"start: engines of actors {names} not ready within {self._settings.deadline_s:g} s")
        for ref in ready:
            try:
                ray.get(ref)
            except ray.exceptions.RayActorError as error:
                raise _start_error(pings[ref], error) from error

    def close(self) -> None:
        """End the actors."""
        self._manager.clear()


def _start_error(actor: int, error: ray.exceptions.RayActorError) -> Exception:
    """What an actor's constructor raised, of which Ray passes on the text only: the user's to mend, or not."""
    _, named, message = str(error).rpartition(f"{AffectError.__module__}.{AffectError.__name__}: ")
    return AffectError(message.strip()) if named else RolloutError(f"start: actor {actor}: {error}")
