"""The metrics of MER-UniBench (Lian et al., 2025, arXiv 2501.16566): HIT, F_s and WAF, with bootstrap intervals.

HIT and F_s are for answers in free words, grouped by emotion wheels into sets M_k (`affect_rl.scoring.wheels`). HIT
asks whether the true label is among an answer's and takes nothing for further labels: two words that never change beat
the published system on MELD. So `OpenScores` holds HIT together with F_s, which takes something for each wrong label,
and with the number of labels per answer; and HIT is never a reward. WAF is the weighted F1 of a sentiment's sign.

All three are functions of sums over samples. A bootstrap resample is therefore a weighted sum of the distinct
outcomes, and all resamples are one matrix product. Samples that cannot count (no wheel knows the true label, or
the true sentiment is 0) are left out before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from affect_rl.scoring.bootstrap import Difference, Estimate, difference, estimate, resampled
from affect_rl.scoring.metrics import Answers, compare, evaluate
from affect_rl.scoring.wheels import Level, Wheels

SIGNS = ("negative", "positive")
SIGN_VALUES: Mapping[str, float] = {"negative": -1.0, "neutral": 0.0, "positive": 1.0}
"""Values of sentiments that are given in words."""


@dataclass(frozen=True, slots=True)
class WheelScores:
    """One wheel's part: how many samples have a true label that it knows, and HIT and F_s over them."""

    used: int
    hit: float | None
    f_s: float


@dataclass(frozen=True, slots=True)
class OpenScores:
    """Metrics of answers in free words.

    Attributes:
        samples: how many samples.
        used: how many of them have a true label that some wheel knows; the published wheels do not know neutral.
        hit: HIT, in [0, 1]; None if a sample has several true labels: it is defined for one.
        f_s: F_s, in [0, 1].
        precision: share of an answer's clusters that are true, mean over samples and wheels.
        recall: share of the true clusters that the answer names, mean over samples and wheels.
        labels_per_answer: distinct labels per answer, over the used samples.
        by_wheel: the parts of HIT and F_s.
    """

    samples: int
    used: int
    hit: Estimate | None
    f_s: Estimate
    precision: Estimate
    recall: Estimate
    labels_per_answer: Estimate
    by_wheel: tuple[WheelScores, ...]


@dataclass(frozen=True, slots=True)
class SentimentScores:
    """Metrics of a sentiment's sign.

    Attributes:
        samples: how many samples.
        used: how many of them have a true value other than 0.
        waf: weighted F1, in [0, 1].
        accuracy: share of right answers.
        unreadable: share of answers that are none of positive, negative and neutral; they count as negative.
    """

    samples: int
    used: int
    waf: Estimate
    accuracy: Estimate
    unreadable: float


def score_open_labels(
    predicted: Answers,
    true: Answers,
    wheels: Wheels,
    *,
    level: Level = 1,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> OpenScores:
    """HIT and F_s of answers in free words.

    For wheel k, over the samples whose true labels have a cluster in it, HIT_k is the mean of
    ``|M_k(answer) & M_k(truth)|``, P_k that of the same over ``|M_k(answer)|`` (0 for an empty one), R_k that of the
    same over ``|M_k(truth)|``, and F_k = 2 P_k R_k / (P_k + R_k). HIT and F_s are the means over the wheels. 0/0 is 0.

    Args:
        predicted: the labels of each answer, any number of them.
        true: the true labels of each sample, a set.
        wheels: what groups the labels.
        level: of the clusters.
        resamples: bootstrap resamples.
        confidence: coverage of the intervals.
        seed: of the resampling.

    Raises:
        ValueError: unequal lengths, or no true label that a wheel knows.
        AffectError: the wheels have no such level.
    """
    outcomes = _outcomes([predicted], true, wheels, level)
    drawn = _open_metrics(_bootstrap_sums(outcomes, resamples, seed)[0], len(outcomes))
    single = max(map(len, true)) == 1
    estimates = {name: estimate(_mean(wheel)[0], _mean(wheel)[1:], confidence) for name, wheel in drawn.items()}
    by_wheel = tuple(
        WheelScores(int(used), float(hit) if single else None, float(f_s))
        for used, hit, f_s in zip(outcomes[:, 0, 0].sum(axis=0), drawn["hit"][0], drawn["f_s"][0], strict=True)
    )
    return OpenScores(
        samples=len(true),
        used=len(outcomes),
        by_wheel=by_wheel,
        **(estimates if single else estimates | {"hit": None}),
    )


def compare_open_labels(
    predicted_a: Answers,
    predicted_b: Answers,
    true: Answers,
    wheels: Wheels,
    *,
    level: Level = 1,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Metrics of system B minus those of system A, paired: a resample takes the same samples for both.

    Arguments and errors as in `score_open_labels`; the keys are the estimates of `OpenScores`, ``hit`` only where it
    is defined.
    """
    outcomes = _outcomes([predicted_a, predicted_b], true, wheels, level)
    a, b = (_open_metrics(sums, len(outcomes)) for sums in _bootstrap_sums(outcomes, resamples, seed))
    gains = {name: _mean(b[name]) - _mean(a[name]) for name in a if name != "hit" or max(map(len, true)) == 1}
    return {name: difference(gain[0], gain[1:], confidence) for name, gain in gains.items()}


def open_label_metrics(predicted: Answers, true: Answers, wheels: Wheels, draws: np.ndarray) -> dict[str, np.ndarray]:
    """The estimates of `OpenScores` ``[D]`` under D counts of the n samples.

    Draws ``[D, n]`` say how often each sample counts. The other arguments and errors are those of `score_open_labels`.
    """
    used = np.array([any(wheels.group(truth)) for truth in true])
    outcomes = _outcomes([predicted], true, wheels, 1)[:, 0]
    counts = draws[:, used].astype(np.float64)
    sums = (counts @ outcomes.reshape(len(outcomes), -1)).reshape(len(draws), *outcomes.shape[1:])
    return {name: _mean(values) for name, values in _open_metrics(sums, counts.sum(axis=1)[:, None]).items()}


def score_sentiment(
    predicted: Answers,
    values: Sequence[float],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> SentimentScores:
    """WAF: weighted F1 of whether a sentiment is positive.

    Args:
        predicted: the labels of each answer; it is positive if "positive" is the only one, else negative.
        values: the true sentiments; samples of value 0 are left out.
        resamples: bootstrap resamples.
        confidence: coverage of the intervals.
        seed: of the resampling.

    Raises:
        ValueError: unequal lengths, or no value other than 0.
    """
    answers, truth = sentiment_signs(predicted, values)
    scores = evaluate(answers, truth, SIGNS, resamples=resamples, confidence=confidence, seed=seed)
    readable = {(sign,) for sign in SIGNS} | {("neutral",)}
    unreadable = [tuple(answer) not in readable for answer, value in zip(predicted, values, strict=True) if value != 0]
    return SentimentScores(len(values), len(truth), scores.weighted_f1, scores.accuracy, float(np.mean(unreadable)))


def compare_sentiment(
    predicted_a: Answers,
    predicted_b: Answers,
    values: Sequence[float],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """``waf`` and ``accuracy`` of system B minus those of system A, paired. Errors as in `score_sentiment`."""
    (a, truth), (b, _) = (sentiment_signs(predicted, values) for predicted in (predicted_a, predicted_b))
    found = compare(a, b, truth, SIGNS, resamples=resamples, confidence=confidence, seed=seed)
    return {"waf": found["weighted_f1"], "accuracy": found["accuracy"]}


def _outcomes(systems: Sequence[Answers], true: Answers, wheels: Wheels, level: Level) -> np.ndarray:
    """What S systems did on the n used samples, by each of W wheels ``[n, S, 5, W]``.

    The five: whether the wheel knows the truth; and if it does, how many true clusters the answer names, its precision
    and its recall; and its number of labels, the same for all wheels.
    """
    for predicted in systems:
        if len(predicted) != len(true):
            raise ValueError(f"{len(predicted)} answers for {len(true)} samples; give one answer a sample")
    outcomes = []
    for truth, *answers in zip(true, *systems, strict=True):
        wanted = wheels.group(truth, level)
        if any(wanted):
            outcomes.append([_outcome(wanted, wheels.group(answer, level), len(set(answer))) for answer in answers])
    if not outcomes:
        raise ValueError(f"no true label is in the wheel {wheels.name!r}; are these emotion labels?")
    return np.array(outcomes)


def _outcome(wanted: Sequence[frozenset[str]], given: Sequence[frozenset[str]], labels: int) -> list[list[float]]:
    """One answer's part of `_outcomes` ``[5, W]``."""
    hits = [len(truth & answer) for truth, answer in zip(wanted, given, strict=True)]
    return [
        [float(bool(truth)) for truth in wanted],
        [float(hit) for hit in hits],
        [hit / len(answer) if answer else 0.0 for hit, answer in zip(hits, given, strict=True)],
        [hit / len(truth) if truth else 0.0 for hit, truth in zip(hits, wanted, strict=True)],
        [float(labels)] * len(wanted),
    ]


def _bootstrap_sums(outcomes: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums of outcomes ``[n, S, 5, W]`` over the samples, then over each of R resamples ``[S, 1 + R, 5, W]``."""
    n, systems, *shape = outcomes.shape
    distinct, counts = np.unique(outcomes.reshape(n, -1), axis=0, return_counts=True)
    weights = np.concatenate([counts[None], resampled(counts, resamples, seed)]).astype(np.float64)
    by_system = distinct.reshape(len(distinct), systems, -1).swapaxes(0, 1)
    return (weights @ by_system).reshape(systems, len(weights), *shape)


def _open_metrics(sums: np.ndarray, n: int | np.ndarray) -> dict[str, np.ndarray]:
    """Each estimate of `OpenScores` by wheel ``[1 + R, W]`` from one system's sums ``[1 + R, 5, W]`` over n samples."""
    used, hits, precision, recall, labels = np.moveaxis(sums, 1, 0)
    p, r = _ratio(precision, used), _ratio(recall, used)
    return {
        "hit": _ratio(hits, used),
        "f_s": _ratio(2 * p * r, p + r),
        "precision": p,
        "recall": r,
        "labels_per_answer": labels / n,
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, with 0/0 = 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _mean(by_wheel: np.ndarray) -> np.ndarray:
    """The mean over wheels ``[1 + R]``."""
    return by_wheel.mean(axis=1)


def sentiment_signs(predicted: Answers, values: Sequence[float]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Answers and truths of the samples whose value is not 0, each as one of `SIGNS`."""
    if len(predicted) != len(values):
        raise ValueError(f"{len(predicted)} answers for {len(values)} samples; give one answer a sample")
    pairs = [(tuple(answer), value) for answer, value in zip(predicted, values, strict=True) if value != 0]
    if not pairs:
        raise ValueError("no true value other than 0; WAF leaves those out")
    return [(SIGNS[answer == ("positive",)],) for answer, _ in pairs], [(SIGNS[value > 0],) for _, value in pairs]
