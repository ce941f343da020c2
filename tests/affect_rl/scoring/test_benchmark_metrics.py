"""HIT, F_s and WAF: published values, computations with plain sets, scikit-learn and scipy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import Bounds, LinearConstraint, milp
from sklearn.metrics import accuracy_score, f1_score

from affect_rl.errors import AffectError
from affect_rl.scoring.benchmark_metrics import (
    compare_open_labels,
    compare_sentiment,
    score_open_labels,
    score_sentiment,
)
from affect_rl.scoring.wheels import Wheels, own_wheel, parse_labels, read_wheels

# -- the published values --------------------------------------------------------------------------------

CHECKPOINTS = tuple(f"checkpoint_{number:06}" for number in range(30, 61, 5))


def unibench(shared_data: Path, name: str) -> tuple[list[Any], dict[str, list[tuple[str, ...]]]]:
    """True labels, and the answers of each checkpoint."""
    lines = (shared_data / "unibench" / f"{name}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["label"] for row in rows], {
        checkpoint: [parse_labels(row["predictions"][checkpoint]) for row in rows] for checkpoint in CHECKPOINTS
    }


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Wheels:
    return read_wheels(shared_data / "unibench" / "emotion_wheel")


@pytest.fixture(scope="module")
def meld(shared_data: Path) -> tuple[list[tuple[str, ...]], dict[str, list[tuple[str, ...]]]]:
    labels, answers = unibench(shared_data, "meld")
    return [parse_labels(label) for label in labels], answers


def expected(shared_data: Path, name: str) -> tuple[dict[str, float], float]:
    entry = json.loads((shared_data / "unibench" / "expected.json").read_text())[name]
    assert tuple(entry["per_checkpoint"]) == CHECKPOINTS
    return {checkpoint: round(value, 2) for checkpoint, value in entry["per_checkpoint"].items()}, entry["published"]


def test_hit_of_seven_checkpoints_on_meld(shared_data: Path, meld: Any, published: Wheels) -> None:
    true, answers = meld
    scores = {name: score_open_labels(given, true, published, resamples=100) for name, given in answers.items()}
    values = {name: round(100 * score.hit.value, 2) for name, score in scores.items() if score.hit}
    per_checkpoint, best = expected(shared_data, "meld")
    assert values == per_checkpoint
    assert max(values.values()) == best == 55.65
    for score in scores.values():
        assert (score.samples, score.used) == (2610, 1354)
        assert [part.used for part in score.by_wheel] == [1354, 1354, 1286, 1354, 1005]
        assert score.hit and score.hit.low < score.hit.value < score.hit.high < score.hit.low + 0.06


@pytest.mark.parametrize(
    ("name", "samples", "used", "published_value"), [("mosi", 686, 656, 81.30), ("sims", 457, 388, 88.49)]
)
def test_waf_of_seven_checkpoints(
    shared_data: Path, name: str, samples: int, used: int, published_value: float
) -> None:
    labels, answers = unibench(shared_data, name)
    scores = {checkpoint: score_sentiment(given, labels, resamples=100) for checkpoint, given in answers.items()}
    values = {checkpoint: round(100 * score.waf.value, 2) for checkpoint, score in scores.items()}
    per_checkpoint, best = expected(shared_data, name)
    assert values == per_checkpoint
    assert max(values.values()) == best == published_value
    assert {(score.samples, score.used) for score in scores.values()} == {(samples, used)}


# -- answers that never change ---------------------------------------------------------------------------

CONSTANT = [
    (("joy", "mad"), 61.10, 40.73),
    (("anger", "disgust", "joy", "sadness", "surprise"), 97.53, 37.01),
    (("discontent", "elate", "hate", "rely", "sad"), 98.52, 35.51),  # no five labels score higher
    (("anger", "disgust", "fear", "joy", "sadness", "surprise"), 100.00, 34.10),
]


@pytest.mark.parametrize(("answer", "hit", "f_s"), CONSTANT, ids=[" ".join(answer) for answer, _, _ in CONSTANT])
def test_an_answer_that_never_changes(meld: Any, published: Wheels, answer: Any, hit: float, f_s: float) -> None:
    true, answers = meld
    scores = score_open_labels([answer] * len(true), true, published, resamples=100)
    assert scores.hit and round(100 * scores.hit.value, 2) == hit
    assert round(100 * scores.f_s.value, 2) == f_s
    assert scores.labels_per_answer.value == len(answer)
    best = score_open_labels(answers[CHECKPOINTS[0]], true, published, resamples=100)
    assert best.hit and best.hit.value < scores.hit.value and best.f_s.value > scores.f_s.value


def test_no_five_labels_that_never_change_hit_more(meld: Any, published: Wheels) -> None:
    true, _ = meld
    samples: dict[tuple[int, str], float] = {}  # share of HIT that each cluster of a truth holds
    for k in range(5):
        groups = [cluster for truth in true for cluster in published.group(truth)[k]]
        for cluster in groups:
            samples[k, cluster] = samples.get((k, cluster), 0) + 1 / len(groups) / 5
    reached = {frozenset((k, c) for k, group in enumerate(published.group([form])) for c in group if (k, c) in samples)
               for form in published.words}  # fmt: skip
    covers = [[cluster in cover for cover in reached] for cluster in samples]
    # Choose five covers x and the clusters y that they reach, at the greatest sum of shares.
    reach = np.hstack([np.array(covers, float), -np.eye(len(samples))])
    five = np.array([1.0] * len(reached) + [0.0] * len(samples))
    found = milp(
        np.array([0.0] * len(reached) + [-share for share in samples.values()]),
        constraints=[LinearConstraint(reach, lb=0), LinearConstraint(five, ub=5)],
        integrality=np.ones(len(five)),
        bounds=Bounds(0, 1),
    )
    assert round(-100 * found.fun, 2) == CONSTANT[2][1]


# -- plain sets ------------------------------------------------------------------------------------------

WHEELS = Wheels(
    "made-up",
    {"glad": ["glad"], "gladly": ["glad", "merry"], "sad": ["blue", "sad"], "mad": ["mad"], "shock": ["odd"]},
    {
        1: ({"glad": "up", "merry": "up", "blue": "down", "mad": "down", "odd": "odd"}, {"merry": "A", "sad": "B"}),
        2: ({"glad": "g", "merry": "m", "blue": "b", "mad": "m", "odd": "o"}, {"merry": "a", "sad": "b"}),
    },
)
WORDS = [*WHEELS.words, "neutral", "unheard of"]
answers = st.lists(st.sampled_from(WORDS), max_size=4)
levels: Any = st.sampled_from([1, 2])


def by_hand(predicted: Sequence[Any], true: Sequence[Any], level: Any) -> tuple[float, float]:
    """HIT and F_s as they are defined, with loops over samples."""
    hits, f_s = [], []
    for k in range(2):
        table = WHEELS.clusters[level][k]
        rows = []
        for answer, truth in zip(predicted, true, strict=True):
            sets = [set(), set()]
            for found, labels in zip(sets, (answer, truth), strict=True):
                for label in labels:
                    for word in sorted(WHEELS.words.get(label, [])):
                        if word in table:
                            found.add(table[word])
                            break
            if sets[1]:
                common = len(sets[0] & sets[1])
                rows.append((common, common / len(sets[0]) if sets[0] else 0, common / len(sets[1])))
        hits.append(fmean(row[0] for row in rows) if rows else 0)
        p, r = (fmean(row[i] for row in rows) if rows else 0 for i in (1, 2))
        f_s.append(2 * p * r / (p + r) if p + r else 0)
    return fmean(hits), fmean(f_s)


@settings(deadline=None)
@given(st.lists(st.tuples(answers, st.sampled_from(WORDS)), min_size=1, max_size=12), levels)
def test_hit_and_f_s_by_hand(pairs: list[tuple[list[str], str]], level: Any) -> None:
    predicted, true = [answer for answer, _ in pairs], [[truth] for _, truth in pairs]
    if not any(any(WHEELS.group(truth, level)) for truth in true):
        with pytest.raises(ValueError, match="no true label is in the wheel 'made-up'"):
            score_open_labels(predicted, true, WHEELS, level=level, resamples=10)
        return
    scores = score_open_labels(predicted, true, WHEELS, level=level, resamples=10)
    hit, f_s = by_hand(predicted, true, level)
    assert scores.hit and scores.hit.value == pytest.approx(hit)
    assert scores.f_s.value == pytest.approx(f_s)
    assert np.isfinite([scores.hit.low, scores.hit.high, scores.f_s.low, scores.f_s.high]).all()
    used = [set(a) for a, t in zip(predicted, true, strict=True) if any(WHEELS.group(t, level))]
    assert scores.used == len(used) and scores.labels_per_answer.value == pytest.approx(fmean(map(len, used)))


@settings(deadline=None)
@given(st.lists(st.tuples(answers, answers), min_size=1, max_size=12), levels)
def test_f_s_of_sets_by_hand(pairs: list[tuple[list[str], list[str]]], level: Any) -> None:
    pairs.append((["glad"], ["glad", "mad"]))
    predicted, true = [answer for answer, _ in pairs], [truth for _, truth in pairs]
    scores = score_open_labels(predicted, true, WHEELS, level=level, resamples=10)
    assert scores.hit is None and all(part.hit is None for part in scores.by_wheel)
    assert scores.f_s.value == pytest.approx(by_hand(predicted, true, level)[1])


def test_nothing_right_is_0_and_not_nan() -> None:
    for answer in ((), ("mad",), ("unheard of",)):
        scores = score_open_labels([answer], [("glad",)], WHEELS, resamples=10)
        assert scores.hit is not None
        for estimate in (scores.hit, scores.f_s, scores.precision, scores.recall):
            assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)
    # No wheel but the first knows glad, and F of the other is 0/0.
    scores = score_open_labels([("glad",)], [("glad",)], WHEELS, resamples=10)
    assert [(part.used, part.hit, part.f_s) for part in scores.by_wheel] == [(1, 1, 1), (0, 0, 0)]
    assert scores.f_s.value == 0.5


def test_f_s_takes_for_wrong_labels_what_hit_does_not() -> None:
    true = [("glad",), ("sad",)] * 10
    short = score_open_labels(true, true, own_wheel(), resamples=10)
    padded = score_open_labels([("glad", "sad", "anger", "fear")] * 20, true, own_wheel(), resamples=10)
    assert short.hit and padded.hit and (short.hit.value, short.f_s.value) == (1, 1)
    assert padded.hit.value == 1 and padded.f_s.value == pytest.approx(0.4)
    assert (short.labels_per_answer.value, padded.labels_per_answer.value) == (1, 4)


# -- intervals and comparisons ---------------------------------------------------------------------------


def made_up(n: int, right: float, seed: int) -> tuple[list[list[str]], list[list[str]]]:
    rng = np.random.default_rng(99)
    true = [[str(label)] for label in rng.choice(["glad", "sad", "mad", "shock", "neutral"], n)]
    rng = np.random.default_rng(seed)
    extra = rng.choice(WORDS, n)
    return [[*(truth if rng.random() < right else ()), str(e)] for truth, e in zip(true, extra, strict=True)], true


def test_intervals_equal_scipy() -> None:
    predicted, true = made_up(200, 0.6, seed=1)
    kept = [n for n, truth in enumerate(true) if any(WHEELS.group(truth))]
    ours = score_open_labels(predicted, true, WHEELS, resamples=4000)

    def metric(index: int) -> Any:
        return lambda rows: by_hand([predicted[n] for n in rows], [true[n] for n in rows], 1)[index]

    for index, estimate in enumerate((ours.hit, ours.f_s)):
        theirs = stats.bootstrap(
            (np.array(kept),), metric(index), vectorized=False, n_resamples=600, method="percentile", rng=0
        ).confidence_interval
        assert estimate and (estimate.low, estimate.high) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_comparison_is_paired_and_signed() -> None:
    worse, true = made_up(400, 0.5, seed=1)
    better = [
        [*answer, *truth] if n % 4 == 0 else answer for n, (answer, truth) in enumerate(zip(worse, true, strict=True))
    ]
    found = compare_open_labels(worse, better, true, WHEELS)
    a, b = (score_open_labels(given, true, WHEELS) for given in (worse, better))
    assert set(found) == {"hit", "f_s", "precision", "recall", "labels_per_answer"}
    for name, difference in found.items():
        assert difference.value == pytest.approx(getattr(b, name).value - getattr(a, name).value)
    gain = found["hit"]
    assert a.hit and b.hit and 0 < gain.low < gain.value < gain.high and gain.p < 0.01
    assert gain.high - gain.low < b.hit.high - b.hit.low  # pairing pays
    for difference in compare_open_labels(worse, worse, true, WHEELS).values():
        assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)
    several = [[*truth, "glad"] for truth in true]
    assert "hit" not in compare_open_labels(worse, better, several, WHEELS)


def test_same_seed_same_numbers() -> None:
    predicted, true = made_up(200, 0.5, seed=1)
    one = score_open_labels(predicted, true, WHEELS, seed=3)
    assert one == score_open_labels(predicted, true, WHEELS, seed=3)
    assert one != score_open_labels(predicted, true, WHEELS, seed=4)


# -- sentiment -------------------------------------------------------------------------------------------

SENTIMENTS = ["positive", "negative", "neutral", "mixed", ""]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SENTIMENTS), st.floats(-3, 3) | st.just(0.0)), min_size=1, max_size=30))
def test_waf_equals_scikit_learn(pairs: list[tuple[str, float]]) -> None:
    predicted, values = [parse_labels(answer) for answer, _ in pairs], [value for _, value in pairs]
    used = [(answer, value) for answer, value in pairs if value != 0]
    if not used:
        with pytest.raises(ValueError, match="no true value other than 0; WAF leaves those out"):
            score_sentiment(predicted, values, resamples=10)
        return
    scores = score_sentiment(predicted, values, resamples=10)
    truth, given_ = [value > 0 for _, value in used], [answer == "positive" for answer, _ in used]
    assert scores.waf.value == pytest.approx(f1_score(truth, given_, average="weighted", zero_division=0))
    assert scores.accuracy.value == pytest.approx(accuracy_score(truth, given_))
    assert scores.unreadable == pytest.approx(fmean(answer in ("mixed", "") for answer, _ in used))
    assert (scores.samples, scores.used) == (len(pairs), len(used))


def test_sentiments_are_compared_paired() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(-3, 3, 300).tolist()
    right = [("positive",) if value > 0 else ("negative",) for value in values]
    worse = [answer if rng.random() < 0.6 else ("neutral",) for answer in right]
    found = compare_sentiment(worse, right, values)
    assert set(found) == {"waf", "accuracy"} and found["waf"].low > 0
    assert found["waf"].value == pytest.approx(1 - score_sentiment(worse, values).waf.value)


# -- wrong input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score_open_labels([], [], WHEELS), "no true label is in the wheel 'made-up'"),
        (lambda: score_open_labels([["glad"]], [["neutral"]], WHEELS), "no true label is in the wheel 'made-up'"),
        (lambda: score_open_labels([["glad"]], [["glad"], ["sad"]], WHEELS), "1 answers for 2 samples"),
        (lambda: compare_open_labels([["a"]], [["a"], ["b"]], [["glad"]], WHEELS), "2 answers for 1 samples"),
        (lambda: score_sentiment([["positive"]], [1.0, 2.0]), "1 answers for 2 samples"),
        (lambda: score_sentiment([], []), "no true value other than 0"),
    ],
)
def test_wrong_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_level_that_the_wheel_does_not_have() -> None:
    with pytest.raises(AffectError, match="level 2: the wheel 'own' has none"):
        score_open_labels([["joy"]], [["joy"]], own_wheel(), level=2)
