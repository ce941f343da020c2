"""Silver selections for a bridge between retriever and reader: greedy sequences of evidence.

BGM (Ke et al., arXiv 2401.06954) trains a bridge to write the sequence of passages that helps a frozen reader
most. Nobody has labelled such sequences, so they are searched for: from nothing, add the candidate that raises
the reader's score most, until none does. Here the bridge is the filter and the reader the generator.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from affect_rl.evidence import GROUPS, Evidence, Group
from affect_rl.team.episode import Episode
from affect_rl.team.parsers import render_selection
from affect_rl.team.rewards import score
from affect_rl.trajectory import Generation, Purpose

Kept = dict[Group, tuple[int, ...]]
Numbered = list[tuple[int, tuple[Group, Evidence]]]
"""Candidates with the numbers that a filter's prompt gives them: through all groups from 1."""


class SilverEpisode(Episode):
    """An episode whose filter turn is what greedy search found, as if the filter had written it.

    It is a ``kind`` of `affect_rl.team.episode.play_episode` and needs a retriever.
    """

    async def _filter(
        self, candidates: Mapping[Group, tuple[Evidence, ...]], purpose: Purpose
    ) -> Mapping[Group, tuple[Evidence, ...]]:
        numbered = list(enumerate(((group, item) for group in GROUPS for item in candidates.get(group, ())), start=1))
        found = await self._search_greedily(numbered)
        prompt = self.prompts.filter(self.sample, candidates, self.config.limit("filter"))
        text = render_selection(found)
        tokens = self.prompts.answer(text)
        demonstration = Generation(tokens, (0.0,) * len(tokens), (0,) * len(tokens), text, finished=True)
        self._record("filter", prompt, demonstration, None, purpose)
        return _chosen(numbered, found)

    async def _search_greedily(self, numbered: Numbered) -> Kept:
        """Numbers of the best sequence found, per group."""

        async def reader_score(kept: Kept) -> float:
            answer = await self._answer(_chosen(numbered, kept), "silver")
            return score(answer.labels, self.sample, self.rewards.kind)

        best: Kept = dict.fromkeys(GROUPS, ())
        best_score = await reader_score(best)
        while best_score < 1:
            longer = [
                {**best, group: (*best[group], number)}
                for number, (group, _) in numbered
                if number not in best[group] and len(best[group]) < self.config.keep
            ]
            scores = await asyncio.gather(*map(reader_score, longer))
            if not scores or max(scores) <= best_score:
                break
            best_score = max(scores)
            best = longer[scores.index(best_score)]
        return best


def _chosen(numbered: Numbered, kept: Kept) -> dict[Group, tuple[Evidence, ...]]:
    items = {number: item for number, (_, item) in numbered}
    return {group: tuple(items[number] for number in numbers) for group, numbers in kept.items()}
