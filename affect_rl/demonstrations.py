"""Demonstrations for the SFT warm start: episodes played by an annotator instead of an engine.

The annotator implements the `Generate` interface, so a demonstration has exactly the prompts that RL
and evaluation have. It knows the truth, as an annotator does, and plays with care. What is written down
is of mixed quality, as silver data are: a planner's or a filter's turn is recorded as it was played
with probability `careful`, otherwise as habit has it:

=========  ==========================================  =====================================
turn       with care                                   by habit
=========  ==========================================  =====================================
planner    queries made of the sample's description    the whole utterance as every query
filter     per group the best candidate that serves    retrieval order
           it: shares the truth (supportive) or not
generator  the annotator's note or the evidence that shares the truth as reason, the truth as label
=========  ==========================================  =====================================

So each agent learns its own task on sound inputs, and reinforcement learning has habits to overcome.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from affect_rl.config import EpisodeConfig, RewardConfig
from affect_rl.episode import play_episode
from affect_rl.evidence import GROUPS, Evidence, Group, Retrieve
from affect_rl.parsers import render_answer, render_plan, render_selection
from affect_rl.prompts import Prompts
from affect_rl.sample import AffectSample
from affect_rl.trajectory import Generation, Prompt, Request, Trajectory, Turn


@dataclass(frozen=True, slots=True)
class Annotator:
    """Plays the three agents by rule, with care. Answers are tokenised once, here, and never again.

    Attributes:
        prompts: the templates.
        keep: evidence kept per group.
        careful: share of the planner's and the filter's turns that are recorded as played.
    """

    prompts: Prompts
    keep: int
    careful: float

    async def __call__(self, prompt: Prompt, request: Request) -> Generation:
        sample = request.sample
        if request.role == "planner":
            return self._generation(render_plan(careful_plan(sample)))
        if request.role == "filter":
            return self._generation(render_selection(select(sample, request.candidates, self.keep, careful=True)))
        return self._generation(render_answer(rationale(sample, request.candidates), _answer_labels(sample)))

    def record(self, turn: Turn, sample: AffectSample, trajectory: Trajectory, seed: int) -> Turn:
        """The turn as it is written down: as played, or as habit has it."""
        if turn.role == "generator" or random.Random(f"{seed}/{turn.role}").random() < self.careful:
            return turn
        if turn.role == "planner":
            habit = render_plan(dict.fromkeys(GROUPS, sample.text))
        else:
            habit = render_selection(select(sample, trajectory.candidates, self.keep, careful=False))
        return replace(turn, generation=self._generation(habit))

    def _generation(self, text: str) -> Generation:
        tokens = self.prompts.answer(text)
        return Generation(tokens, (0.0,) * len(tokens), (0,) * len(tokens), text, finished=True)


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
    return [annotator.record(turn, sample, trajectory, seed) for turn in trajectory.turns]
