"""What a rollout worker holds of the retrieval service."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import ray
from ray.actor import ActorHandle, ActorMethod
from ray.exceptions import RayActorError

from affect_rl.evidence import CognitiveResult, Exclusion, Group, Support
from retrieval_service.errors import RetrievalError


def frontend_name(service: str) -> str:
    """Name of the frontend actor."""
    return f"{service}-frontend"


def shard_name(service: str, shard: int) -> str:
    """Name of one of the shard actors."""
    return f"{service}-shard-{shard}"


def find_shards(service: str, shards: int) -> tuple[ActorHandle, ...]:
    """The shard actors of a running service, in order."""
    return tuple(ray.get_actor(shard_name(service, shard)) for shard in range(shards))


class RetrievalClient:
    """Implements `affect_rl.evidence.Retrieve` by asking the service's frontend actor.

    It may be passed to any actor or task of the same Ray job; the service lives as long as the client
    that `launch_retrieval` returned. Answers are independent of what others ask at the same time.

    Args:
        name: of the service.
        frontend: the `RetrievalFrontend` actor.
        shards: the `IndexShard` actors behind it, in order.
        deadline_s: longest wait for an answer, restarts of actors included.
    """

    def __init__(self, name: str, frontend: ActorHandle, shards: Sequence[ActorHandle], deadline_s: float) -> None:
        self.name, self.frontend, self.shards, self._deadline_s = name, frontend, tuple(shards), deadline_s

    @classmethod
    def connect(cls, name: str, shards: int, deadline_s: float) -> Self:
        """The client of a running service."""
        return cls(name, ray.get_actor(frontend_name(name)), find_shards(name, shards), deadline_s)

    def __reduce__(self) -> tuple[Any, ...]:
        # By name: actor handles among the arguments of an actor make Ray doubt that it can restart it.
        return self.connect, (self.name, len(self.shards), self._deadline_s)

    async def cognitive(self, queries: Mapping[Group, str], k: int, exclusion: Exclusion) -> CognitiveResult:
        """Search the text index with one query a group, for up to `k` pieces of evidence each.

        Raises:
            RetrievalError: no answer within the deadline; a lost shard only marks it degraded.
        """
        found: CognitiveResult = await self._answer(
            "cognitive path", self.frontend.cognitive, dict(queries), k, exclusion
        )
        return found

    async def perceptual(self, audio: np.ndarray | None, video: np.ndarray | None, exclusion: Exclusion) -> Support:
        """Search the feature index with a sample's own features ``[T, d]``.

        Raises:
            RetrievalError: no answer within the deadline; a lost shard only marks it degraded.
            AffectError: the features are not as wide as the library's.
        """
        found: Support = await self._answer("perceptual path", self.frontend.perceptual, audio, video, exclusion)
        return found

    def stats(self, timeout_s: float) -> dict[str, Any]:
        """`RetrievalFrontend.stats`; may be asked from any thread, but not inside an actor's event loop.

        Raises:
            ray.exceptions.GetTimeoutError: no answer in time.
            ray.exceptions.RayActorError: the frontend is down.
        """
        return ray.get(self.frontend.stats.remote(), timeout=timeout_s)

    @property
    def actors(self) -> dict[str, ActorHandle]:
        """The service's actors by what they are called in logs and timelines."""
        return {"frontend": self.frontend, **{f"shard-{i}": shard for i, shard in enumerate(self.shards)}}

    def close(self) -> None:
        """Stop the service's actors."""
        for actor in self.actors.values():
            ray.kill(actor, no_restart=True)

    async def _answer(self, stage: str, method: ActorMethod, *question: Any) -> Any:
        asked = method.remote(pickle.dumps(question))
        try:
            answer: bytes = await asyncio.wait_for(asyncio.wrap_future(asked.future()), self._deadline_s)
        except (TimeoutError, RayActorError) as error:
            raise RetrievalError(
                f"retrieval, {stage}: the actor RetrievalFrontend gave no answer within {self._deadline_s:g} s "
                f"({type(error).__name__}); see Ray's logs, or raise retrieval.deadline_s"
            ) from error
        return pickle.loads(answer)
