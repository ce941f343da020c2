"""Scoring against scikit-learn, plain loops and the functions for one policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from affect_rl.benchmark_metrics import score_open_labels, score_sentiment
from affect_rl.metrics import METRICS, compare, evaluate
from affect_rl.sample import AffectSample
from affect_rl.scoring import OPEN_METRICS, SENTIMENT_METRICS, scoring_of
from affect_rl.wheels import own_wheel

LABELS = ("anger", "fear", "joy")
SENTIMENTS = [("positive",), ("negative",), ("neutral",), ()]
WORDS = ("happy", "cheerful", "furious", "scared", "sad", "gloomy", "zebra")

answer = st.sampled_from([(), ("anger",), ("fear",), ("joy",)])
truth = st.sampled_from(LABELS)
words = st.lists(st.sampled_from(WORDS), min_size=0, max_size=3, unique=True).map(tuple)
true_words = st.lists(st.sampled_from(WORDS[:-1]), min_size=1, max_size=2, unique=True).map(tuple)


def _samples(true: list[tuple[str, ...]], kind: str = "closed") -> list[AffectSample]:
    candidates = {"closed": LABELS, "open": (), "sentiment": ("negative", "neutral", "positive")}[kind]
    return [AffectSample(f"{i}", "d", "test", f"c{i}", "", "t", t, kind, candidates) for i, t in enumerate(true)]  # type: ignore[arg-type]


@given(st.lists(st.tuples(truth, answer), min_size=1, max_size=30))
def test_a_closed_set_is_scored_as_scikit_learn_does(rows: list[tuple[str, tuple[str, ...]]]) -> None:
    true, given_ = [t for t, _ in rows], [a[0] if a else "none" for _, a in rows]
    scoring = scoring_of(_samples([(t,) for t in true]))
    (run,) = scoring.per_run([[a for _, a in rows]])
    assert run["accuracy"] == pytest.approx(accuracy_score(true, given_))
    assert run["weighted_f1"] == pytest.approx(
        f1_score(true, given_, labels=LABELS, average="weighted", zero_division=0)
    )
    assert scoring.main == "weighted_f1" and scoring.value([a for _, a in rows]) == run["weighted_f1"]


@given(st.lists(st.tuples(truth, answer, answer), min_size=2, max_size=30))
def test_one_run_says_what_the_functions_for_one_policy_say(
    rows: list[tuple[str, tuple[str, ...], tuple[str, ...]]],
) -> None:
    true, a, b = [(t,) for t, _, _ in rows], [x for _, x, _ in rows], [y for _, _, y in rows]
    scoring = scoring_of(_samples(true))
    scores, found = evaluate(a, true, LABELS, resamples=10), scoring.evaluate([a], resamples=10)
    for name in METRICS:
        assert found[name].value == pytest.approx(getattr(scores, name).value)
        assert found[name].low <= found[name].value + 1e-9 or found[name].low <= found[name].high
    assert {n.removeprefix("recall/"): e.value for n, e in found.items() if n.startswith("recall/")} == pytest.approx(
        {label: e.value for label, e in scores.recall.items()}
    )
    gains, wanted = scoring.compare([a], [b], resamples=10), compare(a, b, true, LABELS, resamples=10)
    assert {n: g.value for n, g in gains.items()} == pytest.approx({n: g.value for n, g in wanted.items()})


@given(st.lists(st.tuples(st.sampled_from([-2.0, -0.4, 0.0, 1.6]), st.sampled_from(SENTIMENTS)), min_size=3))
def test_sentiments_are_scored_by_their_sign(rows: list[tuple[float, tuple[str, ...]]]) -> None:
    rows += [(1.0, ("positive",))]  # WAF wants a sample that is not neutral
    true = [("positive" if v > 0 else "negative" if v < 0 else "neutral",) for v, _ in rows]
    samples = [replace(s, value=v) for s, (v, _) in zip(_samples(true, "sentiment"), rows, strict=True)]
    scoring, answers = scoring_of(samples), [a for _, a in rows]
    (run,) = scoring.per_run([answers])
    assert scoring.main == "waf" and set(run) == set(SENTIMENT_METRICS)
    assert run["waf"] == pytest.approx(score_sentiment(answers, [v for v, _ in rows], resamples=5).waf.value)


@given(st.lists(st.tuples(true_words, words), min_size=1, max_size=20))
def test_open_labels_are_scored_by_the_wheel(rows: list[tuple[tuple[str, ...], tuple[str, ...]]]) -> None:
    true, answers = [t for t, _ in rows], [a for _, a in rows]
    scoring = scoring_of(_samples(true, "open"))
    (run,) = scoring.per_run([answers])
    wanted = score_open_labels(answers, true, own_wheel(), resamples=10)
    assert set(run) == set(OPEN_METRICS) and scoring.main == "f_s"
    assert run["f_s"] == pytest.approx(wanted.f_s.value)
    assert run["precision"] == pytest.approx(wanted.precision.value)
    assert run["recall"] == pytest.approx(wanted.recall.value)
    assert run["labels_per_answer"] == pytest.approx(np.mean([len(a) for a in answers]))
    assert run["invalid_rate"] == pytest.approx(np.mean([not a for a in answers]))
    exact = [len(set(a) & set(t)) / len(a) if a else 0.0 for t, a in rows]
    assert run["exact"] == pytest.approx(np.mean(exact))


def test_runs_are_averaged_and_compared_on_the_same_samples() -> None:
    true = [("joy",), ("fear",), ("joy",), ("anger",)]
    right, wrong = [*true], [("fear",), ("joy",), ("fear",), ("joy",)]
    scoring = scoring_of(_samples(true))
    assert scoring.evaluate([right, wrong], resamples=50)["accuracy"].value == 0.5
    gain = scoring.compare([wrong, wrong], [right, right], resamples=200)["accuracy"]
    assert gain.value == gain.low == gain.high == 1, "every sample and every run has the same gain"
    gain = scoring.compare([wrong, wrong], [right, wrong], resamples=200)["accuracy"]
    assert (gain.value, gain.low, gain.high) == (0.5, 0, 1), "runs are drawn, too, and in pairs"


def test_the_spread_of_runs_is_in_the_interval() -> None:
    """Against plain loops: draw runs, draw samples, average."""
    rng = np.random.default_rng(0)
    true = [("joy",)] * 40
    runs = [[("joy",) if rng.random() < p else ("fear",) for _ in true] for p in (0.9, 0.6, 0.3)]
    found = scoring_of(_samples(true)).evaluate(runs, resamples=4000)["accuracy"]
    right = np.array([[a == t for a, t in zip(run, true, strict=True)] for run in runs])
    means = [right[rng.integers(3, size=3)][:, rng.integers(40, size=40)].mean() for _ in range(4000)]
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)


def test_a_class_that_is_true_in_ties_alone_has_no_recall() -> None:
    scoring = scoring_of(_samples([("joy",), ("anger", "fear")]))
    found = scoring.evaluate([[("joy",), ("anger",)], [("joy",), ("fear",)]], resamples=5)
    assert [name for name in found if name.startswith("recall/")] == ["recall/joy"]
