"""Recognition by a generator that thinks before it answers: ``<think>...</think> <answer>labels</answer>``.

As R1-Omni (arXiv 2503.05379) and AffectGPT-R1 (arXiv 2508.01318) are trained. The presets ``r1_omni`` and
``affectgpt_r1`` use it. Rewards that those papers leave open (weights, the form of the length penalty) are settings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from affect_rl.sample import AffectSample
from affect_rl.scoring.emotions import CLUSTER_OF_WORD, normalise
from affect_rl.scoring.free_text import WordReader
from affect_rl.scoring.label_score import label_score
from affect_rl.scoring.scoring import Scoring, scoring_of
from affect_rl.scoring.wheels import Wheels
from affect_rl.section import TRAINING, Affects, Fraction, Natural
from affect_rl.tasks.fields import room, text_pattern
from affect_rl.tasks.recognition import ClosedSet, Kept, OpenLabels, RecognitionSettings, example_labels, rationale
from affect_rl.tasks.task import Task
from affect_rl.trajectory import Output
from affect_rl.wording import Wording

_WHEEL = {word: word for word in CLUSTER_OF_WORD}
_CHINESE = re.compile("[\u3400-\u9fff]")
_FORM = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)


class ThinkingSettings(RecognitionSettings):
    """How a thought and its answer are scored."""

    thought: Annotated[Fraction, Affects(TRAINING)] = 0.0
    """Share of the score that is paid for the labels found in the thought; the rest is paid for the answer's."""
    free_labels: Annotated[Natural, Affects(TRAINING)] = 3
    """Labels that an open answer may name without a penalty."""
    extra_label: Annotated[Fraction, Affects(TRAINING)] = 0.0
    """Taken from the score for each further label: the wheel alone does not price synonyms."""


class Thinking(Task):
    """Labels of a closed set, a sentiment or any words, after a thought in words of the model's own."""

    instruction = Wording(
        "Task: write <think> your thoughts </think>, then <answer> the emotion </answer>.\n",
        """Task: decide what this person feels. Think first, then answer with {what}. Write both in tags and nothing \
else, for example:
<think>The voice is loud and the words complain.</think> <answer>{example}</answer>
""",
        """任务：判断此人的情绪。先思考，然后用{what_zh}回答。两者都写在标签里，例如：
<think>声音很大，话里有抱怨。</think> <answer>{example}</answer>
""",
    )
    Settings = ThinkingSettings

    def instruct(self, sample: AffectSample) -> Wording:
        what, what_zh = self._kind(sample).choice
        return self.instruction.filled(what=what, what_zh=what_zh, example=example_labels(sample))

    def pattern(self, sample: AffectSample, tokens: int) -> str:
        characters = room(tokens, 3)
        labels = self._kind(sample).label_pattern(sample, characters)
        return f"<think>{text_pattern(characters, without='<')}</think> <answer>{labels}</answer>"

    def read(self, text: str, sample: AffectSample) -> Output:
        """Both pairs of tags once, nothing outside them."""
        found = _FORM.fullmatch(text)
        if not found or "<" in found[1] + found[2]:
            return Output(text, problem="the answer is not <think>...</think> <answer>...</answer>")
        thought, answer = (" ".join(part.split()) for part in found.groups())
        labels, problem = self._kind(sample).read_labels(answer, sample)
        return Output(text, labels, thought, problem)

    async def score(self, output: Output, sample: AffectSample) -> float:
        """``(1 - w) S(answer) + w S(thought)``, less the penalty for labels beyond the free ones; at least 0.

        An answer that cannot be read scores 0, whatever was thought before it.
        """
        s = self.settings
        assert isinstance(s, ThinkingSettings)
        if output.problem:
            return 0.0
        told = label_score(output.labels, sample, s.score)
        thought = label_score(labels_in(output.rationale, sample), sample, s.score) if s.thought else 0.0
        extra = max(0, len(output.labels) - s.free_labels)
        return max(0.0, (1 - s.thought) * told + s.thought * thought - s.extra_label * extra)

    def scoring(self, samples: Sequence[AffectSample], wheels: Wheels | None = None) -> Scoring:
        return scoring_of(samples, wheels)

    def demonstrate(self, sample: AffectSample, kept: Kept) -> str:
        labels = ", ".join(self._kind(sample).true_labels(sample))
        return f"<think>{rationale(sample, kept)}: {labels}</think> <answer>{labels}</answer>"

    def texts(self) -> list[str]:
        return ["<think>", "</think> <answer>", "</answer>"]

    def _kind(self, sample: AffectSample) -> OpenLabels | ClosedSet:
        """How the labels are read."""
        return OpenLabels(self.settings) if sample.label_kind == "open" else ClosedSet(self.settings)


def labels_in(thought: str, sample: AffectSample) -> tuple[str, ...]:
    """Labels that a thought names and does not deny: the sample's candidates, or (English) words of the emotion wheel.

    By the rules of `affect_rl.scoring.free_text`; candidates in Chinese are found as well.
    """
    names = {normalise(_spaced(candidate)): candidate for candidate in sample.candidates} or _WHEEL
    (found,) = WordReader("thought", names, normalise).read([_spaced(thought)])
    return found


def _spaced(text: str) -> str:
    """A text whose Chinese characters are words of their own."""
    return _CHINESE.sub(r" \g<0> ", text)
