"""A team as a service: asks encoders and engines, again elsewhere if one is lost, and no longer than a deadline."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import HTTPException
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

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
from retrieval_service.errors import RetrievalError
from rollout_workers.worker import EpisodeSpec

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
"""How often something is asked of replicas that die."""
_ATTEMPTS_CLIP = 2
"""How often a clip is decoded by replicas that die: it may be what they die of."""
_PAUSE_S = 3.0
"""Before it is asked again, times the attempt: Serve needs some seconds to see that an engine is dead."""
_AT_ONCE = 16
"""Utterances of one batch that are played at a time."""
_FRESH_S = 2.0
"""How old the answer to a question for the service's health may be."""
_LOSSES = (RayActorError, RayTaskError, RayServeException)
"""What a call of a replica may fail with."""


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
        self._asking, self._known, self._known_at = asyncio.Lock(), "", -math.inf

    async def policy(self) -> str:
        """Of at most `_FRESH_S` ago: as an engine answered a request, or is asked if none did. So whoever asks for the
        service's health does not wait behind its work."""
        async with self._deadline(), self._asking:
            if time.monotonic() > self._known_at + _FRESH_S:
                await self._play([])
        return self._known

    async def _play(self, specs: list[EpisodeSpec]) -> tuple[list[Trajectory], str]:
        """Episodes, and the policy of the engine that played them."""
        played, self._known = await self._persist(lambda: self._engines.play.remote(specs))
        self._known_at = time.monotonic()
        return played, self._known

    async def answer(self, utterance: Utterance, clip: Clip | None = None) -> Answer:
        return await self._answer_by(self._ends(), utterance, clip)

    async def _answer_by(self, ends: float, utterance: Utterance, clip: Clip | None = None) -> Answer:
        async with self._deadline(ends):
            sample = await self._sample(utterance, clip)
            specs = self._specs(utterance, sample)
            (greedy, *sampled), policy = await self._play(specs)
        return _answer(sample, greedy, sampled, policy)

    async def answer_all(self, utterances: list[Utterance]) -> list[Answer]:
        """A few at a time, so that whoever comes with one utterance is not behind all of them; all by one deadline."""
        places, ends = asyncio.Semaphore(_AT_ONCE), self._ends()

        async def one(utterance: Utterance) -> Answer:
            async with places:
                try:
                    return await self._answer_by(ends, utterance)
                except HTTPException as error:
                    return Answer(prediction=Prediction(utterance.name, problem=str(error.detail)), policy="")

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(utterance)) for utterance in utterances]
        return [task.result() for task in tasks]

    async def watch(self, utterance: Utterance, clip: Clip | None = None) -> AsyncIterator[dict[str, Any]]:
        ends = self._ends()
        async with self._deadline(ends):
            sample = await self._sample(utterance, clip)
        return self._events(sample, self._specs(utterance, sample), ends)

    async def _events(
        self, sample: AffectSample, specs: list[EpisodeSpec], ends: float
    ) -> AsyncIterator[dict[str, Any]]:
        """What happens until `ends`. The sampled episodes are played beside the one that is shown."""
        there = {"text": sample.text, "description": sample.description, "modalities": sample.modalities}
        yield {"event": "input", **there}
        votes = asyncio.ensure_future(self._play(specs[1:]))
        try:
            async for event in self._watched(specs[0], ends):
                if isinstance(event, dict):
                    yield event
                    continue
                greedy, policy = event
                others, _ = await asyncio.wait_for(votes, ends - time.monotonic())
                yield {"event": "answer", **_answer(sample, greedy, others, policy).model_dump(mode="json")}
        except TimeoutError:
            raise self._late() from None
        finally:
            votes.cancel()

    async def _watched(self, spec: EpisodeSpec, ends: float) -> AsyncIterator[dict[str, Any] | tuple[Trajectory, str]]:
        """The steps of an episode, then the episode and whose it is; from the beginning again if its engine is lost."""
        for attempt in range(1, _ATTEMPTS + 1):
            events = self._engines.options(stream=True).watch.remote(spec)
            try:
                while True:
                    event = await asyncio.wait_for(anext(events), ends - time.monotonic())
                    if isinstance(event[0], Trajectory):
                        yield event
                        return
                    yield told(*event)
            except _LOSSES as error:
                await self._after(error, attempt)
                yield {"event": "again"}
            finally:
                events.cancel()  # Serve ends what nobody waits for only if it is told

    # -- asking -----------------------------------------------------------------------------------

    async def _sample(self, utterance: Utterance, clip: Clip | None) -> AffectSample:
        """The input as the team sees it; what cannot be asked for is refused before a clip is encoded."""
        if (utterance.samples or 0) > self.settings.max_samples:
            raise HTTPException(
                422, f"samples: {utterance.samples} is more than serve.max_samples={self.settings.max_samples}"
            )
        more = {"speaker": utterance.speaker, "language": utterance.language}
        sample = new_sample(self._manifest, utterance.name, utterance.text, **more)
        if clip:
            given = (sample, clip.name, clip.content, utterance.without)
            sample = await self._persist(lambda: self._encoders.perceive.remote(*given), _ATTEMPTS_CLIP)
        seen = sample.without([part for part in utterance.without if part != "retrieval"])
        if not seen.modalities:
            raise HTTPException(422, "there are neither words nor features to go by; send text, or ask without less")
        return seen

    def _specs(self, utterance: Utterance, sample: AffectSample) -> list[EpisodeSpec]:
        config = self._config
        samples = self.settings.samples if utterance.samples is None else utterance.samples
        if "retrieval" in utterance.without:
            config = config.model_copy(update={"team": config.team.model_copy(update={"retrieval": False})})
        return episodes_for(config, sample, samples)

    @asynccontextmanager
    async def _deadline(self, ends: float | None = None) -> AsyncIterator[None]:
        """Until `ends`, see `_ends`; None: that of a request that begins now."""
        ends = self._ends() if ends is None else ends
        if ends <= time.monotonic():  # nobody is asked any more
            raise self._late()
        try:
            async with asyncio.timeout(ends - time.monotonic()):
                yield
        except TimeoutError:
            raise self._late() from None

    def _ends(self) -> float:
        """When a request has to be done that begins now, by the monotonic clock."""
        return time.monotonic() + self.settings.deadline_s

    def _late(self) -> HTTPException:
        seconds = self.settings.deadline_s
        return HTTPException(504, f"no answer within serve.deadline_s={seconds:g} s; try again, or ask for less")

    async def _persist(self, call: Callable[[], DeploymentResponse[Any]], attempts: int = _ATTEMPTS) -> Any:
        """The result of a call, asked again if the replica that had it is lost: nothing is learned from an episode, so
        it does no harm to play it twice."""
        for attempt in range(1, attempts + 1):
            response = call()
            try:
                return await response
            except _LOSSES as error:
                await self._after(error, attempt, attempts)
            except asyncio.CancelledError:
                response.cancel()  # Serve ends what nobody waits for only if it is told
                raise
        raise AssertionError

    async def _after(self, error: Exception, attempt: int, attempts: int = _ATTEMPTS) -> None:
        """Raise what the request ends with; or wait a little, if it is to be asked again."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, AffectError):
            raise HTTPException(422, str(cause)) from error
        if isinstance(cause, BackPressureError):
            detail = "too many requests wait (serve.max_queued); try again"
            raise HTTPException(503, detail, {"Retry-After": "2"}) from error
        if isinstance(cause, RetrievalError):
            detail = f"the evidence service does not answer; try again, or ask without retrieval ({cause})"
            raise HTTPException(503, detail, {"Retry-After": "5"}) from error
        if attempt == attempts:
            logger.error("a request failed: %s", error)
            raise HTTPException(503, "no engine could answer; try again", {"Retry-After": "5"}) from error
        logger.warning("a replica is lost, its request is asked again: %s", error)
        await asyncio.sleep(_PAUSE_S * attempt)


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


def _answer(sample: AffectSample, greedy: Trajectory, sampled: list[Trajectory], policy: str) -> Answer:
    if not greedy.turns:  # its prompt is longer than the model's context
        raise HTTPException(422, greedy.output.problem)
    return Answer(prediction=Prediction.of(sample, greedy, sampled), policy=policy)
