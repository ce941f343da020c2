"""Scoring against scikit-learn, plain loops and the functions for one policy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample
from affect_rl.scoring import bootstrap
from affect_rl.scoring.benchmark_metrics import score_open_labels, score_sentiment
from affect_rl.scoring.metrics import METRICS, compare, evaluate
from affect_rl.scoring.scoring import HIT_METRICS, OPEN_METRICS, SENTIMENT_METRICS, scoring_of
from affect_rl.scoring.wheels import Wheels, own_wheel

LABELS = ("anger", "fear", "joy")
SENTIMENTS = [("positive",), ("negative",), ("neutral",), ()]
WORDS = ("happy", "cheerful", "furious", "scared", "sad", "gloomy", "zebra")

KNOWN = [{"mad": "bad", "afraid": "bad", "glad": "good"}, {"mad": "hot", "glad": "bright"}]
"""Two made-up wheels by word: in the first anger and fear mean the same, the second has no fear."""
WHEELS = Wheels("made-up", {"anger": ["mad"], "fear": ["afraid"], "joy": ["glad"]}, {1: tuple(KNOWN)})
CLUSTERS = [{"anger": "bad", "fear": "bad", "joy": "good"}, {"anger": "hot", "joy": "bright"}]
"""The same by label; neutral is in neither."""

answer = st.sampled_from([(), ("anger",), ("fear",), ("joy",)])
truth = st.sampled_from(LABELS)
words = st.lists(st.sampled_from(WORDS), min_size=0, max_size=3, unique=True).map(tuple)
true_words = st.lists(st.sampled_from(WORDS[:-1]), min_size=1, max_size=2, unique=True).map(tuple)


def _samples(true: Sequence[tuple[str, ...]], kind: str = "closed") -> list[AffectSample]:
    candidates = {"closed": (*LABELS, "neutral"), "open": (), "sentiment": ("negative", "neutral", "positive")}[kind]
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


def test_resamples_in_blocks_are_the_same_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million samples they do not fit into memory at once."""
    rng = np.random.default_rng(0)
    draw = lambda: [(str(label),) for label in rng.choice(LABELS, 60)]  # noqa: E731
    scoring, runs = scoring_of(_samples(draw())), ([draw(), draw()], [draw(), draw()])
    whole = scoring.evaluate(runs[0], resamples=50), scoring.compare(*runs, resamples=50)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 60 * 7)
    assert (scoring.evaluate(runs[0], resamples=50), scoring.compare(*runs, resamples=50)) == whole


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
    assert scoring_of(_samples(true, "sentiment")).per_run([answers]) == [run], "words alone, as in CMU-MOSI's tables"


def test_sentiments_that_are_all_neutral_have_no_waf() -> None:
    with pytest.raises(AffectError, match="d: no test sample is positive or negative; WAF needs one"):
        scoring_of(_samples([("neutral",)] * 2, "sentiment"))


@given(st.lists(st.tuples(true_words, words), min_size=1, max_size=20))
def test_open_labels_are_scored_by_the_wheel(rows: list[tuple[tuple[str, ...], tuple[str, ...]]]) -> None:
    true, answers = [t for t, _ in rows], [a for _, a in rows]
    scoring = scoring_of(_samples(true, "open"))
    (run,) = scoring.per_run([answers])
    wanted = score_open_labels(answers, true, own_wheel(), resamples=10)
    assert set(run) - {"hit"} == set(OPEN_METRICS) and scoring.main == "f_s"
    assert run.get("hit") == pytest.approx(wanted.hit and wanted.hit.value), "HIT is for one true label"
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


# -- HIT of closed sets ----------------------------------------------------------------------------------


def _hit(true: Sequence[str], answers: Sequence[tuple[str, ...]]) -> tuple[float, float, float]:
    """HIT, F_s and labels per answer of answers of at most one label, by their definitions."""
    hits, f_s = [], []
    for cluster in CLUSTERS:
        pairs = [
            ({cluster[t]}, {cluster[label] for label in a if label in cluster})
            for t, a in zip(true, answers, strict=True)
            if t in cluster
        ]
        hits.append(fmean([len(m_true & m) for m_true, m in pairs]) if pairs else 0.0)
        precision = fmean([len(m_true & m) / len(m) if m else 0.0 for m_true, m in pairs]) if pairs else 0.0
        recall = fmean([len(m_true & m) / len(m_true) for m_true, m in pairs]) if pairs else 0.0
        f_s.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    used = [a for t, a in zip(true, answers, strict=True) if any(t in cluster for cluster in CLUSTERS)]
    return fmean(hits), fmean(f_s), fmean(map(len, used))


neutral_too = st.sampled_from([*LABELS, "neutral"])


@given(st.lists(st.tuples(neutral_too, st.one_of(st.just(()), st.tuples(neutral_too))), min_size=1, max_size=20))
def test_named_wheels_add_hit_to_a_closed_set(rows: list[tuple[str, tuple[str, ...]]]) -> None:
    true, answers = [t for t, _ in rows], [a for _, a in rows]
    assume(set(true) != {"neutral"})
    samples = _samples([(t,) for t in true])
    plain, scoring = scoring_of(samples), scoring_of(samples, WHEELS)
    (before,), (run,) = plain.per_run([answers]), scoring.per_run([answers])
    assert scoring.names == (*METRICS, *HIT_METRICS) and scoring.main == plain.main
    assert [run[name] for name in HIT_METRICS] == pytest.approx(_hit(true, answers))
    assert run["f_s"] == pytest.approx(run["hit"]), "an answer has one label, so there is nothing to pay for"
    assert {name: run[name] for name in METRICS} == before


def test_intervals_of_hit_are_over_runs_and_samples() -> None:
    """Against plain loops: draw runs, draw samples, average."""
    rng = np.random.default_rng(0)
    true = [LABELS[n % 3] for n in range(30)] + ["neutral"] * 6
    runs = [[(t,) if rng.random() < p else ("joy",) for t in true] for p in (0.9, 0.6, 0.2)]
    scoring = scoring_of(_samples([(t,) for t in true]), WHEELS)
    found = scoring.evaluate(runs, resamples=2000)["hit"]
    assert found.value == pytest.approx(fmean(_hit(true, run)[0] for run in runs))
    means = []
    for _ in range(1000):
        drawn = rng.integers(len(true), size=len(true))
        some = [[runs[run][n] for n in drawn] for run in rng.integers(3, size=3)]
        means.append(fmean(_hit([true[n] for n in drawn], answers)[0] for answers in some))
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.04)
    gain = scoring.compare([runs[2], runs[2]], [runs[0], runs[0]], resamples=200)
    assert gain["hit"].value == pytest.approx(_hit(true, runs[0])[0] - _hit(true, runs[2])[0])
    assert 0 < gain["hit"].low <= gain["hit"].value <= gain["hit"].high


@pytest.mark.parametrize("true", [[("joy",), ("fear",)], [("joy", "fear"), ("anger",)]])
def test_open_labels_are_scored_by_the_named_wheels(true: list[tuple[str, ...]]) -> None:
    answers = [("joy", "anger"), ("fear", "zebra")]
    scoring, wanted = scoring_of(_samples(true, "open"), WHEELS), score_open_labels(answers, true, WHEELS, resamples=10)
    (run,) = scoring.per_run([answers])
    assert run["f_s"] == pytest.approx(wanted.f_s.value) != scoring_of(_samples(true, "open")).value(answers)
    assert ("hit" in run) == ("hit" in scoring.evaluate([answers], resamples=5)) == (wanted.hit is not None)
    assert wanted.hit is None or run["hit"] == pytest.approx(wanted.hit.value)
    assert set(OPEN_METRICS) <= set(run)


def test_a_note_says_by_which_wheels_and_on_how_many_samples() -> None:
    true = [("joy",), ("fear",), ("neutral",)]
    used = "wheels `made-up` (samples per wheel: 2 / 1), 2 of 3 samples used"
    assert scoring_of(_samples(true), WHEELS).notes == (f"HIT, F_s and labels per answer: {used}, without neutral.",)
    assert scoring_of(_samples(true, "open"), WHEELS).notes == (f"Labels are grouped by {used}.",)
    assert scoring_of(_samples(true)).notes == scoring_of(_samples(true, "open")).notes == ()


def test_sentiments_have_no_use_for_wheels() -> None:
    samples = [replace(s, value=1.0) for s in _samples([("positive",)], "sentiment")]
    scoring = scoring_of(samples, WHEELS)
    assert scoring.names == SENTIMENT_METRICS and scoring.notes == ()


@pytest.mark.parametrize(
    ("true", "kind", "message"),
    [
        (
            [("joy",), ("joy", "fear")],
            "closed",
            "d: test sample 1 has several true labels (joy, fear), but HIT needs one",
        ),
        (
            [("neutral",)] * 2,
            "closed",
            "d: no true label of test (neutral) is in the wheels 'made-up'; name wheels that",
        ),
        ([("zebra",), ("ox",)], "open", "d: no true label of test (ox, zebra) is in the wheels 'made-up'; name wheels"),
    ],
)
def test_wheels_that_do_not_fit_the_samples_are_refused(true: list[tuple[str, ...]], kind: str, message: str) -> None:
    with pytest.raises(AffectError, match=re.escape(message)):
        scoring_of(_samples(true, kind), WHEELS)
