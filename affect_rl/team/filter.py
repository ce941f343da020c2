"""The evidence filter: from the candidates of each group to the evidence that the answer is given on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

from affect_rl.evidence import GROUPS, Evidence, Group
from affect_rl.sample import AffectSample
from affect_rl.section import Positive
from affect_rl.tasks.fields import choice_pattern, lines_pattern, read_fields
from affect_rl.team.agent import Agent, AgentSettings, Reading, Writes
from affect_rl.team.board import Board, Found, first
from affect_rl.team.prompts import Prompts
from affect_rl.trajectory import Generation, Prompt
from affect_rl.wording import Wording

if TYPE_CHECKING:
    from affect_rl.team.episode import Episode

_HELD_TO = 3
"""Evidence of a group that a filter may keep where an engine is held to a pattern."""
Numbers = Mapping[Group, tuple[int, ...]]
"""Candidates chosen in each group, by the numbers that count through all groups from 1."""


class FilterSettings(AgentSettings):
    """The filter's settings."""

    tokens: Positive = 24
    """Longest answer, in tokens."""


class Filter(Agent):
    """Sees the sample and the numbered candidates, names those to keep."""

    reads = ("candidates",)
    writes = ("kept",)
    bypass_reads = ("candidates",)
    Settings = FilterSettings
    wording: ClassVar[Wording] = Wording(
        "Task: keep the useful evidence.\n",
        """Task: choose the evidence that helps to tell what this person feels. Write for each group the numbers of at \
most {keep} pieces to keep, or none. Answer with these three lines and nothing else:
supportive: numbers, or none
confusing: numbers, or none
countering: numbers, or none
For example:
supportive: 1
confusing: none
countering: none
""",
        """任务：选出有助于判断此人情绪的证据。每组写出最多 {keep} 条要保留的证据的编号，或写 none。只用以下三行回答：
supportive: 编号或 none
confusing: 编号或 none
countering: 编号或 none
例如：
supportive: 1
confusing: none
countering: none
""",
    )

    def prompt(self, board: Board, prompts: Prompts) -> Prompt:
        asked = self.wording.filled(keep=self.episode.keep)
        return prompts.build(board.sample, self.settings.tokens, asked, evidence=board.candidates, numbered=True)

    def read(self, text: str, board: Board) -> Reading:
        """``group: numbers`` lines. Fallback: the first ones of each group in retrieval order."""
        numbers, problem = parse_selection(text, board.candidates, self.episode.keep)
        if problem:
            return Reading({"kept": first(board.candidates, self.episode.keep)}, problem)
        return Reading({"kept": chosen(board.candidates, numbers)})

    def demonstrate(self, board: Board, *, careful: bool) -> str:
        """Carefully: per group the best candidates that serve it; by habit: retrieval order."""
        return render_selection(select(board.sample, board.candidates, self.episode.keep, careful))

    def bypass(self, board: Board) -> Writes:
        """Retrieval order: the rank counterfactual of equation 3."""
        return {"kept": first(board.candidates, self.episode.keep)}

    def pattern(self, board: Board) -> str:
        """Any numbers of a group, ascending: in which order they stand matters little, and there are fewer that way.

        At most `_HELD_TO` of them, for their choices are written out.
        """
        keep = min(self.episode.keep, _HELD_TO)
        choices = {
            group: [
                "none",
                *(
                    ", ".join(str(number) for number, _ in some)
                    for count in range(1, min(keep, len(items)) + 1)
                    for some in combinations(items, count)
                ),
            ]
            for group, items in numbered(board.candidates).items()
        }
        return lines_pattern(**{group: choice_pattern(texts) for group, texts in choices.items()})

    def texts(self) -> list[str]:
        return [self.wording.short, "supportive: none\nconfusing: none\ncountering: none\n"]


class SilverFilter(Filter):
    """A filter whose turn is searched for instead of asked for: what helps the generator most, found greedily.

    BGM (Ke et al., arXiv 2401.06954) trains a bridge to write the sequence of passages that helps a frozen reader most.
    Nobody has labelled such sequences, so they are searched for: from nothing, add the candidate that raises the
    reader's score most, until none does. Here the bridge is the filter and the reader the rest of the team.
    """

    async def act(self, board: Board, episode: Episode, number: int, line: str) -> Reading:
        found = await self._search_greedily(board, episode)
        text = render_selection(found)
        tokens = episode.prompts.answer(text)
        demonstration = Generation(tokens, (0.0,) * len(tokens), (0,) * len(tokens), text, finished=True)
        episode.record(self, self.prompt(board, episode.prompts), demonstration, None, number, line)
        return Reading({"kept": chosen(board.candidates, found)})

    async def _search_greedily(self, board: Board, episode: Episode) -> Numbers:
        groups = numbered(board.candidates)

        async def reader_score(numbers: Numbers) -> float:
            return await episode.score_with({"kept": chosen(board.candidates, numbers)})

        best: dict[Group, tuple[int, ...]] = dict.fromkeys(GROUPS, ())
        best_score = await reader_score(best)
        while best_score < 1:
            longer = [
                {**best, group: (*best[group], number)}
                for group, items in groups.items()
                for number, _ in items
                if number not in best[group] and len(best[group]) < self.episode.keep
            ]
            scores = await asyncio.gather(*map(reader_score, longer))
            if not scores or max(scores) <= best_score:
                break
            best_score = max(scores)
            best = longer[scores.index(best_score)]
        return best


def numbered(candidates: Found) -> dict[Group, list[tuple[int, Evidence]]]:
    """Candidates with the numbers that a filter's prompt gives them: through all groups from 1."""
    groups: dict[Group, list[tuple[int, Evidence]]] = {}
    first = 1
    for group in GROUPS:
        items = candidates.get(group, ())
        groups[group] = list(enumerate(items, start=first))
        first += len(items)
    return groups


def chosen(candidates: Found, numbers: Numbers) -> dict[Group, tuple[Evidence, ...]]:
    """The evidence behind the numbers, in their order."""
    items = {number: item for group in numbered(candidates).values() for number, item in group}
    return {group: tuple(items[number] for number in numbers[group]) for group in numbers}


def render_selection(numbers: Numbers) -> str:
    """A selection as the filter should write it."""
    return "\n".join(f"{group}: {', '.join(map(str, numbers.get(group, ()))) or 'none'}" for group in GROUPS)


def parse_selection(text: str, candidates: Found, keep: int) -> tuple[Numbers, str | None]:
    """Read ``group: numbers`` lines; at most `keep` of each group."""
    fields, problem = read_fields(text, GROUPS)
    numbers: dict[Group, tuple[int, ...]] = {}
    for group, items in numbered(candidates).items():
        if problem:
            return numbers, problem
        numbers[group], problem = _numbers(fields[group], group, [number for number, _ in items], keep)
    return numbers, problem


def _numbers(value: str, group: Group, known: list[int], keep: int) -> tuple[tuple[int, ...], str | None]:
    """Read ``none`` or distinct numbers among those known, at most `keep` of them."""
    if value.lower() == "none":
        return (), None
    if not re.fullmatch(r"[0-9]{1,4}(\s*,\s*[0-9]{1,4})*", value, flags=re.ASCII):
        return (), f"{group}: `{value[:40]}` is neither numbers nor `none`"
    numbers = tuple(int(n) for n in value.split(","))
    if len(set(numbers)) < len(numbers):
        return (), f"{group}: a number stands twice"
    if outside := [n for n in numbers if n not in known]:
        return (), f"{group}: {outside[0]} is not a candidate of this group"
    if len(numbers) > keep:
        return (), f"{group}: {len(numbers)} kept, at most {keep}"
    return numbers, None


def select(sample: AffectSample, candidates: Found, keep: int, careful: bool) -> Numbers:
    """Numbers of the candidates to keep per group, best first, as an annotator who knows the truth chooses them."""

    def wanted(group: Group, item: Evidence) -> bool:
        return not careful or item.agrees(sample) == (group == "supportive")

    groups = numbered(candidates)
    return {group: tuple([n for n, item in items if wanted(group, item)][:keep]) for group, items in groups.items()}
