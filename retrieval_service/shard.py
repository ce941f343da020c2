"""A Ray actor that holds one block of the library's rows."""

from __future__ import annotations

import faiss
import numpy as np

from affect_rl.config.services import RetrievalConfig
from affect_rl.timeline import Span, Spans
from retrieval_service.index import IndexDirectory, IndexName
from retrieval_service.search import on_card


class IndexShard:
    """One shard of every index. All it needs is in its arguments, so Ray can restart it.

    Args:
        index_dir: an index directory that the driver has checked.
        config: search parameters, threads, number of shards, and whether they are on cards.
        shard: which of `config.shards` this is.

    Raises:
        AffectError: FAISS cannot put the indexes on a card.
    """

    def __init__(self, index_dir: str, config: RetrievalConfig, shard: int) -> None:
        self._shard, self._spans = shard, Spans()
        faiss.omp_set_num_threads(config.threads)
        directory = IndexDirectory.reopen(index_dir)
        place = on_card if config.gpus_per_shard else None
        self._indexes = {
            name: directory.vector_index(name, config, shard, config.shards, place) for name in directory.names
        }

    def __repr__(self) -> str:
        return f"shard-{self._shard}"  # in Ray's dashboard and logs

    def ready(self) -> None:
        """Returns once the shard can answer."""

    def search(self, index: IndexName, vectors: bytes, queries: int, k: int) -> bytes:
        """This shard's best `k` rows for so many `queries`, as `Hits.to_bytes`; `vectors` are ``[Q, d]`` float32."""
        with self._spans("search"):
            asked = np.frombuffer(vectors, np.float32).reshape(queries, -1)
            return self._indexes[index].search(asked, k).to_bytes()

    def spans(self) -> list[Span]:
        """What it has done since this was asked last."""
        return self._spans.fetch()
