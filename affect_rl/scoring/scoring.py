"""What answers to a set of samples are scored by: classes where the label set is closed, wheels where it is open.

Everything that compares policies (selection on dev, evaluation, experiments) asks a `Scoring` and does not look
at the kind of labels itself. A metric is a function of how often each sample counts, so that the samples as they
are and all bootstrap resamples of them are rows of one matrix of counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample
from affect_rl.scoring.benchmark_metrics import SIGN_VALUES, SIGNS, open_label_metrics, sentiment_signs
from affect_rl.scoring.bootstrap import Difference, Estimate, difference, drawn_blocks, drawn_samples, estimate
from affect_rl.scoring.label_score import label_score
from affect_rl.scoring.metrics import METRICS, Answers, closed_set_metrics
from affect_rl.scoring.wheels import WheelMapping, Wheels, own_wheel, read_wheels

HIT_METRICS = ("hit", "f_s", "labels_per_answer")
"""HIT and what is always shown with it, for HIT takes nothing for further labels."""
SENTIMENT_METRICS = ("waf", *METRICS)
OPEN_METRICS = ("f_s", "precision", "recall", "exact", "labels_per_answer", "invalid_rate")


@dataclass(frozen=True, slots=True)
class Scoring:
    """Metrics of answers to `count` samples.

    Attributes:
        names: of the metrics, those by class not included.
        main: the metric that policies are selected and compared by.
        count: how many samples.
        measure: metrics ``[D]`` of answers under D counts of the samples ``[D, count]``.
        notes: what a reader must know of the metrics.
    """

    names: tuple[str, ...]
    main: str
    count: int
    measure: Callable[[Answers, np.ndarray], dict[str, np.ndarray]]
    notes: tuple[str, ...] = ()

    def value(self, answers: Answers) -> float:
        """The main metric of one run."""
        return float(self.measure(answers, np.ones((1, self.count), np.int64))[self.main][0])

    def evaluate(
        self, runs: Sequence[Answers], *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
    ) -> dict[str, Estimate]:
        """Metrics of the runs of one policy or arm: their mean, with a bootstrap interval over runs and samples."""
        (drawn,) = self._means([runs], resamples, seed)
        return {name: estimate(values[0], values[1:], confidence) for name, values in drawn.items()}

    def compare(
        self,
        runs_a: Sequence[Answers],
        runs_b: Sequence[Answers],
        *,
        resamples: int = 2000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> dict[str, Difference]:
        """Metrics of B minus those of A, each the mean over its runs.

        Paired twice: a resample has the same samples for all runs, and run i of A where it has run i of B.
        """
        a, b = self._means([runs_a, runs_b], resamples, seed)
        gains = {name: b[name] - a[name] for name in self.names}
        return {name: difference(gain[0], gain[1:], confidence) for name, gain in gains.items()}

    def per_run(self, runs: Sequence[Answers]) -> list[dict[str, float]]:
        """The metrics of each run."""
        once = np.ones((1, self.count), np.int64)
        return [{name: float(found[name][0]) for name in self.names} for found in (self.measure(r, once) for r in runs)]

    def _means(self, arms: Sequence[Sequence[Answers]], resamples: int, seed: int) -> list[dict[str, np.ndarray]]:
        """Of each arm, means ``[1 + R]`` over its runs and the samples as they are, then over drawn ones.

        All arms have the same draws.
        """
        blocks = [
            [[self.measure(answers, draws) for answers in runs] for runs in arms]
            for draws in drawn_blocks(self.count, resamples, seed)
        ]  # fmt: skip

        def of(arm: int) -> dict[str, np.ndarray]:
            runs = range(len(arms[arm]))
            weights = drawn_samples(len(runs), resamples, (seed, 1)).T / len(runs)
            found = {
                name: [np.concatenate([block[arm][run][name] for block in blocks]) for run in runs]
                for name in blocks[0][arm][0]
            }
            return {name: (weights * values).sum(axis=0) for name, values in found.items()}

        return [of(arm) for arm in range(len(arms))]


@lru_cache(maxsize=8)
def wheels_of(directory: str, mapping: WheelMapping) -> Wheels | None:
    """The published wheels in a directory, or None without one; read once, since every stage of a run asks for them.

    Raises:
        AffectError: they cannot be read, see `read_wheels`.
    """
    return read_wheels(directory, mapping) if directory else None


def scoring_of(samples: Sequence[AffectSample], wheels: Wheels | None = None) -> Scoring:
    """The metrics for samples of one dataset: of their closed set, of sentiments, or of open labels.

    Args:
        samples: at least one.
        wheels: group open labels, and add `HIT_METRICS` to the metrics of a closed set; sentiments need none. None:
            open labels are grouped by the project's own wheel, and closed sets are left as they are.

    Raises:
        AffectError: the wheels know no true label, a closed set has ties, for which HIT is not defined, or all
            sentiments are neutral.
    """
    match samples[0].label_kind:
        case "open":
            return _open_labels(samples, wheels)
        case "sentiment":
            return _sentiments(samples)
        case _:
            return _closed_set(samples) if wheels is None else _with_hit(_closed_set(samples), samples, wheels)


def _closed_set(samples: Sequence[AffectSample]) -> Scoring:
    true, candidates = [s.labels for s in samples], samples[0].candidates
    present = [(i, label) for i, label in enumerate(candidates) if (label,) in true]  # not in ties alone

    def measure(answers: Answers, draws: np.ndarray) -> dict[str, np.ndarray]:
        found = closed_set_metrics(answers, true, candidates, draws)
        recall = found.pop("recall")
        return found | {f"recall/{label}": recall[:, i] for i, label in present}

    return Scoring(METRICS, "weighted_f1", len(samples), measure)


def _with_hit(closed: Scoring, samples: Sequence[AffectSample], wheels: Wheels) -> Scoring:
    """The metrics of a closed set, and HIT with what belongs to it."""
    true = [s.labels for s in samples]
    for s in samples:
        if len(s.labels) > 1:
            several = f"{s.dataset}: {s.split} sample {s.id} has several true labels ({', '.join(s.labels)})"
            raise AffectError(f"{several}, but HIT needs one; take out evaluate.wheels")

    def measure(answers: Answers, draws: np.ndarray) -> dict[str, np.ndarray]:
        by_wheel = open_label_metrics(answers, true, wheels, draws)
        return closed.measure(answers, draws) | {name: by_wheel[name] for name in HIT_METRICS}

    notes = (f"HIT, F_s and labels per answer: {_samples_used(samples, wheels)}",)
    return replace(closed, names=(*closed.names, *HIT_METRICS), measure=measure, notes=notes)


def _sentiments(samples: Sequence[AffectSample]) -> Scoring:
    closed = _closed_set(samples)
    values = [SIGN_VALUES.get(s.labels[0], 0.0) if s.value is None else s.value for s in samples]
    polar = np.array(values) != 0
    if not polar.any():
        first = samples[0]
        raise AffectError(f"{first.dataset}: no {first.split} sample is positive or negative; WAF needs one, add some")

    def measure(answers: Answers, draws: np.ndarray) -> dict[str, np.ndarray]:
        found = closed_set_metrics(*sentiment_signs(answers, values), SIGNS, draws[:, polar])
        return {"waf": found["weighted_f1"]} | closed.measure(answers, draws)

    return Scoring(SENTIMENT_METRICS, "waf", len(samples), measure)


def _open_labels(samples: Sequence[AffectSample], published: Wheels | None) -> Scoring:
    true, wheels = [s.labels for s in samples], published or own_wheel()
    names = OPEN_METRICS if any(len(truth) > 1 for truth in true) else ("hit", *OPEN_METRICS)
    used = f"Labels are grouped by {_samples_used(samples, wheels)}"

    def measure(answers: Answers, draws: np.ndarray) -> dict[str, np.ndarray]:
        exact = [label_score(answer, s, "exact") for answer, s in zip(answers, samples, strict=True)]
        by_sample = {"exact": np.array(exact), "invalid_rate": np.array([not len(answer) for answer in answers])}
        means = {name: draws @ values / draws.sum(axis=1) for name, values in by_sample.items()}
        found = open_label_metrics(answers, true, wheels, draws) | means
        return {name: found[name] for name in names}

    return Scoring(names, "f_s", len(samples), measure, (used,) if published else ())


def _samples_used(samples: Sequence[AffectSample], wheels: Wheels) -> str:
    """How many samples the wheels score, in all and each; samples whose true labels they do not know are left out."""
    groups = [wheels.group(s.labels) for s in samples]
    used = sum(map(any, groups))
    if not used:
        labels = sorted({label for s in samples for label in s.labels})
        what = f"{samples[0].dataset}: no true label of {samples[0].split} ({', '.join(labels[:7])})"
        raise AffectError(
            f"{what} is in the wheels {wheels.name!r}; name wheels that know them in evaluate.wheels, or none"
        )
    by_wheel = " / ".join(f"{sum(map(bool, known)):,}" for known in zip(*groups, strict=True))
    unknown = ", ".join(label for label in samples[0].candidates if not any(wheels.group([label])))
    left_out = f", without {unknown}" if unknown else ""
    return (
        f"wheels `{wheels.name}` (samples per wheel: {by_wheel}), {used:,} of {len(samples):,} samples used{left_out}."
    )
