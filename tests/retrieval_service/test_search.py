"""Exact ranking on top of FAISS, whole and in shards."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affect_rl.errors import AffectError
from retrieval_service import search
from retrieval_service.merge import Hits, by_score, merge_hits
from retrieval_service.search import VectorIndex


def unit(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def trained(vectors: np.ndarray, factory: str = "Flat") -> faiss.Index:
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    return index


def in_shards(vectors: np.ndarray, shards: int, factory: str = "Flat", parameters: str = "") -> list[VectorIndex]:
    template = trained(vectors, factory)
    return [
        VectorIndex(faiss.clone_index(template), vectors[rows[0] : rows[-1] + 1], rows, parameters)
        for rows in np.array_split(np.arange(len(vectors)), shards)
    ]


def assert_equal(one: Hits, other: Hits) -> None:
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.scores, other.scores)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    distinct=st.integers(1, 60),
    n=st.integers(5, 200),
    queries=st.integers(1, 30),
    k=st.integers(1, 250),
    shards=st.integers(1, 5),
)
def test_shards_equal_one_index_and_the_definition(
    seed: int, distinct: int, n: int, queries: int, k: int, shards: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(rng, distinct, 12)[rng.integers(0, distinct, n)]  # many vectors are equal: ties
    asked = unit(rng, queries, 12)
    merged = merge_hits([shard.search(asked, k) for shard in in_shards(vectors, shards)], k)
    assert_equal(merged, in_shards(vectors, 1)[0].search(asked, k))

    scores = (asked.astype(np.float64)[:, None] * vectors.astype(np.float64)[None]).sum(-1).astype(np.float32)
    expected = by_score(scores, np.broadcast_to(np.arange(n), scores.shape))
    np.testing.assert_array_equal(merged.rows, expected.rows[:, :k])


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat"])
@pytest.mark.parametrize("shards", [2, 3, 7])
def test_sharded_inverted_lists_share_their_centroids(factory: str, shards: int) -> None:
    rng = np.random.default_rng(0)
    vectors, asked = unit(rng, 3000, 48), unit(rng, 50, 48)
    parameters = "nprobe=4" if factory.startswith("IVF") else ""
    parts = [shard.search(asked, 20) for shard in in_shards(vectors, shards, factory, parameters)]
    assert_equal(merge_hits(parts, 20), in_shards(vectors, 1, factory, parameters)[0].search(asked, 20))


def test_a_query_gets_the_same_answer_in_any_batch() -> None:
    rng = np.random.default_rng(1)
    vectors, asked = unit(rng, 5000, 384), unit(rng, 64, 384)
    index = in_shards(vectors, 1)[0]
    together = index.search(asked, 12)
    for i in (0, 17, 63):
        assert_equal(index.search(asked[i : i + 1], 12), Hits(together.scores[i : i + 1], together.rows[i : i + 1]))


def test_a_vector_that_stands_there_a_thousand_times_is_ranked_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a text that many people say; among equal scores rows come in their order."""
    rng = np.random.default_rng(3)
    vectors = np.concatenate([np.repeat(unit(rng, 1, 16), 1000, axis=0), unit(rng, 200, 16)])
    index, queries = VectorIndex(trained(vectors), vectors, np.arange(len(vectors))), vectors[[0, 1100]]
    whole = index.search(queries, 40)
    monkeypatch.setattr(search, "_AT_ONCE", 500)
    assert_equal(whole, index.search(queries, 40))
    assert whole.rows[0].tolist() == list(range(40)) and whole.rows[1, 0] == 1100


def test_the_front_of_a_longer_list_is_the_shorter_list() -> None:
    rng = np.random.default_rng(2)
    vectors = unit(rng, 30, 8)[rng.integers(0, 30, 400)]
    index, asked = in_shards(vectors, 1)[0], unit(rng, 10, 8)
    assert_equal(index.search(asked, 7), Hits(*(x[:, :7] for x in index.search(asked, 90))))


@pytest.mark.parametrize("factory", ["HNSW16", "IVF8,PQ8x4", "SQ8"])
def test_approximate_indexes_rank_by_true_similarity(factory: str) -> None:
    rng = np.random.default_rng(3)
    vectors = unit(rng, 2000, 32)
    parts = [shard.search(vectors[:20], 5) for shard in in_shards(vectors, 2, factory)]
    merged = merge_hits(parts, 5)
    np.testing.assert_array_equal(merged.rows[:, 0], np.arange(20))  # each vector finds itself
    np.testing.assert_allclose(merged.scores[:, 0], 1, atol=1e-6)
    assert (np.diff(merged.scores, axis=1) <= 0).all()


def test_an_empty_shard_answers_with_nothing() -> None:
    vectors = unit(np.random.default_rng(4), 4, 8)
    empty = VectorIndex(trained(vectors), vectors[:0], np.arange(0))
    assert empty.search(vectors, 3).rows.shape == (4, 0)


def assert_exact_where_placed(place: Callable[[faiss.Index], faiss.Index]) -> None:
    """Whoever proposes the rows, of which many are nearly alike."""
    rng = np.random.default_rng(5)
    crowd = unit(rng, 1, 64) + 5e-5 * rng.standard_normal((1500, 64), dtype=np.float32)
    vectors = np.concatenate([crowd / np.linalg.norm(crowd, axis=1, keepdims=True), unit(rng, 500, 64)])
    asked = np.concatenate([vectors[:8], unit(rng, 8, 64)])
    index = VectorIndex(trained(vectors), vectors, np.arange(len(vectors)), "", place)
    assert_equal(index.search(asked, 10), in_shards(vectors, 1)[0].search(asked, 10))


def test_a_card_that_rounds_more_coarsely_proposes_until_the_answer_is_the_same() -> None:
    def ten_bits(index: faiss.Index) -> faiss.Index:
        copy, vectors = faiss.IndexFlatIP(index.d), index.reconstruct_n(0, index.ntotal)
        copy.add((vectors.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32))
        return copy

    assert_exact_where_placed(ten_bits)


def test_a_card_is_not_asked_for_more_than_it_can_give() -> None:
    vectors = unit(np.random.default_rng(6), 1500, 16)
    absent = VectorIndex(trained(vectors), vectors, np.arange(1500), "", lambda index: faiss.IndexFlatIP(index.d))
    whole = VectorIndex(trained(vectors), vectors, np.arange(1500))
    assert_equal(absent.search(vectors[:4], search.MOST_ON_CARD), whole.search(vectors[:4], search.MOST_ON_CARD))


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS knows cards")
def test_a_build_for_the_cpu_refuses_cards() -> None:
    with pytest.raises(AffectError, match=r"retrieval\.gpus_per_shard: this is a build of FAISS for the CPU; install"):
        search.on_card(faiss.IndexFlatIP(4))


@pytest.mark.gpu
@pytest.mark.skipif(not getattr(faiss, "get_num_gpus", int)(), reason="needs faiss-gpu and a card")
def test_a_card_gives_the_same_answers() -> None:
    assert_exact_where_placed(search.on_card)
