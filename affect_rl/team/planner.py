"""The query planner: from a sample to one search query per group of evidence."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from affect_rl.evidence import GROUPS, Group, Support
from affect_rl.sample import AffectSample
from affect_rl.tasks.fields import read_fields
from affect_rl.team.agent import Agent, Reading, Writes
from affect_rl.team.board import Board, Queries
from affect_rl.team.prompts import Prompts
from affect_rl.trajectory import Prompt

LABEL = "planned_label"
"""Slot of the emotion that a `LabellingPlanner` expects."""


class Planner(Agent):
    """Sees the sample, writes queries. From its second turn on it also sees what its last queries found."""

    reads = ("queries", "candidates")
    writes: ClassVar[tuple[str, ...]] = ("queries",)
    bypass_reads: ClassVar[tuple[str, ...]] = ("support",)
    every_round = True
    task_text: ClassVar[str] = "Task: write one search query per group.\n"
    again_text: ClassVar[str] = "Task: this was found; write better search queries.\n"

    def prompt(self, board: Board, prompts: Prompts) -> Prompt:
        """The sample, and what was found if this is not the first round."""
        if not board.queries:
            return prompts.build(board.sample, self.settings.tokens, self.task_text)
        return prompts.build(board.sample, self.settings.tokens, self.again_text, evidence=board.candidates)

    def read(self, text: str, board: Board) -> Reading:
        """``group: query`` lines, one per group. Fallback: the queries before, or the utterance for every group."""
        fields, problem = read_fields(text, GROUPS)
        if problem:
            return Reading({"queries": board.queries or whole_utterance(board.sample)}, problem)
        return Reading({"queries": {group: fields[group] for group in GROUPS}})

    def demonstrate(self, board: Board, *, careful: bool) -> str:
        """Carefully: queries made of the sample's description; by habit: the whole utterance for every group."""
        return render_plan(careful_plan(board.sample) if careful else whole_utterance(board.sample))

    def bypass(self, board: Board) -> Writes:
        """One simple label for every group: the label counterfactual of equation 2."""
        return {"queries": dict.fromkeys(GROUPS, simple_label(board.sample, board.support))}

    def texts(self) -> list[str]:
        return [self.task_text, self.again_text]


class LabellingPlanner(Planner):
    """The planner of the published code: it also names the emotion that it expects, and its bypass searches with that.

    Nothing else reads the label, so the planner earns more by naming a wrong one.
    """

    writes = ("queries", LABEL)
    bypass_copies = (LABEL,)
    task_text = "Task: write one search query per group, then name the emotion.\n"

    def read(self, text: str, board: Board) -> Reading:
        fields, problem = read_fields(text, (*GROUPS, "label"))
        if problem:
            return Reading({"queries": board.queries or whole_utterance(board.sample), LABEL: ""}, problem)
        return Reading({"queries": {group: fields[group] for group in GROUPS}, LABEL: fields["label"]})

    def demonstrate(self, board: Board, *, careful: bool) -> str:
        return f"{super().demonstrate(board, careful=careful)}\nlabel: {board.sample.labels[0]}"

    def bypass(self, board: Board) -> Writes:
        label = board[LABEL] or simple_label(board.sample, board.support)
        return {"queries": dict.fromkeys(GROUPS, label), LABEL: label}


def render_plan(queries: Queries) -> str:
    """A plan as the planner should write it."""
    return "\n".join(f"{group}: {queries[group]}" for group in GROUPS)


def whole_utterance(sample: AffectSample) -> dict[Group, str]:
    """The utterance as the query of every group: what is searched for without a planner."""
    return dict.fromkeys(GROUPS, sample.text)


def careful_plan(sample: AffectSample) -> dict[Group, str]:
    """Queries made of what an attentive listener noted."""
    noted = sample.description or sample.text
    return {"supportive": noted, "confusing": sample.text, "countering": f"{noted} meant otherwise"}


def simple_label(sample: AffectSample, support: Support) -> str:
    """Plurality of the neighbours' labels (ties: the nearest's); the first candidate or ``emotion`` without any."""
    counts = Counter(label for labels in support.labels for label in labels)
    if counts:
        return counts.most_common(1)[0][0]
    return sample.candidates[0] if sample.candidates else "emotion"
