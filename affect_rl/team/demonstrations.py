"""Demonstrations for the SFT warm start: episodes played by an annotator instead of an engine.

The annotator implements the `Generate` interface, so a demonstration has exactly the prompts that RL
and evaluation have. It knows the truth, as an annotator does. Like real silver data, demonstrations
are of mixed quality: a turn is played with care with a set probability, otherwise by habit, and the turns
after it see what came of it:

=========  ==========================================  =====================================
turn       with care                                   by habit
=========  ==========================================  =====================================
planner    queries made of the sample's description    the whole utterance as every query
filter     per group the best candidate that serves    retrieval order
           it: shares the truth (supportive) or not
generator  the annotator's note or the evidence that shares the truth as reason, the truth as label
=========  ==========================================  =====================================
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from affect_rl.config.sections import EpisodeConfig, RewardConfig
from affect_rl.evidence import GROUPS, Evidence, Group, Retrieve
from affect_rl.sample import AffectSample
from affect_rl.team.episode import play_episode
from affect_rl.team.parsers import render_answer, render_plan, render_selection
from affect_rl.team.prompts import Prompts
from affect_rl.trajectory import Generation, Prompt, Request, Turn


@dataclass(frozen=True, slots=True)
class Annotator:
    """Plays the three agents by rule. Answers are tokenised once, here, and never again.

    Attributes:
        prompts: the templates.
        keep: evidence kept per group.
        careful_planner: chance of each planner's turn to be careful.
        careful_filter: likewise the filter's.
        names_label: whether the planner also names the emotion.
    """

    prompts: Prompts
    keep: int
    careful_planner: float
    careful_filter: float
    names_label: bool = False

    async def __call__(self, prompt: Prompt, request: Request) -> Generation:
        chance = {"planner": self.careful_planner, "filter": self.careful_filter, "generator": 1.0}[request.role]
        text = self._write(request, careful=random.Random(request.seed).random() < chance)
        tokens = self.prompts.answer(text)
        return Generation(tokens, (0.0,) * len(tokens), (0,) * len(tokens), text, finished=True)

    def _write(self, request: Request, careful: bool) -> str:
        sample = request.sample
        if request.role == "planner":
            queries = careful_plan(sample) if careful else dict.fromkeys(GROUPS, sample.text)
            return render_plan(queries, sample.labels[0] if self.names_label else None)
        if request.role == "filter":
            return render_selection(select(sample, request.candidates, self.keep, careful))
        return render_answer(rationale(sample, request.candidates), _answer_labels(sample))


def careful_plan(sample: AffectSample) -> dict[Group, str]:
    """Queries made of what an attentive listener noted."""
    noted = sample.description or sample.text
    return {"supportive": noted, "confusing": sample.text, "countering": f"{noted} meant otherwise"}


def select(
    sample: AffectSample, candidates: Mapping[Group, tuple[Evidence, ...]], keep: int, careful: bool
) -> dict[Group, tuple[int, ...]]:
    """Numbers of the kept candidates per group, best first."""
    chosen: dict[Group, tuple[int, ...]] = {}
    first = 1
    for group in GROUPS:
        items = candidates.get(group, ())
        numbered = list(enumerate(items, start=first))
        if careful:
            wanted = group == "supportive"
            numbered = [(n, item) for n, item in numbered if agrees(item, sample) == wanted]
        chosen[group] = tuple(n for n, _ in numbered[:keep])
        first += len(items)
    return chosen


def agrees(item: Evidence, sample: AffectSample) -> bool:
    """Whether a piece of evidence shares a label with the truth."""
    return bool(set(item.labels) & set(sample.labels))


def rationale(sample: AffectSample, kept: Mapping[Group, tuple[Evidence, ...]]) -> str:
    """What the annotator noted beyond the words; else the evidence that shares the truth; else what was perceived."""
    if sample.description and sample.description not in sample.text:
        return sample.description
    if any(agrees(item, sample) for item in kept.get("supportive", ())):
        return "as in the supportive evidence"
    return "voice and face"


def _answer_labels(sample: AffectSample) -> tuple[str, ...]:
    return sample.labels if sample.label_kind == "open" else sample.labels[:1]


async def demonstrate(
    sample: AffectSample,
    retrieve: Retrieve | None,
    annotator: Annotator,
    config: EpisodeConfig,
    seed: int,
) -> Sequence[Turn]:
    """The turns of one demonstrated episode (three, or the generator's alone without retrieval)."""
    settings = config.model_copy(update={"counterfactuals": False})
    trajectory = await play_episode(sample, annotator, retrieve, annotator.prompts, settings, RewardConfig(), seed)
    return trajectory.turns
