"""How each version of the learner's weights comes into the engines of a pool."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import ray

from affect_rl.config.load import Config
from affect_rl.policy.transfer import Meeting
from affect_rl.policy.weights import WeightsHandle, weights_parent
from cluster.runtime.pool import RolloutPool
from learners.group import LearnerGroup

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """A version that all healthy engines have.

    Attributes:
        handle: what they were given.
        pack_s: seconds that the learner prepared it, while engines could go on playing.
        load_s: seconds until all engines had it, each standing still for as long as it loads; with
            ``train.verify_sync`` those of comparing checksums as well.
    """

    handle: WeightsHandle
    pack_s: float
    load_s: float


class Publisher:
    """Gives the engines of a pool the weights of a learner, by the transfer that ``rollout.transfer`` names.

    A broadcast goes through a group of the learner's rank 0 and the ranks of all healthy engines, which is made anew
    when an engine is lost or comes back. Engines that it does not reach read a file, and so do those that come back.

    Args:
        config: sections `rollout`, `learner` and `train`.
        learner: has the weights.
        pool: the engines.
    """

    def __init__(self, config: Config, learner: LearnerGroup, pool: RolloutPool) -> None:
        self._config, self._settings = config, config.rollout
        self._learner, self._pool = learner, pool
        self._members: dict[int, int] = {}
        self._apart: dict[int, int] = {}  # that did not come together
        self._known: dict[int, int] = {}
        self._addresses: set[str] = set()
        self._latest: WeightsHandle

    def publish(self, version: int) -> Published:
        """Give the learner's current weights to all healthy engines as version `version`.

        Raises:
            RolloutError: an engine has other weights afterwards.
        """
        begun = time.perf_counter()
        behind: list[int] | None = None
        if self._settings.transfer == "collective" and self._meet():
            announcement = self._learner.announce(version)
            handle = WeightsHandle(version, "", announcement.bytes, announcement.checksum)
            packed = time.perf_counter()
            sent: list[bool] = []
            answers = self._pool.ask(
                "receive_weights",
                meanwhile=lambda: sent.append(self._learner.send(version)),
                announcement=announcement,
            )
            behind = [actor for actor, received in answers if received != version]
            if behind or not all(sent):
                logger.warning(
                    "weights: the broadcast of version %d broke off, engines %s read a file", version, behind
                )
                self._members = {}
            if behind:
                handle = self._write(version)
        else:
            handle = self._write(version)
            packed = time.perf_counter()
        self._latest = handle
        verify = self._config.train.verify_sync
        self._pool.sync(handle, verify=verify, only=behind, stored=self._stored)
        return Published(handle, packed - begun, time.perf_counter() - packed)

    def _write(self, version: int) -> WeightsHandle:
        return self._learner.publish(version, self._parent(len({self._learner.address, *self._look()})))

    def _parent(self, nodes: int) -> str:
        return weights_parent(self._settings.weights_dir, self._config.run_dir, nodes)

    def _stored(self) -> WeightsHandle | None:
        """The latest weights in a file that any node can read, if the learner has not gone on from them."""
        parent, version = self._parent(sum(node["Alive"] for node in ray.nodes())), self._latest.version
        if self._latest.path and (not parent or Path(self._latest.path).is_relative_to(parent)):
            return self._latest
        if not self._learner.holds(version):
            return None
        self._latest = self._learner.publish(version, parent)
        return self._latest

    def _look(self) -> set[str]:
        """Addresses of the nodes on which engines are."""
        if self._known != self._pool.incarnations():
            self._addresses = {address for _, address in self._pool.ask("address")}
            self._known = self._pool.incarnations()
        return self._addresses

    def _meet(self) -> bool:
        """See to it that the learner and all healthy engines are in one group; False: it did not come about."""
        if self._members and self._members == self._pool.incarnations():
            return True
        self._members = {}
        nodes = {self._learner.address, *self._look()}
        members = self._pool.incarnations()
        if not members or members == self._apart:
            return False
        cards = self._settings.gpus_per_worker and self._config.learner.gpus_per_worker
        meeting = Meeting(
            store=self._learner.open_meeting(),
            members=1 + len(members) * self._settings.tensor_parallel,
            backend="nccl" if cards else "gloo",
            one_node=len(nodes) == 1,
            # Those that wait for a lost one have to be heard of before they count as lost themselves.
            timeout_s=self._settings.deadline_s / 2,
        )
        came: list[bool] = []
        answers = self._pool.ask(
            "join_group", meanwhile=lambda: came.append(self._learner.join_group(meeting)), meeting=meeting
        )
        if all(came) and all(joined for _, joined in answers) and self._pool.incarnations() == members:
            self._members = members
        else:
            self._apart = members  # to try again at each step would cost this wait each time
            logger.warning(
                "weights: learner and engines could not form a group within %g s, so engines read files until one of "
                "them is lost or comes back; let nodes reach each other on all ports, or set rollout.transfer=file",
                meeting.timeout_s,
            )
        return bool(self._members)
