"""The learner as the training loop sees it: all ranks behind one object."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from affect_rl.config.actors import Place, anywhere, learners
from affect_rl.config.load import Config
from affect_rl.errors import AffectError
from affect_rl.policy.config import AffectConfig
from affect_rl.policy.publication import Announcement
from affect_rl.policy.transfer import Meeting
from affect_rl.policy.weights import WeightsHandle, check_weights_dir
from affect_rl.timeline import Span
from affect_rl.trajectory import Trajectory
from learners.learner import LearnerWorker
from learners.meeting import seats
from learners.shares import deal

CLOSING_S = 5.0
"""How long rank 0 may take to delete what it published."""


class LearnerGroup:
    """`learner.workers` ranks, one Ray actor each.

    Attributes:
        address: of the node from which weights go out, that of rank 0.

    Every method runs on all ranks at once and ends within `learner.deadline_s`. A rank that fails ends
    the call at once (the others would wait for it in a collective); the group is then of no more use.

    Raises (every method):
        TimeoutError: a rank did not answer in time; the message names stage, ranks and version.
        RuntimeError: a rank died; likewise.
        AffectError: the input is at fault.
    """

    def __init__(self, config: Config, policy_dir: Path, *, seed: int, place: Place = anywhere) -> None:
        """Start the ranks and load the policy directory, which is also the frozen reference; `place` says where.

        Its files are not hashed, which takes a minute for a large model: call `check_manifest` once for all ranks.
        """
        settings = config.learner
        self._config, self._seed, self._updates = config, seed, 0
        self._deadline_s, self._version = settings.deadline_s, 0
        if settings.share_prefix and AffectConfig.from_pretrained(policy_dir).slides:
            raise AffectError(
                f"learner.share_prefix: the model of {policy_dir} attends in sliding windows, which rows that share "
                "their prefix would not keep; set it to false"
            )
        check_weights_dir(config.rollout.weights_dir)
        self._holds: int | None = None
        self._written: set[Path] = set()
        actor = ray.remote(LearnerWorker)
        self._workers = [
            actor.options(**options).remote(config, policy_dir.resolve(), rank, seed)
            for rank, options in enumerate(place(learners(settings)))
        ]
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        """Let the ranks meet and load the policy."""
        places = self._all("place")
        self.address: str = places[0][0]
        self._each("start", [(seat,) for seat in seats([address for address, _ in places], places[0][1])])

    def update(self, episodes: Sequence[Trajectory], version: int) -> dict[str, float]:
        """One training step on episodes; `version` is that of the weights being updated. Returns metrics.

        A rank is sent the episodes that it trains on, and of the others the numbers alone.
        """
        self._version, self._holds = version, None
        config, seed = self._config, (self._seed, self._updates)
        separate = config.algorithm.separate_critic
        adapters = config.team.adapters if config.model.lora.rank else None
        step, shares = deal(
            episodes, config.team.trained, config.learner, seed, separate_critic=separate, adapters=adapters
        )
        self._updates += 1
        known = ray.put(step)
        return self._each("update", [(known, share) for share in shares])[0]

    def holds(self, version: int) -> bool:
        """Whether the current weights are still those that were published or announced as this version."""
        return self._holds == version

    def publish(self, version: int, parent: str | None = None) -> WeightsHandle:
        """Write the current weights as version `version` for the engines to read.

        `parent`: where rank 0 makes a directory for them, see `new_weights_dir`; None: as ``rollout.weights_dir`` says.
        """
        self._version = self._holds = version
        where = self._config.rollout.weights_dir if parent is None else parent
        handle: WeightsHandle = self._all("publish", version, where)[0]
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
        if self._workers:
            ray.wait([self._workers[0].withdraw.remote()], timeout=CLOSING_S)
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []
        for directory in self._written:  # where rank 0 could not do it itself
            shutil.rmtree(directory, ignore_errors=True)

    def _all(self, stage: str, *args: Any) -> list[Any]:
        """Call a method with the same arguments on all ranks; results in the order of ranks."""
        return self._each(stage, [args] * len(self._workers))

    def _each(self, stage: str, args: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method on all ranks, on each with arguments of its own; results in the order of ranks."""
        calls = zip(self._workers, args, strict=True)
        return self._await(stage, [getattr(worker, stage).remote(*own) for worker, own in calls])

    def _await(self, stage: str, refs: Sequence[Any]) -> list[Any]:
        """Results of the first ranks, in their order."""
        rank_of = {ref: rank for rank, ref in enumerate(refs)}
        results: list[Any] = [None] * len(rank_of)
        pending, ends = list(rank_of), time.monotonic() + self._deadline_s
        while pending:
            done, pending = ray.wait(pending, timeout=max(0.0, ends - time.monotonic()))
            if not done:
                raise TimeoutError(
                    f"learner {stage}: rank(s) {[rank_of[ref] for ref in pending]} did not answer within "
                    f"learner.deadline_s={self._deadline_s:g} at weight version {self._version}"
                )
            rank = rank_of[done[0]]
            try:
                results[rank] = ray.get(done[0])
            except RayActorError as error:
                message = f"learner {stage}: rank {rank} died at weight version {self._version}: {error}"
                raise RuntimeError(message) from error
        return results
