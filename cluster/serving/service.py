"""A team as a service: asks encoders and engines, again elsewhere if one is lost, and no longer than a deadline."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import HTTPException
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from affect_rl.config.load import Config
from affect_rl.data.dataset import Manifest
from affect_rl.data.unlabelled import new_sample
from affect_rl.errors import AffectError
from affect_rl.evidence import Support
from affect_rl.sample import AffectSample
from affect_rl.team.agent import Writes
from affect_rl.trajectory import Output, Trajectory
from cluster.serving.api import Answer, Clip, Utterance
from cluster.serving.prediction import Prediction, episodes_for, found_rows
from rollout_workers.worker import EpisodeSpec

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_ATTEMPTS = 3
"""How often something is asked of replicas that die."""


class TeamService:
    """What the API asks, see `cluster.serving.api.Service`.

    Args:
        config: of the run.
        manifest: of the dataset that the team was trained on.
        engines: deployment of `EngineReplica`.
        encoders: deployment of `EncoderReplica`.
        token: what requests have to bring; empty: nothing.
    """

    def __init__(
        self, config: Config, manifest: Manifest, engines: DeploymentHandle, encoders: DeploymentHandle, token: str
    ) -> None:
        self._config, self._manifest = config, manifest
        self._engines, self._encoders = engines, encoders
        self.settings, self.token = config.serve, token

    async def policy(self) -> str:
        async with self._deadline():
            return (await self._persist(lambda: self._engines.play.remote([])))[1]

    async def answer(self, utterance: Utterance, clip: Clip | None = None) -> Answer:
        async with self._deadline():
            sample = await self._sample(utterance, clip)
            return await self._played(sample, self._specs(utterance, sample))

    async def answer_all(self, utterances: list[Utterance]) -> list[Answer]:
        async def one(utterance: Utterance) -> Answer:
            try:
                return await self.answer(utterance)
            except HTTPException as error:
                if error.status_code != 422:
                    raise
                return Answer(prediction=Prediction(utterance.name, problem=str(error.detail)), policy="")

        return list(await asyncio.gather(*map(one, utterances)))

    async def watch(self, utterance: Utterance, clip: Clip | None = None) -> AsyncIterator[dict[str, Any]]:
        ends = time.monotonic() + self.settings.deadline_s
        async with self._deadline():
            sample = await self._sample(utterance, clip)
        return self._events(sample, self._specs(utterance, sample), ends)

    async def _events(
        self, sample: AffectSample, specs: list[EpisodeSpec], ends: float
    ) -> AsyncIterator[dict[str, Any]]:
        """What happens until `ends`. The sampled episodes are played beside the one that is shown."""
        there = {"text": sample.text, "description": sample.description, "modalities": sample.modalities}
        yield {"event": "input", **there}
        votes = asyncio.ensure_future(self._persist(lambda: self._engines.play.remote(specs[1:])))
        try:
            async for event in self._watched(specs[0], ends):
                if not isinstance(event, Trajectory):
                    yield event
                    continue
                others, policy = await asyncio.wait_for(votes, ends - time.monotonic())
                answer = Answer(prediction=Prediction.of(sample, event, others), policy=policy)
                yield {"event": "answer", **answer.model_dump(mode="json")}
        except TimeoutError:
            raise self._late() from None
        finally:
            votes.cancel()

    async def _watched(self, spec: EpisodeSpec, ends: float) -> AsyncIterator[dict[str, Any] | Trajectory]:
        """The steps of an episode, then the episode; from the beginning again if its engine is lost."""
        for attempt in range(1, _ATTEMPTS + 1):
            events = self._engines.options(stream=True).watch.remote(spec)
            try:
                while True:
                    event = await asyncio.wait_for(anext(events), ends - time.monotonic())
                    if isinstance(event, Trajectory):
                        yield event
                        return
                    yield told(*event)
            except (RayActorError, RayTaskError, RayServeException) as error:
                if attempt == _ATTEMPTS or isinstance(error, BackPressureError):
                    raise _unavailable(error) from error
                logger.warning("an engine is lost, its episode begins again: %s", error)
                yield {"event": "again"}

    # -- asking -----------------------------------------------------------------------------------

    async def _sample(self, utterance: Utterance, clip: Clip | None) -> AffectSample:
        """The input as the team sees it."""
        more = {"speaker": utterance.speaker, "language": utterance.language}
        sample = new_sample(self._manifest, utterance.name, utterance.text, **more)
        if clip:
            sample = await self._persist(lambda: self._encoders.perceive.remote(sample, clip.name, clip.content))
        seen = sample.without([part for part in utterance.without if part != "retrieval"])
        if not seen.modalities:
            raise HTTPException(422, "there are neither words nor features to go by; send text, or ask without less")
        return seen

    def _specs(self, utterance: Utterance, sample: AffectSample) -> list[EpisodeSpec]:
        config, samples = self._config, utterance.samples
        if samples is None:
            samples = self.settings.samples
        if samples > self.settings.max_samples:
            raise HTTPException(422, f"samples: {samples} is more than serve.max_samples={self.settings.max_samples}")
        if "retrieval" in utterance.without:
            config = config.model_copy(update={"team": config.team.model_copy(update={"retrieval": False})})
        return episodes_for(config, sample, samples)

    async def _played(self, sample: AffectSample, specs: list[EpisodeSpec]) -> Answer:
        (greedy, *sampled), policy = await self._persist(lambda: self._engines.play.remote(specs))
        if not greedy.turns:  # its prompt is longer than the model's context
            raise HTTPException(422, greedy.output.problem)
        return Answer(prediction=Prediction.of(sample, greedy, sampled), policy=policy)

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.settings.deadline_s):
                yield
        except TimeoutError:
            raise self._late() from None

    def _late(self) -> HTTPException:
        seconds = self.settings.deadline_s
        return HTTPException(504, f"no answer within serve.deadline_s={seconds:g} s; try again, or ask for less")

    async def _persist(self, call: Callable[[], Awaitable[_Result]]) -> _Result:
        """The result of a call, asked again if the replica that had it is lost: nothing is learned from an episode, so
        it does no harm to play it twice."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await call()
            except (RayActorError, RayTaskError, RayServeException) as error:
                cause = error.cause if isinstance(error, RayTaskError) else error
                if isinstance(cause, AffectError):
                    raise HTTPException(422, str(cause)) from error
                if attempt == _ATTEMPTS or isinstance(error, BackPressureError):
                    raise _unavailable(error) from error
                logger.warning("a replica is lost, its request is asked again: %s", error)
        raise AssertionError


def told(name: str, writes: Writes) -> dict[str, Any]:
    """A step of the team as JSON."""
    return {"event": "step", "step": name, "writes": {slot: _plain(value) for slot, value in writes.items()}}


def _plain(value: Any) -> Any:
    """What stands in a slot, as JSON: evidence as rows, an output as its parts, anything unknown as text."""
    if isinstance(value, Output):
        return {"labels": value.labels, "rationale": value.rationale, "problem": value.problem, "text": value.text}
    if isinstance(value, Support):
        return [{"id": name, "labels": labels} for name, labels in zip(value.ids, value.labels, strict=True)]
    if isinstance(value, dict) and all(isinstance(items, tuple) for items in value.values()):
        return found_rows(value)
    if isinstance(value, dict):
        return {str(key): str(text) for key, text in value.items()}
    return [str(item) for item in value] if isinstance(value, tuple) else str(value)


def _unavailable(error: Exception) -> HTTPException:
    if isinstance(error, BackPressureError):
        return HTTPException(503, "too many requests wait (serve.max_queued); try again", {"Retry-After": "2"})
    logger.error("a request failed: %s", error)
    return HTTPException(503, "no engine could answer; try again", {"Retry-After": "5"})
