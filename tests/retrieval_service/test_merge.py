"""Merging over shards and allocating to groups."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrieval_service.merge import Candidate, Hits, allocate, by_score, merge_hits

# Few distinct scores, so that ties are the rule.
SCORES = st.integers(0, 4).map(lambda n: n / 4)


@given(
    scores=st.lists(st.lists(SCORES, min_size=12, max_size=12), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    k=st.integers(1, 14),
)
def test_merging_shards_is_ranking_the_whole(scores: list[list[float]], cuts: list[int], k: int) -> None:
    values = np.array(scores, np.float32)
    rows = np.broadcast_to(np.arange(12), values.shape)
    bounds = [0, *sorted(cuts), 12]
    shards = [Hits(*(x[:, :k] for x in by_score(values[:, a:b], rows[:, a:b]))) for a, b in pairwise(bounds)]
    whole = by_score(values, rows)
    merged = merge_hits(shards, k)
    np.testing.assert_array_equal(merged.rows, whole.rows[:, :k])
    np.testing.assert_array_equal(merged.scores, whole.scores[:, :k])


@given(queries=st.integers(1, 5), k=st.integers(0, 5), seed=st.integers(0, 99))
def test_hits_travel_as_bytes(queries: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hits = Hits(rng.random((queries, k), np.float32), rng.integers(-1, 2**40, (queries, k)))
    for sent, arrived in zip(hits, Hits.from_bytes(hits.to_bytes(), queries), strict=True):
        np.testing.assert_array_equal(sent, arrived, strict=True)


@st.composite
def rankings(draw: st.DrawFn) -> dict[str, list[Candidate]]:
    """Up to three groups that rank the same ten rows; several rows share a key."""
    keys = draw(st.lists(st.integers(0, 6), min_size=10, max_size=10))
    groups = {}
    for group in "abc"[: draw(st.integers(1, 3))]:
        scores = draw(st.lists(SCORES, min_size=10, max_size=10))
        groups[group] = sorted(
            (Candidate(s, row, keys[row]) for row, s in enumerate(scores)), key=lambda c: (-c.score, c.row)
        )
    return groups


@given(ranked=rankings(), k=st.integers(1, 4))
def test_groups_choose_one_after_the_other(ranked: dict[str, list[Candidate]], k: int) -> None:
    chosen, taken = allocate(ranked, k), set()
    for group, found in ranked.items():
        expected: list[Candidate] = []
        for candidate in found:
            if len(expected) < k and candidate.key not in taken:
                expected.append(candidate)
                taken.add(candidate.key)
        assert chosen[group] == expected


@given(ranked=rankings(), k=st.integers(1, 3), cut=st.integers(1, 10))
def test_lists_long_enough_to_fill_their_group_may_be_cut(ranked: dict[str, list[Candidate]], k: int, cut: int) -> None:
    short = allocate({group: found[:cut] for group, found in ranked.items()}, k)
    if all(len(found) == k for found in short.values()):
        assert short == allocate(ranked, k)


def test_the_first_group_keeps_what_two_want_and_the_other_moves_up() -> None:
    ranked = {
        "supportive": [Candidate(0.8, 1, 1), Candidate(0.5, 2, 2)],
        "countering": [Candidate(0.9, 1, 1), Candidate(0.4, 3, 3)],
    }
    assert allocate(ranked, 1) == {"supportive": [Candidate(0.8, 1, 1)], "countering": [Candidate(0.4, 3, 3)]}
