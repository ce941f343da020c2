"""Demonstrations for the SFT warm start: episodes played by an annotator instead of an engine.

The annotator implements the `Generate` interface, so a demonstration has exactly the prompts that RL
and evaluation have. It knows the truth, as an annotator does. Like real silver data, demonstrations
are of mixed quality: a turn is played with care with the probability that the agent's settings give (``careful``),
otherwise by habit. What an agent writes either way it says itself (`Agent.demonstrate`). The turns after it see what
came of its turn or, with a chance of ``sft.teacher_forcing``, of a careful one in its place: so they learn what to do
with good work that the agent itself does not yet do.

A demonstration fits its agent's token limit and can be read, else it would teach what costs a penalty in RL. Where it
quotes too much for that, the quotes are cut (`demonstration`).

A language model can be the annotator instead, see `affect_rl.team.teacher`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from affect_rl.errors import AffectError
from affect_rl.evidence import CognitiveResult, Evidence, Exclusion, Group, Retrieve, Support
from affect_rl.sample import AffectSample
from affect_rl.seeds import derived_seed
from affect_rl.team.agent import Agent, Request
from affect_rl.team.board import Board
from affect_rl.team.episode import Generate, play_episode
from affect_rl.team.prompts import Prompts
from affect_rl.team.team import Team
from affect_rl.trajectory import Generation, Prompt, Trajectory

_ONE_EACH = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_ONE_EACH}]|[^\s{_ONE_EACH}]+")
"""A word; of Chinese and Japanese, which put no spaces between them, a character."""


@dataclass(frozen=True, slots=True)
class Annotator:
    """Plays any agent by rule. Answers are tokenised once, here, and never again.

    The tokens of a generation are the demonstration; its text is what the agents after it are shown. An `AffectError`
    names a sample of which an agent has none, see `demonstration`.
    """

    prompts: Prompts
    teacher_forcing: float = 0.0

    async def __call__(self, prompt: Prompt, request: Request) -> Generation:
        rng = random.Random(request.seed)
        careful = rng.random() < request.agent.settings.careful
        forced = rng.random() < self.teacher_forcing
        shown, tokens = demonstration(request.agent, request.board, self.prompts, careful=careful)
        if forced and not careful:
            shown, _ = demonstration(request.agent, request.board, self.prompts, careful=True)
        return Generation(tokens, (0.0,) * len(tokens), (0,) * len(tokens), shown, finished=True)


def demonstration(agent: Agent, board: Board, prompts: Prompts, *, careful: bool) -> tuple[str, tuple[int, ...]]:
    """What an agent demonstrates, and its tokens.

    If that is too long, or cannot be read, what it quotes is cut to the most words with which it fits and can be.

    Raises:
        AffectError: there is no such number of words.
    """
    limit, sample = agent.settings.tokens, board.sample
    for words in (None, *range(limit, 0, -1)):  # a word is a token at least
        text = agent.demonstrate(board if words is None else _cut(board, words), careful=careful)
        tokens = prompts.answer(text)
        problem = agent.read(text, board).problem
        if not problem and len(tokens) <= limit:
            return text, tokens
    fault = problem or f"it takes {len(tokens)} tokens; raise team.{agent.name}.tokens={limit}"
    raise AffectError(f"sample {sample.id}: the demonstration of {agent.name} is of no use: {fault}")


def _cut(board: Board, words: int) -> Board:
    """The board with at most so many words of each text that a demonstration may quote, and single spaces.

    Of the sample those at the front; of evidence those at the end, where its label is.
    """
    sample, front, end = board.sample, slice(words), slice(-words, None)
    seen = replace(sample, text=_words(sample.text, front), description=_words(sample.description, front))
    kept = {group: tuple(replace(e, text=_words(e.text, end)) for e in items) for group, items in board.kept.items()}
    return Board(seen, {**board.slots, "kept": kept})


def _words(text: str, some: slice) -> str:
    """Some words of a text, and what stands between them."""
    spans = [word.span() for word in _WORD.finditer(text)][some]
    return " ".join(text[spans[0][0] : spans[-1][1]].split()) if spans else ""


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Retrieval that answers with the same candidates in random order.

    In retrieval order a filter can imitate the annotator well without reading: the right candidate is mostly the first.
    """

    retrieve: Retrieve
    rng: random.Random

    async def cognitive(self, queries: Mapping[Group, str], k: int, exclusion: Exclusion) -> CognitiveResult:
        found = await self.retrieve.cognitive(queries, k, exclusion)
        return replace(found, groups={group: self._shuffled(items) for group, items in found.groups.items()})

    async def perceptual(self, audio: np.ndarray | None, video: np.ndarray | None, exclusion: Exclusion) -> Support:
        return await self.retrieve.perceptual(audio, video, exclusion)

    def _shuffled(self, items: tuple[Evidence, ...]) -> tuple[Evidence, ...]:
        return tuple(self.rng.sample(items, len(items)))


async def demonstrate(
    sample: AffectSample,
    team: Team,
    retrieve: Retrieve | None,
    prompts: Prompts,
    seed: int,
    *,
    shuffle: bool = False,
    teacher_forcing: float = 0.0,
) -> Trajectory:
    """One demonstrated episode of a labelled sample.

    Args:
        sample: what is to be understood.
        team: who plays.
        retrieve: the retrieval service; None is right for teams without retrieval.
        prompts: what prompts are built with.
        seed: of all that is drawn.
        shuffle: the candidates, for an agent that chooses among them; in a team without one the first ones are kept
            unread.
        teacher_forcing: chance that the agents after a turn by habit are shown a careful one.
    """
    annotator = Annotator(prompts, teacher_forcing)
    return await annotated(sample, team, annotator, retrieve, prompts, seed, shuffle=shuffle)


def demonstration_seed(seed: int, sample: AffectSample) -> int:
    """Seed of all that is drawn in the demonstration of a sample."""
    return derived_seed(seed, "demonstration", sample.id)


async def annotated(
    sample: AffectSample,
    team: Team,
    annotator: Generate,
    retrieve: Retrieve | None,
    prompts: Prompts,
    seed: int,
    *,
    shuffle: bool = False,
) -> Trajectory:
    """The episode that an annotator plays on a labelled sample; arguments as in `demonstrate`."""
    if retrieve and shuffle and any("kept" in agent.writes for agent in team.agents.values()):
        retrieve = Shuffled(retrieve, random.Random(derived_seed(seed, "shuffle")))
    return await play_episode(sample, team, annotator, retrieve, prompts, seed, bypasses=False)
