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
def test_allocation_gives_a_key_once_and_is_stable(ranked: dict[str, list[Candidate]], k: int) -> None:
    chosen = allocate(ranked, k)
    taken = [c.key for found in chosen.values() for c in found]
    assert len(taken) == len(set(taken))
    holder = {c.key: c for found in chosen.values() for c in found}
    for group, found in ranked.items():
        assert len(chosen[group]) <= k
        for candidate in found:
            full_of_better = len(chosen[group]) == k and chosen[group][-1].score >= candidate.score
            # Nobody could be better off: what a group lacks is held for a score as high, or the group is full.
            assert full_of_better or holder[candidate.key].score >= candidate.score


@given(ranked=rankings(), k=st.integers(1, 3), cut=st.integers(1, 10))
def test_lists_long_enough_to_fill_their_group_may_be_cut(ranked: dict[str, list[Candidate]], k: int, cut: int) -> None:
    short = allocate({group: found[:cut] for group, found in ranked.items()}, k)
    if all(len(found) == k for found in short.values()):
        assert short == allocate(ranked, k)


def test_the_higher_scoring_group_keeps_what_two_want_and_the_other_moves_up() -> None:
    ranked = {
        "supportive": [Candidate(0.8, 1, 1), Candidate(0.5, 2, 2)],
        "countering": [Candidate(0.9, 1, 1), Candidate(0.4, 3, 3)],
    }
    assert allocate(ranked, 1) == {"supportive": [Candidate(0.5, 2, 2)], "countering": [Candidate(0.9, 1, 1)]}


def test_what_a_full_group_cannot_use_is_left_to_the_other() -> None:
    ranked = {
        "supportive": [Candidate(0.6, 1, 1)],
        "countering": [Candidate(0.9, 2, 2), Candidate(0.7, 1, 1)],
    }
    assert allocate(ranked, 1) == {"supportive": [Candidate(0.6, 1, 1)], "countering": [Candidate(0.9, 2, 2)]}
