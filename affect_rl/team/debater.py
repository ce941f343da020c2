"""A debater: argues against the answer that the evidence suggests, before the generator gives its own."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from affect_rl.tasks.fields import lines_pattern, read_fields, room, text_pattern
from affect_rl.team.agent import Agent, Reading, Writes
from affect_rl.team.board import Board
from affect_rl.team.planner import said, simple_label
from affect_rl.team.prompts import Prompts
from affect_rl.trajectory import Prompt
from affect_rl.wording import Wording


class Debater(Agent):
    """Sees the kept evidence and the label it leads to; says what speaks against that. Its bypass is silence."""

    reads = ("support", "kept", "notes")
    writes = ("notes",)
    bypass_reads = ("notes",)
    wording: ClassVar[Wording] = Wording(
        "Task: argue against the leading emotion.\n",
        """Task: the evidence leads to the emotion named above. Say in a few words what speaks against it, or nothing. \
Answer with one line and nothing else:
against: your argument, or nothing
For example:
against: the words complain, but the voice laughs
""",
        """任务：证据指向上面写出的情绪。用几个词说明反对它的理由，或写 nothing。只用一行回答：
against: 你的理由或 nothing
例如：
against: 话在抱怨，声音却在笑
""",
    )

    def prompt(self, board: Board, prompts: Prompts) -> Prompt:
        note = f"Leading: {leading_label(board)}\n"
        return prompts.build(board.sample, self.settings.tokens, self.wording, evidence=board.kept, note=note)

    def read(self, text: str, board: Board) -> Reading:
        """An ``against:`` line. Fallback: silence."""
        fields, problem = read_fields(text, ("against",))
        if problem:
            return Reading({"notes": board.notes}, problem)
        return Reading({"notes": (*board.notes, f"against {leading_label(board)}: {fields['against']}")})

    def pattern(self, board: Board) -> str:
        return lines_pattern(against=text_pattern(room(self.settings.tokens, 1)))

    def demonstrate(self, board: Board, *, careful: bool) -> str:
        """Carefully: what was noted of the sample if the leading label is wrong, else nothing; by habit: its words."""
        sample = board.sample
        if not careful:
            return f"against: {said(sample)}"
        right = leading_label(board) in sample.labels
        return "against: nothing" if right else f"against: {sample.description or said(sample)}"

    def bypass(self, board: Board) -> Writes:
        return {"notes": board.notes}

    def texts(self) -> list[str]:
        return [self.wording.short, "Leading: against: against nothing\n"]


def leading_label(board: Board) -> str:
    """The most frequent label of the supportive evidence; without any, that of the perceptual neighbours."""
    labels = Counter(label for item in board.kept.get("supportive", ()) for label in item.labels)
    return labels.most_common(1)[0][0] if labels else simple_label(board.sample, board.support)
