"""What serving runs on: engines that play episodes, and encoders that make features of clips.

Plain classes; `cluster.serving.application` makes them Serve deployments.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from affect_rl.config.job import DataConfig
from affect_rl.config.load import Config
from affect_rl.data.dataset import Dataset
from affect_rl.data.extraction import Extraction
from affect_rl.data.feature_parts import MediaFiles
from affect_rl.data.media_encoder import MediaEncoder
from affect_rl.data.unlabelled import VIDEOS
from affect_rl.errors import AffectError
from affect_rl.policy.directory import check_manifest, manifest_hash
from affect_rl.policy.weights import stored_weights
from affect_rl.sample import AffectSample
from affect_rl.trajectory import Trajectory
from cluster.serving.inputs import Likener, check_encoders, with_clip
from retrieval_service.client import RetrievalClient
from rollout_workers.worker import EpisodeSpec, RolloutWorker

logger = logging.getLogger(__name__)


class EngineReplica:
    """One engine with the team's policy. When another policy lies where it came from, that one is taken over, episodes
    in flight included.

    Args:
        config: of the run; its engines need not be deterministic.
        policy: directory of the policy.
        retrieval: the evidence service; None: the team plays without.
    """

    def __init__(self, config: Config, policy: Path, retrieval: RetrievalClient | None) -> None:
        # Before the engine reads it: a policy that is replaced meanwhile is then loaded once more, and not missed.
        self._known = self._failed = _identity(policy)
        check_manifest(policy)  # a replica may start long after the service did, with another policy
        self._worker = RolloutWorker(config, policy, retrieval)
        self._policy, self._every_s = policy, config.serve.policy_every_s
        self._watching: asyncio.Task[None] | None = None

    async def play(self, specs: Sequence[EpisodeSpec]) -> tuple[list[Trajectory], str]:
        """Play episodes; also which policy the engine had when they began."""
        self._watch_policy()
        known = self._known
        return await self._worker.play(specs), known

    async def watch(self, spec: EpisodeSpec) -> AsyncIterator[Any]:
        """Play one episode: its steps, see `RolloutWorker.watch`, and at the end what `play` would give for it."""
        self._watch_policy()
        known = self._known
        async for event in self._worker.watch(spec):
            yield (event, known) if isinstance(event, Trajectory) else event

    async def check_health(self) -> None:
        """Serve asks this now and then, and replaces a replica that raises."""
        self._watch_policy()
        await self._worker.ping()
        if self._worker.engine.torn:
            raise RuntimeError(f"{self._policy}: was loaded in part only")

    def _watch_policy(self) -> None:
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            now = self._known
            try:
                now = _identity(self._policy)
                if now != self._known:
                    await self._take_over(now)
            except Exception as error:  # of whatever kind: it must not end the watching, nor the service
                if now != self._failed:  # said once; tried again, for it may still be on its way here
                    torn = self._worker.engine.torn
                    what = "it was loaded in part, and the engine starts anew" if torn else "the policy before stays"
                    logger.warning("%s: cannot be taken over, %s: %r", self._policy, what, error)
                self._failed = now

    async def _take_over(self, now: str) -> None:
        await asyncio.to_thread(check_manifest, self._policy)
        await self._worker.update_weights(stored_weights(self._policy, self._worker.engine.version + 1))
        self._known = now
        logger.warning("%s: policy %s is taken over", self._policy, now)


def _identity(policy: Path) -> str:
    """Short name of a policy's content: its manifest has the hashes of all files."""
    return manifest_hash(policy)[:12]


CLIPS_AT_ONCE = 2
"""Requests that an `EncoderReplica` has at once, and its threads."""


class EncoderReplica:
    """The encoders of a team's dataset, and what it makes of what they measure.

    Args:
        data: the dataset that the team was trained on.
        device: ``cpu`` or ``cuda``.

    Raises:
        AffectError: an encoder is not what it was when the dataset's features were made.
    """

    def __init__(self, data: DataConfig, device: str = "cpu") -> None:
        dataset = Dataset.of(data)
        self._extraction = dataset.manifest.extraction or Extraction(None, None)
        check_encoders(self._extraction)
        self._encoder = MediaEncoder(self._extraction, device)
        self._likener = Likener(dataset)
        # Whoever gives up waiting gives his place back, and a thread that has begun goes on: of those there are no more
        # than places, and what has not begun by then never does.
        self._threads = ThreadPoolExecutor(CLIPS_AT_ONCE, "clip")

    async def perceive(
        self, sample: AffectSample, name: str, content: bytes, without: Collection[str] = ()
    ) -> AffectSample:
        """The sample with the features of a clip, and with words for them.

        Args:
            sample: what else is known.
            without: modalities that are not looked at.
            name: of the clip's file; its suffix says whether there is anything to see.
            content: of the file.

        Raises:
            AffectError: the clip cannot be used, or there is no encoder for it and there are no words either.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._perceive, sample, name, content, without)

    def _perceive(self, sample: AffectSample, name: str, content: bytes, without: Collection[str]) -> AffectSample:
        with TemporaryDirectory(prefix="affect-rl-") as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(content)
            hears = self._extraction.speech and "audio" not in without
            sees = self._extraction.image and "video" not in without and path.suffix.lower() in VIDEOS
            files = MediaFiles(sample.id, path if hears else None, path if sees else None)
            (found,) = self._encoder.encode([files])
        sample, problem = with_clip(sample, found)
        if problem:
            raise AffectError(problem.replace(f"{folder}/", ""))
        return self._likener.liken([sample])[0]
