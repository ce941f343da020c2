"""System 1 and System 2: a small classifier answers when it is sure, the team when it is not (arXiv 2506.01698).

What the team's work costs is a setting: points of the main metric for a thousand tokens a sample. The threshold of
being sure is the one that is worth most on dev after that cost; what it brings is measured on test.

``cascade.json``  the threshold and the whole curve (`Cascade`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affect_rl.data.dataset import Manifest
from affect_rl.errors import AffectError
from affect_rl.experiments.baselines import Guess
from affect_rl.experiments.results import Interval, Part, read_part
from affect_rl.files import whole_file
from affect_rl.policy.directory import manifest_hash
from affect_rl.scoring.metrics import Answers
from affect_rl.scoring.scoring import Scoring
from affect_rl.scoring.tables import header, in_unit, markdown_table

CASCADE, PAGE = "cascade.json", "cascade.html"
_SHARES = 20
"""The curve has a point for each so many-th part of dev that the team is asked."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A split as both systems answer it.

    Attributes:
        scoring: of its samples.
        guesses: the classifier's.
        answers: the team's.
        tokens: of the team's work on each sample, read and generated ``[N]``.
        classifier_ms: milliseconds of the classifier a sample.
        team_ms: milliseconds of the team a sample: the time for the split over its samples.
    """

    scoring: Scoring
    guesses: Sequence[Guess]
    answers: Answers
    tokens: np.ndarray
    classifier_ms: float
    team_ms: float

    def asked(self, threshold: float) -> np.ndarray:
        """Which samples the team is asked about ``[N]``: those of which the classifier is less sure."""
        return np.array([guess.sure < threshold for guess in self.guesses])

    def answers_at(self, threshold: float) -> list[tuple[str, ...]]:
        """The answers of both together."""
        pairs = zip(self.asked(threshold), self.guesses, self.answers, strict=True)
        return [tuple(answer) if asked else (guess.label,) for asked, guess, answer in pairs]


class Point(Part):
    """Both systems at one threshold.

    Attributes:
        threshold: the classifier answers if it is at least so sure; 0: always, above 1: never.
        asked: share of samples that the team is asked about.
        score: main metric.
        tokens: of the team, mean over all samples.
        ms: mean over all samples.
    """

    threshold: float
    asked: float
    score: Interval
    tokens: float
    ms: float


class Cascade(Part):
    """What two systems are worth together.

    Attributes:
        name: of the run.
        policy: SHA-256 of the manifest of the team's policy.
        trained_on: SHA-256 of the train split that the classifier was fitted to.
        metric: the main one.
        cost: points of the metric, from 0 to 100, that a thousand tokens a sample are held to cost.
        threshold: the one that is worth most on dev.
        splits: by split, the curve from the classifier alone to the team alone.
        chosen: by split, the point at `threshold`.
        gain: on test, at `threshold`, over the team alone and over the classifier alone.
    """

    name: str
    policy: str
    trained_on: str
    metric: str
    cost: float
    threshold: float
    splits: dict[str, list[Point]]
    chosen: dict[str, Point]
    gain: dict[str, Interval]

    @classmethod
    def read(cls, directory: Path) -> Cascade:
        """Read ``cascade.json``.

        Raises:
            AffectError: it is absent or not one.
        """
        return read_part(cls, directory / CASCADE, "a cascade")

    def check(self, policy: Path, data: Manifest) -> None:
        """Raise `AffectError` unless the threshold was chosen for this policy, and a classifier of this dataset."""
        if manifest_hash(policy) != self.policy:
            what = f"was chosen for another policy than {policy}"
        elif data.splits["train"].sha256 != self.trained_on:
            what = f"was chosen for a classifier of another train split than that of the dataset {data.name!r}"
        else:
            return
        raise AffectError(f"{CASCADE}: the threshold of run {self.name} {what}; make it anew with `affect-rl cascade`")

    def write(self, directory: Path) -> None:
        """Write ``cascade.json``, whole or not at all."""
        directory.mkdir(parents=True, exist_ok=True)
        with whole_file(directory / CASCADE) as partial:
            partial.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf8")

    @property
    def table(self) -> list[list[str]]:
        """The curve on test, below a header; the chosen threshold stands in it."""
        rows = [["sure from", "the team is asked", header(self.metric), "tokens a sample", "ms a sample"]]
        for point in self.splits["test"]:
            mark = " (chosen on dev)" if point.threshold == self.threshold else ""
            cells = [f"{100 * point.asked:.0f} %", in_unit(self.metric, point.score)]
            rows.append([f"{point.threshold:.3f}{mark}", *cells, f"{point.tokens:.0f}", f"{point.ms:.1f}"])
        return rows

    @property
    def said(self) -> list[str]:
        """A sentence about each of what was found."""
        point = self.chosen["test"]
        over = [f"over {who}: {in_unit(self.metric, gain, sign='+')}" for who, gain in self.gain.items()]
        return [
            f"The classifier answers where it is at least {self.threshold:.3f} sure, chosen on dev for a cost of "
            f"{self.cost:g} points for a thousand tokens.",
            f"On test the team is then asked about {100 * point.asked:.0f} % of the samples; {header(self.metric)} "
            f"{in_unit(self.metric, point.score)}, {', '.join(over)}.",
        ]

    def markdown(self) -> str:
        """The curve as a table, and what was chosen."""
        return f"# {self.name}: System 1 and System 2\n\n{markdown_table(self.table)}\n" + "".join(
            f"- {line}\n" for line in self.said
        )


def make_cascade(
    name: str,
    policy: str,
    trained_on: str,
    dev: Answered,
    test: Answered,
    cost: float,
    *,
    confidence: float,
    seed: int,
) -> Cascade:
    """Choose the threshold on dev, and measure the curve on both splits.

    Args:
        name: of the run.
        policy: SHA-256 of the manifest of the team's policy.
        trained_on: SHA-256 of the train split that the classifier was fitted to.
        dev: what the threshold is chosen on.
        test: what it is measured on.
        cost: points of the main metric for a thousand tokens a sample.
        confidence: coverage of the intervals.
        seed: of the bootstrap.
    """
    sure = np.sort([guess.sure for guess in dev.guesses])
    places = np.linspace(0, len(sure) - 1, _SHARES + 1).round().astype(int)
    thresholds = [0.0, *dict.fromkeys(float(sure[place]) for place in places[1:]), 1.01]

    def point(split: Answered, threshold: float) -> Point:
        asked = split.asked(threshold)
        found = split.scoring.evaluate([split.answers_at(threshold)], confidence=confidence, seed=seed)
        return Point(
            threshold=threshold,
            asked=float(asked.mean()),
            score=Interval.of(found[split.scoring.main]),
            tokens=float((asked * split.tokens).mean()),
            ms=split.classifier_ms + float(asked.mean()) * split.team_ms,
        )

    splits = {"dev": [point(dev, t) for t in thresholds], "test": [point(test, t) for t in thresholds]}
    best = max(splits["dev"], key=lambda p: (100 * p.score.value - cost * p.tokens / 1000, -p.tokens))
    chosen = test.answers_at(best.threshold)
    gain = {
        who: Interval.of(test.scoring.compare([alone], [chosen], confidence=confidence, seed=seed)[test.scoring.main])
        for who, alone in (("the team", test.answers_at(1.01)), ("the classifier", test.answers_at(0.0)))
    }
    return Cascade(
        name=name,
        policy=policy,
        trained_on=trained_on,
        metric=test.scoring.main,
        cost=cost,
        threshold=best.threshold,
        splits=splits,
        chosen={"dev": best, "test": point(test, best.threshold)},
        gain=gain,
    )
