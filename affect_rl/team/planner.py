"""The query planner: from a sample to one search query per group of evidence."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from affect_rl.evidence import GROUPS, Group, Support
from affect_rl.sample import AffectSample
from affect_rl.tasks.fields import choice_pattern, lines_pattern, read_fields, room, text_pattern
from affect_rl.team.agent import Agent, Reading, Writes
from affect_rl.team.board import Board, Queries
from affect_rl.team.prompts import Prompts
from affect_rl.trajectory import Prompt
from affect_rl.wording import Wording

_ASK = """Task: write three search queries of a few words each that find similar recordings of other people. Say what \
is said, and how it sounds and looks. Answer with these three lines and nothing else:
supportive: what fits the emotion that you expect
confusing: what is alike but means another emotion
countering: what would speak against it
For example:
supportive: tired words, slow and quiet voice
confusing: tired words, calm voice
countering: bright and fast voice
"""
_ASK_ZH = """任务：写出三条搜索查询，每条只用几个词，用来找到其他人的类似录音。说明说了什么，听起来和看起来怎样。\
只用以下三行回答：
supportive: 符合你预期的情绪的内容
confusing: 相似但表示另一种情绪的内容
countering: 与之相反的内容
例如：
supportive: 疲惫的话，声音又慢又轻
confusing: 疲惫的话，声音平静
countering: 声音明亮而快速
"""

LABEL = "planned_label"
"""Slot of the emotion that a `LabellingPlanner` expects."""


class Planner(Agent):
    """Sees the sample, writes queries. From its second turn on it also sees what its last queries found."""

    reads = ("queries", "candidates")
    writes: ClassVar[tuple[str, ...]] = ("queries",)
    bypass_reads: ClassVar[tuple[str, ...]] = ("support",)
    every_round = True
    wording: ClassVar[Wording] = Wording("Task: write one search query per group.\n", _ASK, _ASK_ZH)
    again: ClassVar[Wording] = Wording(
        "Task: this was found; write better search queries.\n",
        f"The evidence above was found with your last queries. Write better ones.\n{_ASK}",
        f"以上证据是用你上次的查询找到的。请写出更好的查询。\n{_ASK_ZH}",
    )

    def prompt(self, board: Board, prompts: Prompts) -> Prompt:
        """The sample, and what was found if this is not the first round."""
        if not board.queries:
            return prompts.build(board.sample, self.settings.tokens, self.wording)
        return prompts.build(board.sample, self.settings.tokens, self.again, evidence=board.candidates)

    def read(self, text: str, board: Board) -> Reading:
        """``group: query`` lines, one per group. Fallback: the queries before, or the utterance for every group."""
        fields, problem = read_fields(text, GROUPS)
        if problem:
            return Reading({"queries": board.queries or whole_utterance(board.sample)}, problem)
        return Reading({"queries": {group: fields[group] for group in GROUPS}})

    def pattern(self, board: Board) -> str:
        query = text_pattern(room(self.settings.tokens, len(GROUPS)))
        return lines_pattern(**dict.fromkeys(GROUPS, query))

    def demonstrate(self, board: Board, *, careful: bool) -> str:
        """Carefully: queries made of the sample's description; by habit: the whole utterance for every group."""
        habit = dict.fromkeys(GROUPS, said(board.sample))
        return render_plan(careful_plan(board.sample) if careful else habit)

    def bypass(self, board: Board) -> Writes:
        """One simple label for every group: the label counterfactual of equation 2."""
        return {"queries": dict.fromkeys(GROUPS, simple_label(board.sample, board.support))}

    def texts(self) -> list[str]:
        return [self.wording.short, self.again.short]


class LabellingPlanner(Planner):
    """The planner of the published code: it also names the emotion that it expects, and its bypass searches with that.

    Nothing else reads the label, so the planner earns more by naming a wrong one.
    """

    writes = ("queries", LABEL)
    bypass_copies = (LABEL,)
    wording = Wording(
        "Task: write one search query per group, then name the emotion.\n",
        f"{_ASK}Add a fourth line, `label:`, with the emotion that you expect.\n",
        f"{_ASK_ZH}再加第四行 `label:`，写出你预期的情绪。\n",
    )

    def read(self, text: str, board: Board) -> Reading:
        fields, problem = read_fields(text, (*GROUPS, "label"))
        if problem:
            return Reading({"queries": board.queries or whole_utterance(board.sample), LABEL: ""}, problem)
        return Reading({"queries": {group: fields[group] for group in GROUPS}, LABEL: fields["label"]})

    def pattern(self, board: Board) -> str:
        text = text_pattern(room(self.settings.tokens, len(GROUPS) + 1))
        label = choice_pattern(board.sample.candidates) if board.sample.candidates else text
        return lines_pattern(**dict.fromkeys(GROUPS, text), label=label)

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
    noted = sample.description or said(sample)
    return {"supportive": noted, "confusing": said(sample), "countering": f"{noted} meant otherwise"}


def said(sample: AffectSample) -> str:
    """The utterance, as an annotator quotes it; there are words also where it is withheld."""
    return sample.text or "no words"


def simple_label(sample: AffectSample, support: Support) -> str:
    """Plurality of the neighbours' labels (ties: the nearest's); the first candidate or ``emotion`` without any."""
    counts = Counter(label for labels in support.labels for label in labels)
    if counts:
        return counts.most_common(1)[0][0]
    return sample.candidates[0] if sample.candidates else "emotion"
