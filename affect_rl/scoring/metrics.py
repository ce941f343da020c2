"""Evaluation metrics of closed label sets, with bootstrap intervals and paired comparisons.

Every metric of labels is a function of the confusion counts, and resampling n samples with replacement draws
those counts from a multinomial distribution. So a bootstrap (Efron and Tibshirani, 1993, chapter 13:
percentile interval) is one multinomial draw over the distinct outcomes, whatever n is.

Ties: a sample's true labels are alternatives. An answer that is one of them is right and that label
counts as the truth; otherwise the first one does. An answer without a valid label is never right; it lowers
recall like any other error and no precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from affect_rl.scoring.bootstrap import Difference, Estimate, difference, estimate, resampled
from affect_rl.scoring.emotions import normalise

Answers = Sequence[Sequence[str]]
"""Labels of each sample, predicted (none: an invalid answer) or true."""
METRICS = ("accuracy", "weighted_f1", "uar", "macro_f1", "invalid_rate")
"""Names of the scalar metrics; all in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Metrics of one policy, all in [0, 1].

    Attributes:
        samples: how many samples.
        accuracy: share of right answers.
        weighted_f1: mean F1 over classes, weighted by their share of the truth.
        uar: unweighted average recall over the classes in the truth.
        macro_f1: unweighted mean F1 over the classes in the truth.
        invalid_rate: share of answers without a valid label.
        recall: recall of each class in the truth.
    """

    samples: int
    accuracy: Estimate
    weighted_f1: Estimate
    uar: Estimate
    macro_f1: Estimate
    invalid_rate: Estimate
    recall: Mapping[str, Estimate]


def evaluate(
    predicted: Answers,
    true: Answers,
    candidates: Sequence[str],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Scores:
    """Score answers.

    Args:
        predicted: the labels of each answer; the first counts, and an empty answer is invalid.
        true: the true labels of each sample, alternatives.
        candidates: the classes; a label outside them is invalid.
        resamples: bootstrap resamples.
        confidence: coverage of the intervals.
        seed: of the resampling.

    Raises:
        ValueError: no samples, unequal lengths, or a true label outside the candidates.
    """
    cells = _cells(predicted, true, candidates)
    outcomes, counts = np.unique(cells, return_counts=True)
    draws = resampled(counts, resamples, seed)
    classes = len(candidates)
    point = _metrics(_confusions(outcomes, counts[None], classes))
    drawn = _metrics(_confusions(outcomes, draws, classes))
    estimates = {name: estimate(point[name][0], drawn[name], confidence) for name in METRICS}
    recall = {
        label: estimate(point["recall"][0, i], drawn["recall"][:, i], confidence)
        for i, label in enumerate(candidates)
        if not np.isnan(point["recall"][0, i])
    }
    return Scores(len(cells), recall=recall, **estimates)


def compare(
    predicted_a: Answers,
    predicted_b: Answers,
    true: Answers,
    candidates: Sequence[str],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Metrics of policy B minus those of policy A, paired: a resample takes the same samples for both.

    Arguments and errors as in `evaluate`; the keys are `METRICS`.
    """
    a, b = (_cells(predicted, true, candidates) for predicted in (predicted_a, predicted_b))
    classes = len(candidates)
    pairs, counts = np.unique(np.stack([a, b]), axis=1, return_counts=True)
    draws = resampled(counts, resamples, seed)
    sides = [[_metrics(_confusions(side, c, classes)) for c in (counts[None], draws)] for side in pairs]
    (point_a, drawn_a), (point_b, drawn_b) = sides
    return {
        name: difference(point_b[name][0] - point_a[name][0], drawn_b[name] - drawn_a[name], confidence)
        for name in METRICS
    }


def closed_set_metrics(
    predicted: Answers, true: Answers, candidates: Sequence[str], draws: np.ndarray
) -> dict[str, np.ndarray]:
    """`METRICS` ``[D]`` and the classes' ``recall`` ``[D, C]`` (nan: no sample) under D counts of the n samples.

    Draws ``[D, n]`` say how often each sample counts. The other arguments and errors are those of `evaluate`.
    """
    outcomes, place = np.unique(_cells(predicted, true, candidates), return_inverse=True)
    counts = draws @ (place[:, None] == np.arange(len(outcomes)))
    return _metrics(_confusions(outcomes, counts, len(candidates)))


def confusion_counts(predicted: Answers, true: Answers, candidates: Sequence[str]) -> np.ndarray:
    """How often each of C truths was given each answer ``[C, C + 1]``; the last column: no valid answer.

    Arguments and errors as in `evaluate`.
    """
    outcomes, counts = np.unique(_cells(predicted, true, candidates), return_counts=True)
    return _confusions(outcomes, counts[None], len(candidates))[0]


def _cells(predicted: Answers, true: Answers, candidates: Sequence[str]) -> np.ndarray:
    """Each sample's cell in a flattened confusion matrix of C truths and C + 1 answers, last: invalid ``[n]``."""
    if len(predicted) != len(true) or not len(true):
        raise ValueError(
            f"{len(predicted)} answers for {len(true)} samples; give one answer a sample, and at least one"
        )
    index = {normalise(label): i for i, label in enumerate(candidates)}
    invalid = len(candidates)
    cells = np.empty(len(true), np.int64)
    for n, (answer, truth) in enumerate(zip(predicted, true, strict=True)):
        labels = [index.get(normalise(label), invalid) for label in truth]
        if not labels or invalid in labels:
            raise ValueError(
                f"sample {n}: true labels {tuple(truth)!r} are not all among the candidates {tuple(candidates)!r}"
            )
        given = index.get(normalise(answer[0]), invalid) if len(answer) else invalid
        cells[n] = (given if given in labels else labels[0]) * (invalid + 1) + given
    return cells


def _confusions(outcomes: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrices ``[R, C, C + 1]`` (truth, answer) from the cells ``[K]`` and their counts ``[R, K]``."""
    cells = classes * (classes + 1)
    return (counts @ (outcomes[:, None] == np.arange(cells))).reshape(len(counts), classes, classes + 1)


def _metrics(confusions: np.ndarray) -> dict[str, np.ndarray]:
    """Each of `METRICS` ``[R]`` and the recall of each class ``[R, C]``, nan where a class has no sample."""
    truth = confusions.sum(axis=2)
    given = confusions.sum(axis=1)[:, :-1]
    hits = np.diagonal(confusions, axis1=1, axis2=2)
    total = truth.sum(axis=1)
    present = truth > 0
    recall = np.where(present, hits / np.maximum(truth, 1), np.nan)
    f1 = 2 * hits / np.maximum(truth + given, 1)
    classes = present.sum(axis=1)
    return {
        "accuracy": hits.sum(axis=1) / total,
        "weighted_f1": (truth * f1).sum(axis=1) / total,
        "uar": np.nansum(recall, axis=1) / classes,
        "macro_f1": (f1 * present).sum(axis=1) / classes,
        "invalid_rate": confusions[:, :, -1].sum(axis=1) / total,
        "recall": recall,
    }
