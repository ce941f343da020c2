"""Episodes as a reader goes through them: what was searched, found, kept, answered and rewarded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa

from affect_rl.evidence import GROUPS
from affect_rl.trajectory import FULL


@dataclass(frozen=True, slots=True)
class Answer:
    """What the team answered.

    Attributes:
        to: as played, or without whom.
        labels: predicted; none: no valid answer.
        score: of the labels, in [0, 1]; None if it was not recorded.
    """

    to: str
    labels: Sequence[str]
    score: float | None


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate and whether the filter kept it."""

    id: str
    text: str
    score: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Search:
    """A group's query and what it found, best first."""

    group: str
    query: str
    candidates: Sequence[Found]


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent's turn; `problem` tells how it broke the format, if it did."""

    name: str
    reward: float
    tokens: int
    text: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode.

    Attributes:
        arm, seed: of the policy.
        answers: the team's answer, then those without an agent that were played.
        searches: one a group; none without a planner.
        rationale: the generator's reason.
        agents: their turns, in order.
        neighbours: ids of the perceptual neighbours.
        degraded: a retrieval shard did not answer.
    """

    arm: str
    seed: int
    answers: Sequence[Answer]
    searches: Sequence[Search]
    rationale: str
    agents: Sequence[Agent]
    neighbours: Sequence[str]
    degraded: bool

    @property
    def verdict(self) -> str:
        """What became of it, see `outcome`."""
        return outcome(self.answers[0].labels, self.answers[0].score)


@dataclass(frozen=True, slots=True)
class Played:
    """A sample and its episodes.

    Attributes:
        sample: its id.
        text: what was said; empty if the file does not tell.
        labels: the true ones.
        episodes: under one arm after the other.
    """

    sample: str
    text: str
    labels: Sequence[str]
    episodes: Sequence[Episode]


def episodes_by_sample(table: pa.Table, most: int) -> list[Played]:
    """The first `most` episodes, those of one sample together, so that a reader can compare arms."""
    samples: dict[str, list[int]] = {}
    for row, sample in enumerate(table["sample_id"].to_pylist()):
        samples.setdefault(sample, []).append(row)
    order = [row for rows in samples.values() for row in rows][:most]
    rows = table.take(order).to_pylist(maps_as_pydicts="strict")
    return [_played(sample, list(found)) for sample, found in groupby(rows, key=lambda row: row["sample_id"])]


def _played(sample: str, rows: Sequence[Mapping[str, Any]]) -> Played:
    return Played(sample, rows[0].get("text") or "", rows[0]["labels"], [_episode(row) for row in rows])


def _episode(row: Mapping[str, Any]) -> Episode:
    return Episode(
        arm=row["arm"],
        seed=row["seed"],
        answers=answers(row),
        searches=searches(row),
        rationale=row["rationale"],
        agents=[
            Agent(turn["agent"], turn["reward"], len(turn["response_ids"]), turn["text"], turn["problem"])
            for turn in row["turns"]
        ],
        neighbours=row["support_ids"],
        degraded=row["degraded"],
    )


def answers(row: Mapping[str, Any]) -> list[Answer]:
    """The team's answer in a row of trajectories, then those without an agent that were played."""
    labels = {FULL: row["predicted"], **row["bypassed"]}
    return [Answer(_told(line), answer, row["scores"].get(line)) for line, answer in labels.items()]


def _told(line: str) -> str:
    return "as played" if line == FULL else f"without the {line}"


def outcome(labels: Sequence[str], score: float | None) -> str:
    """What became of an answer: ``right``, ``partly right``, ``wrong``, ``invalid`` or ``not scored``."""
    if not labels:
        return "invalid"
    if score is None:
        return "not scored"
    return "right" if score >= 1 else "partly right" if score > 0 else "wrong"


def searches(row: Mapping[str, Any]) -> list[Search]:
    """What a row of trajectories was searched for and found, by group."""
    kept = {(item["group"], item["id"]) for item in row["kept"]}
    found: dict[str, list[Found]] = {}
    for item in row["candidates"]:
        group = item["group"]
        candidate = Found(item["id"], item["text"], item["score"], (group, item["id"]) in kept)
        found.setdefault(group, []).append(candidate)
    groups = [group for group in GROUPS if group in row["queries"] or group in found]
    return [Search(group, row["queries"].get(group, ""), found.get(group, [])) for group in groups]
