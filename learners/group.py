"""The learner as the training loop sees it: all ranks behind one object."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from affect_rl.config.actors import Place, anywhere, learners
from affect_rl.config.load import Config
from affect_rl.errors import AffectError, FailureError
from affect_rl.policy.config import AffectConfig
from affect_rl.policy.publication import Announcement
from affect_rl.policy.transfer import Meeting
from affect_rl.policy.weights import WeightsHandle, check_weights_dir, mark_of
from affect_rl.timeline import Span
from affect_rl.trajectory import Trajectory
from learners.learner import LearnerWorker
from learners.meeting import seats
from learners.shares import deal

logger = logging.getLogger(__name__)

POLL_S = 0.05
CLOSING_S = 5.0
"""How long rank 0 may take to delete what it published."""


def remove_on(address: str, directories: Iterable[Path]) -> None:
    """Remove directories on a node of the cluster, as far as it is there: in its memory they would stay for ever."""
    ids = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == address]
    if ids:
        there = NodeAffinitySchedulingStrategy(ids[0], soft=False)
        removal = ray.remote(num_cpus=0, scheduling_strategy=there)(_remove).remote(list(directories))
        with suppress(RayError):
            ray.get(removal, timeout=CLOSING_S)


def _remove(directories: Sequence[Path]) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


class LearnerLostError(FailureError):
    """A rank died, failed or did not answer in time; the message names stage, rank and weight version."""


class LearnerGroup:
    """`learner.workers` ranks, one Ray actor each.

    Every method runs on all ranks at once and ends within `learner.deadline_s`. A rank that fails ends
    the call at once (the others would wait for it in a collective); the group is then of no more use.

    Attributes:
        address: of the node from which weights go out, that of rank 0.
        meanwhile: called again and again while the ranks work.

    Raises (every method):
        LearnerLostError: a rank died, failed or was late. A new group may go on from a checkpoint.
        AffectError: the input is at fault.
    """

    def __init__(
        self,
        config: Config,
        policy_dir: Path,
        *,
        seed: int,
        least: int | None = None,
        place: Place = anywhere,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the ranks and load the policy directory, which is also the frozen reference; with adapters its base is.

        Its files are not hashed, which takes a minute for a large model: call `check_manifest` once for all ranks.

        Args:
            config: sections `learner`, `algorithm`, `team` and `model`, and where the run lies.
            policy_dir: where training began.
            seed: of whatever is drawn.
            least: go on with so many ranks if the others find no place; None: all are needed.
            place: says where they go.
            meanwhile: called again and again while the ranks start or work.
        """
        settings = config.learner
        self.meanwhile = meanwhile
        self._config, self._seed, self._updates = config, seed, 0
        self._deadline_s, self._version = settings.deadline_s, 0
        if settings.share_prefix and AffectConfig.from_pretrained(policy_dir).slides:
            raise AffectError(
                f"learner.share_prefix: the model of {policy_dir} attends in sliding windows, which rows that share "
                "their prefix would not keep; set it to false"
            )
        check_weights_dir(config.rollout.weights_dir)
        self._mark = mark_of(config.run_dir)
        self._holds: int | None = None
        self._written: set[Path] = set()
        actor = ray.remote(LearnerWorker)
        self._workers = [
            actor.options(**options).remote(config, policy_dir.resolve(), rank, seed)
            for rank, options in enumerate(place(learners(settings)))
        ]
        try:
            self._meet(settings.workers if least is None else least)
        except BaseException:
            self.close()
            raise

    def _meet(self, least: int) -> None:
        """Let the ranks that find a place meet, and load the policy."""
        self._workers = self._placed(least)
        learner = self._config.learner.model_copy(update={"workers": len(self._workers)})
        self._config = self._config.model_copy(update={"learner": learner})
        addresses = self._all("place")
        self.address: str = addresses[0]
        port = self._each("open_store", [()], self._workers[:1])[0]
        self._each("start", [(seat,) for seat in seats(addresses, port)])

    def _placed(self, least: int) -> list[ActorHandle]:
        """The ranks that Ray found a place for; the others end.

        Raises:
            AffectError: they are fewer than `least`.
        """
        settings, of = self._config.learner, {worker.place.remote(): worker for worker in self._workers}
        placed, homeless = self._wait(list(of), len(of), min(settings.place_s, settings.deadline_s))
        if len(placed) < least:
            logger.warning("learner: %d of %d ranks have a place; waiting for more", len(placed), len(of))
            placed, homeless = self._wait(list(of), least, max(0.0, settings.deadline_s - settings.place_s))
        if len(placed) < least:
            raise AffectError(
                f"learner: {len(placed)} of {len(of)} ranks found a place within learner.deadline_s="
                f"{settings.deadline_s:g}, and {least} are needed; add nodes, or lower learner.workers, or what may be "
                "left of them after a loss, learner.min_workers"
            )
        for ref in homeless:
            ray.kill(of[ref])
        return [worker for ref, worker in of.items() if ref not in homeless]

    def _wait(self, refs: list[Any], count: int, seconds: float) -> tuple[list[Any], list[Any]]:
        """`ray.wait`, with `meanwhile`."""
        ends = time.monotonic() + seconds
        while True:
            ready, others = ray.wait(refs, num_returns=count, timeout=POLL_S)
            if len(ready) >= count or time.monotonic() > ends:
                return ready, others
            self.meanwhile()

    @property
    def ranks(self) -> Sequence[ActorHandle]:
        """The actors, in the order of their ranks."""
        return self._workers

    def update(self, episodes: Sequence[Trajectory], version: int) -> dict[str, float]:
        """One training step on episodes; `version` is that of the weights being updated. Returns metrics.

        A rank is sent the episodes that it trains on, and of the others the numbers alone.
        """
        self._version, self._holds = version, None
        dealt = self._deal(episodes)
        self._updates += 1
        return self._each("update", dealt)[0]

    def advantages(self) -> dict[tuple[int, str, int], list[float]]:
        """The advantages of the last update's tokens ``[T]`` by turn: place of its episode, its agent, its number."""
        return self._await("advantages", [self._workers[0].advantages.remote()])[0]

    def gap(self, episodes: Sequence[Trajectory]) -> tuple[float, float]:
        """Mean and largest distance of the learner's log-probs of the episodes' answers from the engines'.

        It says something where both have the same weights, that is, before an update.
        """
        return self._each("gap", self._deal(episodes))[0]

    def _deal(self, episodes: Sequence[Trajectory]) -> list[tuple[Any, Any]]:
        """What each rank is to know of episodes."""
        config = self._config
        step, shares = deal(
            episodes,
            config.team.trained,
            config.learner,
            (self._seed, self._updates),
            separate_critic=config.algorithm.separate_critic,
            adapters=config.team.adapters if config.model.lora.rank else None,
        )
        known = ray.put(step)
        return [(known, share) for share in shares]

    def holds(self, version: int) -> bool:
        """Whether the current weights are still those that were published or announced as this version."""
        return self._holds == version

    def publish(self, version: int, parent: str | None = None) -> WeightsHandle:
        """Write the current weights as version `version` for the engines to read.

        `parent`: where rank 0 makes a directory for them, see `new_weights_dir`; None: as ``rollout.weights_dir`` says.
        """
        self._version = self._holds = version
        where = self._config.rollout.weights_dir if parent is None else parent
        handle: WeightsHandle = self._all("publish", version, where, self._mark)[0]
        self._written.add(Path(handle.path).parent)
        return handle

    def announce(self, version: int) -> Announcement:
        """The current weights as version `version`, for engines to expect from `send`."""
        self._version = self._holds = version
        return self._all("announce", version)[0]

    def open_meeting(self) -> tuple[str, int]:
        """Address and port of a new store, at which rank 0 and the engines form a group."""
        return self._await("open_meeting", [self._workers[0].open_meeting.remote()])[0]

    def join_group(self, meeting: Meeting) -> bool:
        """Let rank 0 meet the engines, which are on their way there; whether the group came about."""
        return self._await("join_group", [self._workers[0].join_group.remote(meeting)])[0]

    def send(self, version: int) -> bool:
        """Broadcast what was announced to the engines, which are waiting for it; whether all of it went out."""
        return all(self._all("send", version))

    def spans(self) -> dict[str, list[Span]]:
        """What the ranks have done since this was asked last."""
        return {f"learner-{rank}": found for rank, found in enumerate(self._all("spans"))}

    def save_policy(self, directory: Path) -> None:
        """Write or replace a policy directory, adapters beside the name of their base."""
        self._all("save_policy", directory.resolve())

    def save_checkpoint(self, directory: Path) -> None:
        """Write a checkpoint, whole or not at all; `directory` must not exist yet."""
        self._all("save_checkpoint", directory.resolve(), self._updates)

    def load_checkpoint(self, directory: Path) -> None:
        """Go on exactly where a checkpoint was written, with the same policy directory, seed and ranks."""
        self._holds = None
        self._updates = self._all("load_checkpoint", directory.resolve())[0]

    def close(self) -> None:
        """End the ranks and remove published weights."""
        withdrawn = False
        if self._workers:
            with suppress(RayError):  # rank 0 may be dead, or wait in a collective for one that is
                ray.get(self._workers[0].withdraw.remote(), timeout=CLOSING_S)
                withdrawn = True
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []
        if self._written and not withdrawn:
            remove_on(self.address, self._written)

    def _all(self, stage: str, *args: Any) -> list[Any]:
        """Call a method with the same arguments on all ranks; results in the order of ranks."""
        return self._each(stage, [args] * len(self._workers))

    def _each(
        self, stage: str, args: Sequence[tuple[Any, ...]], workers: Sequence[ActorHandle] | None = None
    ) -> list[Any]:
        """Call a method on all ranks, on each with arguments of its own; results in the order of ranks."""
        calls = zip(self._workers if workers is None else workers, args, strict=True)
        return self._await(stage, [getattr(worker, stage).remote(*own) for worker, own in calls])

    def _await(self, stage: str, refs: Sequence[Any]) -> list[Any]:
        """Results of the first ranks, in their order."""
        rank_of = {ref: rank for rank, ref in enumerate(refs)}
        results: list[Any] = [None] * len(rank_of)
        pending, ends = list(rank_of), time.monotonic() + self._deadline_s
        while pending:
            done, pending = ray.wait(pending, timeout=POLL_S)
            if done:
                results[rank_of[done[0]]] = self._result(done[0], stage, rank_of[done[0]])
            elif time.monotonic() > ends:
                raise LearnerLostError(
                    f"learner {stage}: rank(s) {[rank_of[ref] for ref in pending]} did not answer within "
                    f"learner.deadline_s={self._deadline_s:g} at weight version {self._version}"
                )
            else:
                self.meanwhile()
        return results

    def _result(self, ref: Any, stage: str, rank: int) -> Any:
        try:
            return ray.get(ref)
        except RayTaskError as error:
            # Torch raises a plain RuntimeError when a peer is gone; a full disk is no loss that a new group mends.
            if isinstance(error.cause, FailureError) or not isinstance(error.cause, RuntimeError):
                raise
            if _out_of_memory(error.cause):  # a new group would come to the same point
                raise AffectError(self._too_large(stage, rank, error.cause)) from error
            raise self._lost(stage, f"rank {rank} failed", error.cause) from error
        except RayError as error:
            raise self._lost(stage, f"rank {rank} died", error) from error

    def _too_large(self, stage: str, rank: int, why: RuntimeError) -> str:
        settings = self._config.learner
        levers = [f"lower learner.tokens_per_microbatch={settings.tokens_per_microbatch}"]
        if not self._config.model.unless_tiny(settings.checkpoint_activations):
            levers.append("set learner.checkpoint_activations=true")
        if settings.zero_stage:
            levers.append(f"raise learner.workers={settings.workers}")
        further = "" if settings.zero_stage == 3 else "; learner.zero_stage=3, in a run of another `name`, needs least"
        return (
            f"learner {stage}: rank {rank} is out of memory at weight version {self._version} "
            f"({shorten(str(why), 200, placeholder=' ...')}): {', or '.join(levers)}, and go on with --resume{further}"
            "; `affect-rl plan` says what a rank needs"
        )

    def _lost(self, stage: str, what: str, why: object) -> LearnerLostError:
        return LearnerLostError(f"learner {stage}: {what} at weight version {self._version}: {why}")


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no memory, on a card or, where it raises no type of its own for it, on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
