"""Evaluation metrics against scikit-learn, intervals against scipy."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, recall_score

from affect_rl.scoring.bootstrap import difference, drawn_samples, mean_interval
from affect_rl.scoring.metrics import METRICS, compare, evaluate

CANDIDATES = ("anger", "fear", "joy", "neutral", "sadness")


def made_up(n: int, right: float, seed: int) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Answers that are right with a given probability and sometimes invalid, and the truth."""
    truth = np.random.default_rng(99).choice(CANDIDATES, size=n, p=[0.1, 0.1, 0.3, 0.4, 0.1]).tolist()
    rng = np.random.default_rng(seed)
    answers: list[tuple[str, ...]] = []
    for label in truth:
        wrong = rng.choice([*CANDIDATES, "nonsense", ""])
        answers.append((label,) if rng.random() < right else (str(wrong),) if wrong else ())
    return answers, [(label,) for label in truth]


answers = st.lists(st.tuples(st.sampled_from(["", *CANDIDATES]), st.sampled_from(CANDIDATES)), min_size=1, max_size=40)


@given(answers)
def test_metrics_equal_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    predicted, truth = [p for p, _ in pairs], [t for _, t in pairs]
    scores = evaluate([(p,) if p else () for p in predicted], [(t,) for t in truth], CANDIDATES, resamples=10)
    present = sorted(set(truth))
    assert scores.accuracy.value == pytest.approx(accuracy_score(truth, predicted))
    by_average = {
        "weighted_f1": (f1_score, "weighted"),
        "macro_f1": (f1_score, "macro"),
        "uar": (recall_score, "macro"),
    }
    for name, (function, average) in by_average.items():
        expected = function(truth, predicted, labels=present, average=average, zero_division=0)
        assert getattr(scores, name).value == pytest.approx(expected), name
    assert list(scores.recall) == present
    assert [r.value for r in scores.recall.values()] == pytest.approx(
        recall_score(truth, predicted, labels=present, average=None).tolist()
    )
    assert scores.invalid_rate.value == pytest.approx(predicted.count("") / len(predicted))


def test_intervals_equal_scipy() -> None:
    predicted, truth = made_up(400, 0.6, seed=1)
    ours = evaluate(predicted, truth, CANDIDATES, resamples=20_000)
    y = np.array([t[0] for t in truth])
    z = np.array([p[0] if p else "" for p in predicted])
    theirs = stats.bootstrap(
        (y, z),
        lambda a, b: f1_score(a, b, average="weighted", zero_division=0),
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=0,
    ).confidence_interval
    assert (ours.weighted_f1.low, ours.weighted_f1.high) == pytest.approx((theirs.low, theirs.high), abs=0.008)
    hits = (y == z).astype(float)
    exact = stats.bootstrap((hits,), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    assert (ours.accuracy.low, ours.accuracy.high) == pytest.approx((exact.low, exact.high), abs=0.004)
    mean = mean_interval(hits, resamples=20_000)
    assert (mean.low, mean.high) == pytest.approx((exact.low, exact.high), abs=0.004)


def test_intervals_cover_the_truth_about_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        right = rng.random(200) < 0.7
        interval = evaluate(
            [("joy",) if r else () for r in right], [("joy",)] * 200, ("joy", "fear"), resamples=400, seed=seed
        )
        covered += interval.accuracy.low <= 0.7 <= interval.accuracy.high
    assert 0.9 <= covered / 200 <= 0.99


def test_an_answer_within_a_tie_is_right_and_the_first_label_is_the_truth_otherwise() -> None:
    truth = [("joy", "fear"), ("joy", "fear"), ("joy", "fear")]
    scores = evaluate([("fear",), ("joy",), ("anger",)], truth, CANDIDATES, resamples=10)
    assert scores.accuracy.value == pytest.approx(2 / 3)
    assert {name: r.value for name, r in scores.recall.items()} == {"fear": 1, "joy": 0.5}


def test_labels_are_compared_in_their_normal_form_and_the_first_counts() -> None:
    scores = evaluate([(" Joyful! ", "fear"), ("fear", "joy")], [("joy",), ("joy",)], CANDIDATES, resamples=10)
    assert scores.accuracy.value == 0.5


def test_comparison_is_paired_and_signed() -> None:
    worse, truth = made_up(500, 0.5, seed=1)
    better = [t if number % 4 == 0 else p for number, (p, t) in enumerate(zip(worse, truth, strict=True))]
    found = compare(worse, better, truth, CANDIDATES)
    a, b = (evaluate(p, truth, CANDIDATES) for p in (worse, better))
    assert set(found) == set(METRICS)
    for name, estimated in found.items():
        assert estimated.value == pytest.approx(getattr(b, name).value - getattr(a, name).value)
    gain = found["accuracy"]
    assert 0 < gain.low < gain.value < gain.high and gain.p < 0.01
    assert gain.high - gain.low < b.accuracy.high - b.accuracy.low  # pairing pays
    assert compare(better, worse, truth, CANDIDATES)["accuracy"].value == pytest.approx(-gain.value)


def test_equal_policies_do_not_differ() -> None:
    predicted, truth = made_up(100, 0.5, seed=1)
    for gain in compare(predicted, predicted, truth, CANDIDATES).values():
        assert (gain.value, gain.low, gain.high, gain.p) == (0, 0, 0, 1)


def test_paired_mean_difference_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=300)
    b = a + rng.normal(0.05, 0.5, size=300)
    ours = difference((b - a).mean(), (drawn_samples(300, 20_000, 0) @ (b - a) / 300)[1:], 0.95)
    theirs = stats.bootstrap((b - a,), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    assert ours.value == pytest.approx((b - a).mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert ours.p == pytest.approx(stats.ttest_rel(b, a).pvalue, abs=0.02)


def test_same_seed_same_numbers() -> None:
    predicted, truth = made_up(200, 0.5, seed=1)
    assert evaluate(predicted, truth, CANDIDATES, seed=3) == evaluate(predicted, truth, CANDIDATES, seed=3)
    assert evaluate(predicted, truth, CANDIDATES, seed=3) != evaluate(predicted, truth, CANDIDATES, seed=4)


def test_two_thousand_resamples_of_meld_take_under_three_seconds() -> None:
    predicted, truth = made_up(2610, 0.6, seed=1)
    start = time.perf_counter()
    evaluate(predicted, truth, CANDIDATES, resamples=2000)
    compare(predicted, made_up(2610, 0.6, seed=2)[0], truth, CANDIDATES, resamples=2000)
    mean_interval(np.random.default_rng(0).normal(size=2610), resamples=2000)
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate([], [], CANDIDATES), "0 answers for 0 samples"),
        (lambda: evaluate([("joy",)], [("joy",), ("joy",)], CANDIDATES), "1 answers for 2 samples"),
        (
            lambda: evaluate([("joy",)], [("pride",)], CANDIDATES),
            r"sample 0: true labels \('pride',\) are not all among",
        ),
        (lambda: mean_interval([]), r"values have shape \(0,\)"),
    ],
)
def test_wrong_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
