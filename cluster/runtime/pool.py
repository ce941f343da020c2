"""The pool of rollout actors: hands out episodes, survives dead and stuck actors, keeps weights in step.

Calls go through RLlib's `FaultTolerantActorManager`. What it leaves open is added here: a deadline of our own on every
call (the manager does not count a timeout as a fault); who plays what, and again after a loss, which
`cluster.runtime.episode_queue` keeps; and the way back into service, of which `cluster.runtime.health` knows the rules.
In RLlib's manager an actor is healthy exactly if it is there.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayTaskError
from ray.rllib.utils.actor_manager import CallResult, FaultTolerantActorManager
from ray.util import get_current_placement_group

from affect_rl.config.actors import Place, anywhere, engines
from affect_rl.config.load import Config
from affect_rl.errors import AffectError, FailureError
from affect_rl.policy.weights import WeightsHandle, stored_weights
from affect_rl.timeline import Span
from affect_rl.trajectory import Trajectory
from cluster.runtime.episode_queue import EpisodeQueue
from cluster.runtime.health import Fleet, State
from cluster.runtime.nodes import Wish, ending_nodes, free_places, node_of
from cluster.runtime.observation import EngineState, PoolState, SpanReader, answers_in_time, lacking_evidence
from cluster.runtime.placement import neighbours
from retrieval_service.client import RetrievalClient
from retrieval_service.errors import RetrievalError
from rollout_workers.worker import EpisodeSpec, RolloutWorker

if TYPE_CHECKING:
    from rollout_workers.vllm.statistics import Sample

logger = logging.getLogger(__name__)

POLL_S = 0.05
_PROBE, _RESYNC, _VERIFY = "probe", "resync", "verify"
_READMISSION = (_PROBE, _RESYNC, _VERIFY)


class RolloutError(FailureError):
    """Episodes could not be played; the message names the stage, the actor and the weight version."""


class RolloutPool:
    """`rollout.workers` engines behind one queue of episodes.

    Args:
        config: sections `rollout`, `episode` and `model`.
        policy_dir: the policy the engines start with, as weight version 0; `check_manifest` has passed it.
        retrieval: the evidence service; None to play without.
        place: says where the engines go.
    """

    def __init__(
        self, config: Config, policy_dir: Path, retrieval: RetrievalClient | None, place: Place = anywhere
    ) -> None:
        settings = config.rollout
        self._settings = settings
        # Who is restarted how often is for the fleet to say.
        actor = ray.remote(max_restarts=-1, max_concurrency=10_000)(RolloutWorker)
        self._start = lambda number, options, near=None: actor.options(**options).remote(
            config, policy_dir.resolve(), retrieval, number, near
        )
        placed = place(engines(settings))
        near = neighbours(placed)
        self._actors = {number: self._start(number, own, near[number]) for number, own in enumerate(placed)}
        self._numbers = count(len(self._actors))
        self._wish = Wish(engines(settings))
        self._manager = FaultTolerantActorManager(
            list(self._actors.values()), max_remote_requests_in_flight_per_actor=1_000_000
        )
        self._fleet = Fleet(settings.deadline_s, settings.max_restarts, time.monotonic)
        self._queue = EpisodeQueue(settings, config.deterministic, time.monotonic)
        self._retrieval, self._frontend_ended = retrieval, -math.inf
        self._first = self._handle = stored_weights(policy_dir, 0)
        self._verify = False
        self._given: dict[int, object] = {}  # by engine, see `_current`
        self._stored: Callable[[], WeightsHandle | None] = lambda: self._first
        self._busy = False
        self._span_reader = SpanReader()
        self._await_start()
        for number in self._actors:
            self._fleet.add(number, started=True)

    @property
    def size(self) -> int:
        """Engines, whether or not they play at the moment."""
        return len(self._actors)

    @property
    def version(self) -> int:
        """The weight version that all healthy engines have."""
        return self._handle.version

    @property
    def replayed(self) -> int:
        """Episodes played again because their actor was lost."""
        return self._queue.replayed

    # -- episodes --------------------------------------------------------------------------------

    def submit(self, specs: Iterable[EpisodeSpec]) -> list[object]:
        """Queue episodes; they start as soon as an actor is healthy. Returns their keys."""
        keys = self._queue.submit(specs, self.size)
        self._dispatch()
        return keys

    def collect(self, keys: Sequence[object], on_progress: Any = None) -> list[Trajectory]:
        """Wait for the episodes with these keys, in their order; each is handed out once.

        Raises:
            RolloutError: fewer than ``rollout.min_workers`` engines are left.
            AffectError: the data or the settings are at fault.
        """
        wanted = set(keys)
        while missing := self._queue.missing(wanted):
            self._poll()
            if on_progress:
                on_progress(len(wanted) - missing)
        episodes = self._queue.fetch(keys)
        if lacking := lacking_evidence(episodes):
            logger.warning("retrieval: %s", lacking)
        return episodes

    def play(self, specs: Iterable[EpisodeSpec], on_progress: Any = None) -> list[Trajectory]:
        """Submit and collect."""
        return self.collect(self.submit(specs), on_progress)

    def abandon(self) -> None:
        """Forget all episodes, of which those in play end for nobody, and the weights, whose files may be gone."""
        self._handle, self._verify, self._stored = self._first, False, lambda: self._first
        self._fleet.published(self._first.version)
        self._queue.forget()

    def look_after(self) -> None:
        """Take what has been played and bring lost actors back: call it where nobody waits for episodes."""
        if not self._busy:  # the learner is also waited for in the middle of a question, whose answers are not ours
            self._poll()

    @contextmanager
    def _occupied(self) -> Iterator[None]:
        before, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = before

    def _dispatch(self) -> None:
        for tag, call in self._queue.assign(self._fleet.healthy()):
            self._manager.foreach_actor_async("play", tag, kwargs={"specs": call.specs}, remote_actor_ids=[call.engine])

    def _poll(self) -> None:
        with self._occupied():
            for result in self._manager.fetch_ready_async_reqs(timeout_seconds=POLL_S):
                self._take(result)
            self._expire()
            self._revive()
            self._dispatch()

    def _take(self, result: CallResult) -> None:
        actor = result.actor_id
        if not result.ok:
            self._take_error(actor, result.tag, result.get())
        elif result.tag == _PROBE:
            self._fleet.answered(actor)
            self._resync(actor)
        elif result.tag == _RESYNC:
            self._examine(actor, result.get())
        elif result.tag == _VERIFY:
            self._compare(actor, result.get())
        else:
            self._queue.finish(result.tag, result.get())

    def _take_error(self, actor: int, tag: str, error: Exception) -> None:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if tag == _PROBE and isinstance(error, ActorUnavailableError):
            self._fleet.unavailable(actor)  # Ray is still restarting it
        elif isinstance(cause, RetrievalError):
            self._without_evidence(actor, tag, cause)
        elif tag == _RESYNC and isinstance(cause, AffectError) and self._given.get(actor) != self._current:
            self._resync(actor)  # what it was to load is gone, with the learner that wrote it or by a later version
        elif tag in _READMISSION or self._fleet.state(actor) is State.HEALTHY:
            self._fault(actor, error)

    # -- faults ----------------------------------------------------------------------------------

    def _expire(self) -> None:
        for actor in self._queue.late():
            if self._fleet.state(actor) is State.HEALTHY:
                self._kill_late(actor, f"no answer within rollout.deadline_s={self._settings.deadline_s:g}")

    def _kill_late(self, actor: int, what: str) -> None:
        ray.kill(self._actors[actor], no_restart=False)
        self._fault(actor, TimeoutError(what))

    def _fault(self, actor: int, error: Exception) -> None:
        """Take an actor out of service, for a while or for good, and queue its episodes again."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, AffectError):
            raise cause
        message = f"rollout: actor {actor} at weight version {self.version}: {type(cause).__name__}: {cause}"
        logger.warning("%s; what it had is played again", message)
        retired = self._fleet.fault(actor) is State.RETIRED
        self._manager.set_actor_state(actor, healthy=False)
        if isinstance(error, RayTaskError) and not retired:  # the process lives, but its engine may not: begin anew
            ray.kill(self._actors[actor], no_restart=False)
        self._queue.take_back(actor, blame=True)
        if retired:
            most = f"rollout.max_restarts={self._settings.max_restarts}"
            self._remove(actor, f"it failed more than {most} times in an hour, or since it played last")
            if self.size < self._settings.min_workers:
                raise RolloutError(
                    f"{message}; {self.size} engines are left, and rollout.min_workers={self._settings.min_workers}"
                ) from error

    def _without_evidence(self, actor: int, tag: str, error: RetrievalError) -> None:
        """The engine is well, but got no evidence: let Ray start the service's frontend anew and play again, once.

        A process that hangs is not seen by Ray, which would start it anew if it died.
        """
        again = self._queue.play_again(tag, error)
        if self._fleet.state(actor) is State.HEALTHY:
            # For the manager any error is the actor's, of which it then forgets all other calls.
            self._manager.set_actor_state(actor, healthy=True)
            self._queue.take_back(actor, blame=False)
        if not again:
            return
        logger.warning("%s; the frontend is started anew, and %d episodes are played again", error, again)
        now = time.monotonic()
        if self._retrieval and now > self._frontend_ended + self._settings.deadline_s:  # other engines say the same
            self._frontend_ended = now
            ray.kill(self._retrieval.frontend, no_restart=False)

    def _remove(self, actor: int, why: str) -> None:
        """Part with an actor for good."""
        self._fleet.retire(actor)
        ray.kill(self._manager.remove_actor(actor))
        del self._actors[actor]
        logger.warning("rollout: actor %d is retired, %d are left: %s", actor, self.size, why)

    # -- a pool that grows and shrinks -----------------------------------------------------------

    def fit(self) -> None:
        """Between the bounds of ``rollout.workers``, part with engines on nodes that end, add as many as there is room
        for, and ask the cluster for room for one more. Call it between steps."""
        least, most = self._settings.bounds
        if least == most or get_current_placement_group():  # a trial of a sweep has what it was given
            return
        ending = ending_nodes()
        leaving = [number for number, actor in self._actors.items() if ending and node_of(actor) in ending]
        for actor in leaving[: self.size - least]:
            self._queue.take_back(actor, blame=False)
            self._remove(actor, "its node is about to end")
        for _ in range(min(most - self.size, free_places(engines(self._settings)))):
            self._add()
        if self.size == most:
            self._wish.drop()
        elif self._wish.granted():
            self._add()

    def _add(self) -> None:
        """Start one more engine; it plays once it has the current weights."""
        actor = self._start(next(self._numbers), engines(self._settings).options)
        self._manager.add_actors([actor])
        number = self._manager.actor_ids()[-1]
        self._manager.set_actor_state(number, healthy=False)
        self._actors[number] = actor
        self._fleet.add(number)
        logger.warning("rollout: actor %d is added", number)

    # -- the way back ----------------------------------------------------------------------------

    def _revive(self) -> None:
        """Ask actors that are out of service whether Ray has brought them back, until a deadline."""
        asked = self._fleet.to_probe()
        for actor in asked:
            self._manager.foreach_actor_async("ping", _PROBE, healthy_only=False, remote_actor_ids=[actor])
        for actor in self._fleet.late():
            if actor in asked:  # nobody may have looked for a while, in which it came back
                continue
            if self.size > self._settings.bounds[0]:  # the cluster has no room for it
                self._remove(actor, f"not there within rollout.deadline_s={self._settings.deadline_s:g}")
            else:
                self._kill_late(actor, f"not back within rollout.deadline_s={self._settings.deadline_s:g}")

    @property
    def _current(self) -> object:
        """Tells the current weights from all others."""
        return self._handle, self._stored

    def _resync(self, actor: int) -> None:
        if stored := self._stored():
            self._given[actor] = self._current
            self._manager.foreach_actor_async(
                "update_weights", _RESYNC, kwargs={"handle": stored}, healthy_only=False, remote_actor_ids=[actor]
            )
        else:  # the learner has moved on, so it waits for the next sync
            self._fleet.postpone(actor)

    def _examine(self, actor: int, version: int) -> None:
        """Let an actor back in that has the current weights, or ask first for their checksum."""
        if not self._fleet.loaded(actor, version):  # the learner has moved on in the meantime
            self._resync(actor)
        elif self._verify:
            self._manager.foreach_actor_async("checksum", _VERIFY, healthy_only=False, remote_actor_ids=[actor])
        else:
            self._readmit(actor)

    def _compare(self, actor: int, checksum: int) -> None:
        if self._fleet.state(actor) is State.LOADED:
            self._check(actor, checksum)
        self._readmit(actor)

    def _readmit(self, actor: int) -> None:
        if not self._fleet.verified(actor):  # the learner has moved on in the meantime
            self._resync(actor)
            return
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
        self._fleet.published(handle.version)
        for actor, version in self.ask("update_weights", only=only, handle=handle):
            if version != handle.version:
                raise RolloutError(f"sync: actor {actor} reports weight version {version}, expected {handle.version}")
        if verify:
            for actor, checksum in self.ask("checksum"):
                self._check(actor, checksum)

    def incarnations(self) -> dict[int, int]:
        """The healthy actors, and how often each has begun anew."""
        return {actor: self._fleet.faults(actor) for actor in self._fleet.healthy()}

    def _check(self, actor: int, checksum: int) -> None:
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
        playing = self._queue.playing()
        engines = {
            actor: EngineState(self._fleet.state(actor) is State.HEALTHY, playing[actor], self._fleet.faults(actor))
            for actor in self._fleet.active()
        }
        return PoolState(self.version, self._queue.waiting, self.replayed, engines)

    def engine_stats(self, timeout_s: float) -> dict[int, dict[str, float]]:
        """`RolloutWorker.stats` of the engines that answer in time; may be asked from any thread."""
        return self._read("stats", timeout_s)

    def vllm_statistics(self, timeout_s: float) -> dict[int, list[Sample]]:
        """`RolloutWorker.vllm_statistics` of the engines that answer in time; may be asked from any thread."""
        return self._read("vllm_statistics", timeout_s) if self._settings.vllm_statistics else {}

    def spans(self) -> dict[str, list[Span]]:
        """What the engines and the evidence service have done since they told it last, as far as they answer."""
        service = self._retrieval.actors if self._retrieval else {}
        actors = service | {f"rollout-{number}": actor for number, actor in self._in_service()}
        return self._span_reader.read(actors)

    def _read(self, method: str, timeout_s: float) -> dict[int, Any]:
        asked = {getattr(actor, method).remote(): number for number, actor in self._in_service()}
        return answers_in_time(asked, timeout_s)

    def _in_service(self) -> list[tuple[int, ActorHandle]]:
        return [(n, actor) for n, actor in list(self._actors.items()) if self._fleet.state(n) is State.HEALTHY]

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
        asked = [a for a in self._fleet.healthy() if only is None or a in only]
        if asked:
            self._manager.foreach_actor_async(method, tag, kwargs=kwargs, remote_actor_ids=asked)
        with self._occupied():
            meanwhile()
            answers = self._await_answers(method, tag, asked)
        return sorted(answers.items())

    def _await_answers(self, method: str, tag: str, asked: Sequence[int]) -> dict[int, Any]:
        answers: dict[int, Any] = {}
        ends = time.monotonic() + self._settings.deadline_s
        while open_ := [a for a in asked if a not in answers and self._fleet.state(a) is State.HEALTHY]:
            for result in self._manager.fetch_ready_async_reqs(timeout_seconds=POLL_S, tags=tag):
                if result.ok:
                    answers[result.actor_id] = result.get()
                else:
                    self._fault(result.actor_id, result.get())
            if time.monotonic() > ends:
                for actor in open_:
                    if actor not in answers and self._fleet.state(actor) is State.HEALTHY:
                        late = f"{method}: no answer within rollout.deadline_s={self._settings.deadline_s:g}"
                        self._kill_late(actor, late)
        return answers

    # -- life ------------------------------------------------------------------------------------

    def _await_start(self) -> None:
        """Wait until all engines have started, so that a wrong policy or setting shows at once."""
        pings = {actor.ping.remote(): i for i, actor in self._actors.items()}
        ready, late = ray.wait(list(pings), num_returns=len(pings), timeout=self._settings.deadline_s)
        if late:
            names = sorted(pings[ref] for ref in late)
            raise RolloutError(
                f"start: engines of actors {names} not ready within rollout.deadline_s={self._settings.deadline_s:g}; "
                "raise it if loading the model takes longer"
            )
        for ref in ready:
            try:
                ray.get(ref)
            except ray.exceptions.RayActorError as error:
                raise _start_error(pings[ref], error) from error

    def close(self) -> None:
        """End the actors."""
        self._wish.drop()
        self._manager.clear()


def _start_error(actor: int, error: ray.exceptions.RayActorError) -> Exception:
    """What an actor's constructor raised, of which Ray passes on the text only: the user's to mend, or not."""
    _, named, message = str(error).rpartition(f"{AffectError.__module__}.{AffectError.__name__}: ")
    return AffectError(message.strip()) if named else RolloutError(f"start: actor {actor}: {error}")
