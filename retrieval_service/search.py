"""Exact ranking on top of a FAISS index: the same rows, order and scores however the rows are sharded.

FAISS may round a score differently in another batch or another shard, and among equal scores it
returns any. So it only proposes: the proposed rows are scored again in double precision, which no
batch changes, and ranked by score, then by row. Where a row that FAISS left out might still tie with
the last one returned, it is asked for more.

This is exact for indexes that hold vectors as they are (``Flat``, ``IVF...,Flat``: shards share the
trained centroids). A quantised or graph index ranks well, but another sharding may propose other rows; so may
``IVF...,Flat`` on a card, which rounds more coarsely where it chooses the cells.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import faiss
import numpy as np

from affect_rl.errors import AffectError
from retrieval_service.merge import Hits, by_score

_SPARE = 8
_WIDEN = 4
_AT_ONCE = 2**24
"""Most numbers that are scored in double precision at once, 200 MB: a text that stands in the library ten thousand
times is proposed as often."""

# From so many numbers in a batch of queries on FAISS multiplies matrices; of fewer it takes one query after the other.
# Its own 128,000 are 333 queries of 384 numbers: 64 queries of 14,000 rows then take 4 to 11 times as long.
_FAISS_OWN, _FLAT = faiss.cvar.distance_compute_blas_threshold, 2000

MOST_ON_CARD = 1024
"""Rows that a card is asked for at once: it knows no more than 1,024 or 2,048, as its kind has it."""

_CARD_ROUNDING = 2.0**-9
"""Largest error of a card's inner product of unit vectors: its tensor cores may keep ten bits of each number."""


def on_card(index: faiss.Index) -> faiss.Index:
    """A copy of an index on the card that Ray gave this process.

    Raises:
        AffectError: this build of FAISS knows no cards, or has no index of this kind there.
    """
    if not hasattr(faiss, "StandardGpuResources"):
        raise AffectError(
            "retrieval.gpus_per_shard: this is a build of FAISS for the CPU; install the extra `gpu` on every node "
            "(faiss-gpu, without faiss-cpu), or set it to 0"
        )
    try:
        return faiss.index_cpu_to_gpu(_card_resources(), 0, index)
    except RuntimeError as error:
        raise AffectError(
            "retrieval.gpus_per_shard: FAISS cannot put this index on a card; let retrieval.factory and "
            f"retrieval.perceptual_factory be Flat or IVF, or set it to 0 ({error})"
        ) from error


@cache
def _card_resources() -> Any:
    """FAISS's working memory on the card, more than a gigabyte, which all indexes of a process share."""
    return faiss.StandardGpuResources()


class VectorIndex:
    """Unit vectors of some library rows, searchable by inner product.

    Args:
        trained: an empty FAISS index, trained if its kind needs that.
        vectors: ``[N, d]`` float32, may be memory-mapped.
        rows: the library row of each vector ``[N]`` int64, rising.
        parameters: FAISS search parameters, for example ``nprobe=16``.
        place: copies the filled index to where it is to propose rows, see `on_card`; None: it does so itself. More than
            `MOST_ON_CARD` rows it proposes in any case.
    """

    def __init__(
        self,
        trained: faiss.Index,
        vectors: np.ndarray,
        rows: np.ndarray,
        parameters: str = "",
        place: Callable[[faiss.Index], faiss.Index] | None = None,
    ) -> None:
        self._index = trained
        self._vectors, self._rows = vectors, rows
        if len(vectors):
            self._index.add(np.ascontiguousarray(vectors))
        if parameters:
            faiss.ParameterSpace().set_index_parameters(self._index, parameters)  # type: ignore[arg-type]
        kind = faiss.downcast_index(trained)
        # Not for IVF: which cells it looks into should not hang on how a product was rounded, and so on the batch.
        self._multiplies_from = _FLAT if isinstance(kind, faiss.IndexFlat) else _FAISS_OWN
        lossless = isinstance(kind, (faiss.IndexFlat, faiss.IndexIVFFlat))
        # gamma_d bounds the rounding of a d-term inner product of unit vectors.
        rounding = vectors.shape[1] * np.finfo(np.float32).eps + (_CARD_ROUNDING if place else 0.0)
        self._slack = rounding if lossless else -np.inf
        self._placed = place(self._index) if place else self._index

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """The best `k` rows (fewer columns if the index has fewer) for `queries` ``[Q, d]`` float32."""
        k = min(k, len(self._rows))
        hits = Hits(np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64))
        if k == 0:
            return hits
        unsettled, ask = np.arange(len(queries)), k + _SPARE
        faiss.cvar.distance_compute_blas_threshold = self._multiplies_from  # of the process, which searches one by one
        while len(unsettled):
            ask = min(ask, len(self._rows))
            index = self._placed if ask <= MOST_ON_CARD else self._index
            proposed, local = index.search(queries[unsettled], ask)
            scores, rows = self._ranked(queries[unsettled], local)
            hits.scores[unsettled], hits.rows[unsettled] = scores[:, :k], rows[:, :k]
            # Rows left out score at most the last proposal; a slot FAISS could not fill is -1: nothing is left out.
            settled = (ask == len(self._rows)) | (local[:, -1] < 0) | (scores[:, k - 1] > proposed[:, -1] + self._slack)
            unsettled, ask = unsettled[~settled], ask * _WIDEN
        return hits

    def _ranked(self, queries: np.ndarray, local: np.ndarray) -> Hits:
        scores, exact = np.empty(local.shape, np.float32), queries.astype(np.float64)
        columns = max(1, _AT_ONCE // queries.size)
        for start in range(0, local.shape[1], columns):
            block = slice(start, start + columns)
            vectors = self._vectors[local[:, block]].astype(np.float64)
            scores[:, block] = np.einsum("qkd,qd->qk", vectors, exact)
        missing = local < 0
        return by_score(np.where(missing, np.float32(-np.inf), scores), np.where(missing, -1, self._rows[local]))
