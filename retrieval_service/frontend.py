"""The Ray actor that episodes talk to: it batches their queries, asks all shards and merges.

A Ray round trip costs about as much as searching a small shard. With encoder, scatter and merge in
one actor an episode pays for one, and the round trips to the shards are shared by a whole batch.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections import defaultdict, deque
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from affect_rl.config.services import RetrievalConfig
from affect_rl.evidence import CognitiveResult, Support
from affect_rl.timeline import Span, Spans
from retrieval_service.batching import MicroBatcher
from retrieval_service.client import find_shards
from retrieval_service.errors import RetrievalError
from retrieval_service.index import IndexDirectory, IndexName
from retrieval_service.merge import Hits, merge_hits
from retrieval_service.retriever import Found, Retriever

_SEARCHES_IN_FLIGHT = 4
_RETRY_S = 0.2
_LATEST = 1000
"""Searches that latencies are told of."""

_INLINE_BYTES = 100_000
"""What Ray sends along with a call. A longer argument it stores first, once for each call."""

Answer = TypeVar("Answer", CognitiveResult, Support)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ServiceCounts:
    """What a frontend counts since its start.

    Attributes:
        searches_total: questions of episodes answered.
        seconds_total: from question to answer, added up.
        degraded_total: answers that lack a shard.
        queries_total: texts encoded.
        batches_total: calls of the encoder for them.
    """

    searches_total: int = 0
    seconds_total: float = 0.0
    degraded_total: int = 0
    queries_total: int = 0
    batches_total: int = 0


@dataclass(slots=True)
class ShardCounts:
    """What a frontend counts of a shard since its start.

    Attributes:
        searches_total: batches of queries answered.
        seconds_total: that they took, added up, the way there and back included.
        failures_total: batches that it did not answer, or not in time.
        restarts_total: how often it was killed because it hung.
    """

    searches_total: int = 0
    seconds_total: float = 0.0
    failures_total: int = 0
    restarts_total: int = 0


class RetrievalFrontend:
    """Serves `affect_rl.evidence.Retrieve` to all episodes of a job.

    Questions and answers are pickled by `RetrievalClient` and here: Ray takes half a millisecond longer for it.

    Args:
        index_dir: an index directory that the driver has checked.
        config: encoder, batches, deadlines.
        service: name of the service, by which the shard actors are found.
    """

    def __init__(self, index_dir: str, config: RetrievalConfig, service: str) -> None:
        from retrieval_service.encoder import TextEncoder  # torch is wanted in the actor, not in the driver

        self._encoder = TextEncoder(config)
        self._shards = ShardPool(find_shards(service, config.shards), config)
        self._encode_batch: MicroBatcher[str, np.ndarray] = MicroBatcher(
            self._encode_many, max_batch=config.max_batch, window_s=config.batch_window_ms / 1000, concurrency=1
        )
        self._search_batch: MicroBatcher[_Query, Found] = MicroBatcher(
            self._search_many, max_batch=config.max_batch, window_s=0, concurrency=_SEARCHES_IN_FLIGHT
        )
        self._counts, self._spans = ServiceCounts(), Spans()
        self._latencies: deque[float] = deque(maxlen=_LATEST)
        directory = IndexDirectory.reopen(index_dir)
        self._retriever = Retriever(directory, config, self._encode, self._search)

    def __repr__(self) -> str:
        return "frontend"  # in Ray's dashboard and logs

    async def ready(self) -> None:
        """Returns once the frontend can answer."""

    async def cognitive(self, question: bytes) -> bytes:
        """See `affect_rl.evidence.Retrieve`."""
        return await self._counted(self._retriever.cognitive(*pickle.loads(question)))

    async def perceptual(self, question: bytes) -> bytes:
        """See `affect_rl.evidence.Retrieve`."""
        return await self._counted(self._retriever.perceptual(*pickle.loads(question)))

    async def _counted(self, answer: Coroutine[Any, Any, Answer]) -> bytes:
        begun = time.perf_counter()
        found = await answer
        seconds = time.perf_counter() - begun
        self._latencies.append(seconds)
        self._counts.searches_total += 1
        self._counts.seconds_total += seconds
        self._counts.degraded_total += found.degraded
        return pickle.dumps(found)

    async def stats(self) -> dict[str, Any]:
        """The counters of `ServiceCounts`; ``latency_p95_seconds`` of the latest searches;
        ``waiting_queries``, not encoded yet; and under ``shards`` the counters of `ShardCounts`, in order."""
        return {
            **asdict(self._counts),
            "latency_p95_seconds": float(np.quantile(self._latencies or [0.0], 0.95)),
            "waiting_queries": self._encode_batch.waiting,
            "shards": [asdict(counts) for counts in self._shards.counts],
        }

    async def _encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack(await asyncio.gather(*map(self._encode_batch, texts)))

    async def _encode_many(self, texts: list[str]) -> list[np.ndarray]:
        self._counts.queries_total += len(texts)
        self._counts.batches_total += 1
        with self._spans("encode"):
            return list(await asyncio.to_thread(self._encoder.encode_queries, texts))

    async def spans(self) -> list[Span]:
        """What it has done since this was asked last."""
        return self._spans.fetch()

    async def _search(self, index: IndexName, query: np.ndarray, k: int) -> Found:
        return await self._search_batch(_Query(index, query, k))

    async def _search_many(self, queries: list[_Query]) -> list[Found]:
        """One call per shard, index and k: the few queries that search again for more must not widen all others."""
        members: dict[tuple[IndexName, int], list[int]] = defaultdict(list)
        for i, query in enumerate(queries):
            members[query.index_name, query.k].append(i)
        found: dict[int, Found] = {}
        for (index, k), places in members.items():
            hits, degraded = await self._shards.search(index, np.stack([queries[i].vector for i in places]), k)
            found.update({i: Found.of(hits, place, k, degraded) for place, i in enumerate(places)})
        return [found[i] for i in range(len(queries))]


class _Query(NamedTuple):
    index_name: IndexName
    vector: np.ndarray
    k: int


class _Late(NamedTuple):
    call: asyncio.Future[bytes]
    since: float


class ShardPool:
    """Scatters searches over shards and gathers what comes back in time.

    Ray starts a shard anew whose process has died, but does not see one that hangs: that is killed here.
    """

    def __init__(self, shards: Sequence[ActorHandle], config: RetrievalConfig) -> None:
        self._shards = shards
        self._timeout_s, self._deadline_s = config.shard_timeout_s, config.deadline_s
        self._late: dict[int, _Late] = {}
        self.counts = [ShardCounts() for _ in shards]

    async def search(self, index: IndexName, queries: np.ndarray, k: int) -> tuple[Hits, bool]:
        """The merged answer to `queries` ``[Q, d]``, and whether a shard is missing from it.

        Raises:
            RetrievalError: no shard answered within the deadline.
        """
        give_up = time.monotonic() + self._deadline_s
        vectors = np.asarray(queries, np.float32).tobytes()
        asked = index, ray.put(vectors) if len(vectors) > _INLINE_BYTES else vectors, len(queries), k
        while True:
            answers = await asyncio.gather(*(self._ask(i, *asked) for i in range(len(self._shards))))
            hits = [answer for answer in answers if answer is not None]
            if hits:
                return merge_hits(hits, k), len(hits) < len(self._shards)
            if time.monotonic() > give_up:
                for i in [i for i, late in self._late.items() if not late.call.done()]:
                    self._start_anew(i)
                raise RetrievalError(
                    f"retrieval, search of index {index!r}: none of the {len(self._shards)} shards answered within "
                    f"retrieval.deadline_s={self._deadline_s:g}; see why the actors IndexShard die in Ray's logs"
                )
            await asyncio.sleep(_RETRY_S)

    async def _ask(
        self, i: int, index: IndexName, vectors: bytes | ray.ObjectRef[bytes], queries: int, k: int
    ) -> Hits | None:
        """One shard's answer, or None. A shard that is late is not asked again until it has caught up."""
        counts = self.counts[i]
        if self._is_late(i):
            counts.failures_total += 1
            return None
        begun = time.monotonic()
        call = asyncio.wrap_future(self._shards[i].search.remote(index, vectors, queries, k).future())
        try:
            sent = await asyncio.wait_for(asyncio.shield(call), self._timeout_s)
        except TimeoutError:
            logger.warning("retrieval shard %d has not answered in %g s; going on without it", i, self._timeout_s)
            call.add_done_callback(lambda done: done.exception())
            self._late[i] = _Late(call, begun)
        except RayActorError as error:
            logger.warning("retrieval shard %d is down (%s); going on without it", i, type(error).__name__)
        else:
            counts.searches_total += 1
            counts.seconds_total += time.monotonic() - begun
            return Hits.from_bytes(sent, queries)
        counts.failures_total += 1
        return None

    def _is_late(self, i: int) -> bool:
        """Whether a shard still owes an answer; one that does at the deadline hangs, and is started anew."""
        late = self._late.get(i)
        if late is None or late.call.done():
            return False
        if time.monotonic() > late.since + self._deadline_s:
            self._start_anew(i)
        return True

    def _start_anew(self, i: int) -> None:
        deadline = f"retrieval.deadline_s={self._deadline_s:g}"
        logger.warning("retrieval shard %d has not answered within %s; it is started anew", i, deadline)
        self._late[i] = self._late[i]._replace(since=time.monotonic())
        self.counts[i].restarts_total += 1
        ray.kill(self._shards[i], no_restart=False)
