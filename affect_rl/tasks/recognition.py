"""Emotion recognition: a reason, then labels of a closed set, of any words, or of a sentiment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from affect_rl.evidence import Evidence, Group
from affect_rl.sample import AffectSample
from affect_rl.scoring.emotions import normalise
from affect_rl.scoring.label_score import ScoreKind, label_score
from affect_rl.scoring.scoring import Scoring, scoring_of
from affect_rl.scoring.wheels import Wheels
from affect_rl.section import TRAINING, Affects
from affect_rl.seeds import derived_seed
from affect_rl.tasks.fields import choice_pattern, lines_pattern, read_fields, room, text_pattern
from affect_rl.tasks.task import Task, TaskSettings
from affect_rl.trajectory import Output
from affect_rl.wording import Wording

Kept = Mapping[Group, tuple[Evidence, ...]]

MAX_OPEN_LABELS = 8
"""An open answer may name this many labels."""
_LETTER, _LABEL = "[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u4e00-\u9fff]", 16
"""What words of open labels are made of, and how long one may be, where an engine is held to a pattern."""
_COMMAS = re.compile("[,\uff0c\u3001]")
"""What stands between labels, also in Chinese."""
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
"""Marks around a label."""


QUOTED_WORDS = 12
"""Most words that a rationale quotes of a piece of evidence."""


class RecognitionSettings(TaskSettings):
    """How labels are scored."""

    score: Annotated[ScoreKind, Affects(TRAINING)] = "auto"
    """Score of an answer: ``exact`` labels, or F1 over emotion-wheel clusters; auto: the wheel for open labels."""


class Recognition(Task):
    """What the three kinds of labels have in common: ``reason:`` and ``label:`` lines, and `label_score`.

    Attributes:
        choice: what may stand in the ``label:`` line, in English and in Chinese.
    """

    choice: ClassVar[tuple[str, str]]
    instruction = Wording(
        "Task: reason, then name the emotion.\n",
        """Task: decide what this person feels. Weigh the words, the voice and face, and the evidence if there is any. \
Answer with these two lines and nothing else:
reason: one short sentence
label: {what}
For example:
reason: the way it is said tells more than the words
label: {example}
""",
        """任务：判断此人的情绪。综合考虑话语、声音、面部以及证据（如果有）。只用以下两行回答：
reason: 一个简短的句子
label: {what_zh}
例如：
reason: 说话的方式比内容更能说明问题
label: {example}
""",
    )
    Settings = RecognitionSettings

    def instruct(self, sample: AffectSample) -> Wording:
        what, what_zh = self.choice
        return self.instruction.filled(what=what, what_zh=what_zh, example=example_labels(sample))

    def read(self, text: str, sample: AffectSample) -> Output:
        fields, problem = read_fields(text, ("reason", "label"))
        if problem:
            return Output(text, problem=problem)
        labels, problem = self.read_labels(fields["label"], sample)
        return Output(text, labels, fields["reason"], problem)

    def pattern(self, sample: AffectSample, tokens: int) -> str:
        characters = room(tokens, 2)
        return lines_pattern(reason=text_pattern(characters), label=self.label_pattern(sample, characters))

    def label_pattern(self, sample: AffectSample, longest: int) -> str:
        """A regular expression of the labels that an answer may name, of at most `longest` characters if it is free."""
        raise NotImplementedError

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

    choice = ("one of the labels above", "上面列出的标签之一")

    def label_pattern(self, sample: AffectSample, longest: int) -> str:
        return choice_pattern(sample.candidates)

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

    choice = ("the emotions in your own words, separated by commas", "用自己的话写出情绪，以逗号分隔")

    def label_pattern(self, sample: AffectSample, longest: int) -> str:
        word = f"{_LETTER}({_LETTER}|[ -]){{0,{_LABEL - 1}}}"
        more = min(MAX_OPEN_LABELS, longest // (_LABEL + 2)) - 1
        return f"{word}(, {word}){{0,{more}}}" if more > 0 else word

    def read_labels(self, written: str, sample: AffectSample) -> tuple[tuple[str, ...], str | None]:
        labels = _forms(written)
        if not 1 <= len(labels) <= MAX_OPEN_LABELS:
            return (), f"label: {len(labels)} labels, expected 1 to {MAX_OPEN_LABELS}"
        return tuple(labels.values()), None

    def true_labels(self, sample: AffectSample) -> tuple[str, ...]:
        return sample.labels[:MAX_OPEN_LABELS]


def _forms(written: str) -> dict[str, str]:
    """Comma-separated labels: normal form to what was written; a label that stands twice counts once."""
    labels: dict[str, str] = {}
    for label in _COMMAS.split(written):
        if form := normalise(label):
            labels.setdefault(form, _EDGES.sub("", label.casefold()))
    return labels


def example_labels(sample: AffectSample) -> str:
    """What an example of an answer names: any of the candidates, so that all examples together favour none."""
    if not sample.candidates:
        return "relieved, a little proud"
    return sample.candidates[derived_seed(0, "example", sample.id) % len(sample.candidates)]


def render_answer(reason: str, labels: tuple[str, ...]) -> str:
    """An answer as it should be written."""
    return f"reason: {reason}\nlabel: {', '.join(labels)}"


def rationale(sample: AffectSample, kept: Kept) -> str:
    """What the annotator noted beyond the words; else the evidence that shares the truth; else what was perceived.

    Evidence is quoted to its end, which is its label: who repeats the words comes to the label. A tiny policy that was
    only to say "as in the supportive evidence" did not always learn in the warm start where to look.
    """
    if sample.description and sample.description not in sample.text:
        return " ".join(sample.description.splitlines())  # an answer's lines have names
    for item in kept.get("supportive", ()):
        if item.agrees(sample):
            return " ".join(item.text.split()[-QUOTED_WORDS:])
    return "voice and face"
