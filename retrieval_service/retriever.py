"""One episode's retrieval: encode, search, exclude, allocate; and search again where too little was left.

The same coroutine answers in one process (`LocalRetriever`) and behind shards and batches
(`retrieval_service.frontend`): only `encode` and `search` differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from affect_rl.config.services import RetrievalConfig
from affect_rl.errors import AffectError
from affect_rl.evidence import CognitiveResult, Exclusion, Group, Support
from retrieval_service.index import IndexDirectory, IndexName
from retrieval_service.merge import Candidate, Hits, allocate
from retrieval_service.perceptual import MODALITIES, PerceptualModality, join, time_average

_WIDEN = 4

G = TypeVar("G", bound=str)


class Found(NamedTuple):
    """Answer to one query: `scores` and `rows` ``[n]``, n < k only if the index has no more."""

    scores: np.ndarray
    rows: np.ndarray
    degraded: bool

    @classmethod
    def of(cls, hits: Hits, query: int, k: int, degraded: bool) -> Found:
        """The answer to one of the queries of a batch."""
        count = min(k, int((hits.rows[query] >= 0).sum()))
        return cls(hits.scores[query, :count], hits.rows[query, :count], degraded)


class Encode(Protocol):
    """Query texts to unit vectors ``[N, d]``."""

    def __call__(self, texts: Sequence[str]) -> Awaitable[np.ndarray]: ...


class Search(Protocol):
    """The best `k` rows of an index for one unit vector ``[d]``."""

    def __call__(self, index: IndexName, query: np.ndarray, k: int) -> Awaitable[Found]: ...


class Retriever:
    """Implements `affect_rl.evidence.Retrieve` on top of an encoder and a search.

    Args:
        directory: the library and how its features were standardised.
        config: k, oversampling.
        encode: encodes queries.
        search: searches all shards.
    """

    def __init__(self, directory: IndexDirectory, config: RetrievalConfig, encode: Encode, search: Search) -> None:
        self._directory, self._config = directory, config
        self._library = directory.library()
        self._encode, self._search = encode, search

    async def cognitive(self, queries: Mapping[Group, str], k: int, exclusion: Exclusion) -> CognitiveResult:
        """Up to `k` pieces of evidence per group; no id and no text is in two groups."""
        vectors = dict(zip(queries, await self._encode(list(queries.values())), strict=True))
        chosen, degraded = await self._fill("text", vectors, k, exclusion)
        evidence = {group: tuple(map(self._library.evidence, found)) for group, found in chosen.items()}
        return CognitiveResult(evidence, degraded)

    async def perceptual(self, audio: np.ndarray | None, video: np.ndarray | None, exclusion: Exclusion) -> Support:
        """Up to `config.perceptual_k` neighbours by the modalities that the sample and the library have.

        Raises:
            AffectError: the features ``[T, d]`` are not as wide as the library's.
        """
        halves = {
            modality: self._unit_vector(modality, frames)
            for modality, frames in zip(MODALITIES, (audio, video), strict=True)
            if frames is not None and len(frames) and modality in self._directory.standardisation
        }
        if not halves or self._config.perceptual_k == 0:
            return Support()
        index: IndexName
        if len(halves) == len(MODALITIES) and "both" in self._directory.names:
            index, vector = "both", join(list(halves.values()))
        else:
            index, vector = next(iter(halves.items()))
        chosen, degraded = await self._fill(index, {index: vector[0]}, self._config.perceptual_k, exclusion)
        return self._library.support(chosen[index], degraded)

    def _unit_vector(self, modality: PerceptualModality, frames: np.ndarray) -> np.ndarray:
        standardisation = self._directory.standardisation[modality]
        if frames.ndim != 2 or frames.shape[1] != standardisation.dim:
            raise AffectError(
                f"{modality} features of shape {frames.shape} cannot be looked up in {self._directory.path}, whose "
                f"{modality} features are [T, {standardisation.dim}]; use the index of the sample's own dataset"
            )
        return standardisation.unit_vectors(time_average(frames)[None])

    async def _fill(
        self, index: IndexName, vectors: Mapping[G, np.ndarray], k: int, exclusion: Exclusion
    ) -> tuple[dict[G, list[Candidate]], bool]:
        """Up to `k` candidates per group. Fewer only if exclusion and deduplication leave no more."""
        unique: Literal["id", "text"] = "text" if index == "text" else "id"
        ask = k * self._config.oversample
        while True:
            answers = await asyncio.gather(*(self._search(index, vector, ask) for vector in vectors.values()))
            found = dict(zip(vectors, answers, strict=True))
            ranked = {g: self._library.candidates(f.scores, f.rows, exclusion, unique) for g, f in found.items()}
            chosen = allocate(ranked, k)
            if all(len(chosen[g]) == k or len(found[g].rows) < ask for g in vectors):
                return chosen, any(answer.degraded for answer in answers)
            ask *= _WIDEN


class LocalRetriever(Retriever):
    """The whole index in this process, for tools and as the measure of the sharded service.

    Args:
        index_dir: a directory by `retrieval_service.index.build_index`.
        config: the settings it was built with.

    Raises:
        AffectError: the directory or the encoder is not usable.
    """

    def __init__(self, index_dir: Path | str, config: RetrievalConfig) -> None:
        from retrieval_service.encoder import TextEncoder  # torch is wanted only where something is encoded

        directory = IndexDirectory.open(index_dir, config)
        self._encoder = TextEncoder(config)
        self._indexes = {name: directory.vector_index(name, config) for name in directory.names}
        super().__init__(directory, config, self._encode_here, self._search_here)

    async def _encode_here(self, texts: Sequence[str]) -> np.ndarray:
        return self._encoder.encode_queries(texts)

    async def _search_here(self, index: IndexName, query: np.ndarray, k: int) -> Found:
        return Found.of(self._indexes[index].search(query[None], k), 0, k, degraded=False)
