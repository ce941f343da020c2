"""Pure functions that turn ranked lists into one answer: over shards, then over query groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self, TypeVar

import numpy as np

G = TypeVar("G", bound=str)


class Hits(NamedTuple):
    """The best rows for each of Q queries, by falling score, then by rising row.

    Attributes:
        scores: cosine similarities ``[Q, k]`` float32; -inf where there is no further row.
        rows: library rows ``[Q, k]`` int64; -1 where there is no further row.
    """

    scores: np.ndarray
    rows: np.ndarray

    def to_bytes(self) -> bytes:
        """As a shard sends them: Ray takes longer for arrays than FAISS for one query of a few thousand rows."""
        return self.scores.tobytes() + self.rows.tobytes()

    @classmethod
    def from_bytes(cls, sent: bytes, queries: int) -> Self:
        """What `to_bytes` made of the answers to so many `queries`."""
        cut = len(sent) // 3  # four bytes a score, eight a row
        scores, rows = np.frombuffer(sent[:cut], np.float32), np.frombuffer(sent[cut:], np.int64)
        return cls(scores.reshape(queries, -1), rows.reshape(queries, -1))


class Candidate(NamedTuple):
    """A library row that a query found.

    Attributes:
        score: cosine similarity to the query.
        row: the library row.
        key: what may be chosen only once, for example the row's text.
    """

    score: float
    row: int
    key: int


def by_score(scores: np.ndarray, rows: np.ndarray) -> Hits:
    """Each query's rows ``[Q, n]`` in order of falling score; among equal scores the lowest row is first."""
    order = np.lexsort((rows, -scores), axis=1)
    return Hits(np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1))


def merge_hits(shards: Sequence[Hits], k: int) -> Hits:
    """The best `k` of the answers of shards to the same queries; a shard's rows come before those of the next one."""
    scores = np.concatenate([hits.scores for hits in shards], axis=1)
    rows = np.concatenate([hits.rows for hits in shards], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # stable: the lowest of equal rows is first already
    return Hits(np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1))


def allocate(ranked: Mapping[G, Sequence[Candidate]], k: int) -> dict[G, list[Candidate]]:
    """Fill each group with up to `k` candidates, so that no key is in two groups or twice in one.

    Groups choose one after the other: what two want stays with the first (supportive evidence is not
    lost to a query that only resembles the wording more) and in the other the next candidates move up.
    The result depends only on the part of each list that ends where its group is full, so lists may
    be cut there.
    """
    chosen: dict[G, list[Candidate]] = {}
    taken: set[int] = set()
    for group, found in ranked.items():
        fresh = {c.key: c for c in reversed(found) if c.key not in taken}  # the first of a key wins
        chosen[group] = sorted(fresh.values(), key=lambda c: (-c.score, c.row))[:k]
        taken.update(c.key for c in chosen[group])
    return chosen
