"""Emotion recognition: a reason, then labels of a closed set, of any words, or of a sentiment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from affect_rl.evidence import Evidence, Group
from affect_rl.sample import AffectSample
from affect_rl.scoring.emotions import normalise
from affect_rl.scoring.label_score import ScoreKind, label_score
from affect_rl.scoring.scoring import Scoring, scoring_of
from affect_rl.scoring.wheels import Wheels
from affect_rl.section import TRAINING, Affects
from affect_rl.tasks.fields import read_fields
from affect_rl.tasks.task import Task, TaskSettings
from affect_rl.trajectory import Output

Kept = Mapping[Group, tuple[Evidence, ...]]

MAX_OPEN_LABELS = 8
"""An open answer may name this many labels."""
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
"""Marks around a label."""


QUOTED_WORDS = 12
"""Most words that a rationale quotes of a piece of evidence."""


class RecognitionSettings(TaskSettings):
    """How labels are scored."""

    score: Annotated[ScoreKind, Affects(TRAINING)] = "auto"
    """Score of an answer: ``exact`` labels, or F1 over emotion-wheel clusters; auto: the wheel for open labels."""


class Recognition(Task):
    """What the three kinds of labels have in common: ``reason:`` and ``label:`` lines, and `label_score`."""

    instruction = "Task: reason, then name the emotion.\n"
    Settings = RecognitionSettings

    def read(self, text: str, sample: AffectSample) -> Output:
        fields, problem = read_fields(text, ("reason", "label"))
        if problem:
            return Output(text, problem=problem)
        labels, problem = self.read_labels(fields["label"], sample)
        return Output(text, labels, fields["reason"], problem)

    def read_labels(self, written: str, sample: AffectSample) -> tuple[tuple[str, ...], str | None]:
        """The labels that an answer names, and what is wrong with them (None: nothing)."""
        raise NotImplementedError

    async def score(self, output: Output, sample: AffectSample) -> float:
        assert isinstance(self.settings, RecognitionSettings)
        return label_score(output.labels, sample, self.settings.score)

    def scoring(self, samples: Sequence[AffectSample], wheels: Wheels | None = None) -> Scoring:
        return scoring_of(samples, wheels)

    def demonstrate(self, sample: AffectSample, kept: Kept) -> str:
        return render_answer(rationale(sample, kept), self.true_labels(sample))

    def true_labels(self, sample: AffectSample) -> tuple[str, ...]:
        """The labels that an annotator names."""
        return sample.labels[:1]

    def texts(self) -> list[str]:
        return ["reason: label:"]


class ClosedSet(Recognition):
    """One of the sample's candidates."""

    def read_labels(self, written: str, sample: AffectSample) -> tuple[tuple[str, ...], str | None]:
        labels = _forms(written)
        known = {normalise(candidate): candidate for candidate in sample.candidates}
        if len(labels) != 1:
            return (), f"label: {len(labels)} labels, expected one"
        (form,) = labels
        if form not in known:
            return (), f"label: `{form}` is not one of {', '.join(sample.candidates)}"
        return (known[form],), None


class Sentiment(ClosedSet):
    """One of the sample's candidates, which are signs of a sentiment; measured by WAF."""


class OpenLabels(Recognition):
    """Any words, which stay as they are written but for case: published wheels know other forms than our own wheel."""

    def read_labels(self, written: str, sample: AffectSample) -> tuple[tuple[str, ...], str | None]:
        labels = _forms(written)
        if not 1 <= len(labels) <= MAX_OPEN_LABELS:
            return (), f"label: {len(labels)} labels, expected 1 to {MAX_OPEN_LABELS}"
        return tuple(labels.values()), None

    def true_labels(self, sample: AffectSample) -> tuple[str, ...]:
        return sample.labels


def _forms(written: str) -> dict[str, str]:
    """Comma-separated labels: normal form to what was written; a label that stands twice counts once."""
    labels: dict[str, str] = {}
    for label in written.split(","):
        if form := normalise(label):
            labels.setdefault(form, _EDGES.sub("", label.casefold()))
    return labels


def render_answer(reason: str, labels: tuple[str, ...]) -> str:
    """An answer as it should be written."""
    return f"reason: {reason}\nlabel: {', '.join(labels)}"


def rationale(sample: AffectSample, kept: Kept) -> str:
    """What the annotator noted beyond the words; else the evidence that shares the truth; else what was perceived.

    Evidence is quoted to its end, which is its label: who repeats the words comes to the label. A tiny policy that was
    only to say "as in the supportive evidence" did not always learn in the warm start where to look.
    """
    if sample.description and sample.description not in sample.text:
        return sample.description
    for item in kept.get("supportive", ()):
        if item.agrees(sample):
            return " ".join(item.text.split()[-QUOTED_WORDS:])
    return "voice and face"
