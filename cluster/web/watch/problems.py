"""Answers that could not be read: how many, why, when, and an example of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from affect_rl.errors import AffectError
from affect_rl.team.store import read_outlines, trajectory_files
from cluster.web.watch.episodes import stamp

AT_ONCE = 100
"""Files that are read for one question at most: a page asks again, and shows meanwhile what is known."""

MOST = 30
"""Reasons of an agent that are told apart; the rarer ones are put together."""

BARS = 60
"""Intervals of steps that a reason is counted in, at most."""


@dataclass(frozen=True)
class StepProblems:
    """What one file says.

    Attributes:
        stamp: of the file, see `stamp`.
        turns: answers by agent.
        problems: how often each agent's answer had each problem.
        examples: the first row with it.
    """

    stamp: tuple[int, int]
    turns: Counter[str] = field(default_factory=Counter)
    problems: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], int] = field(default_factory=dict)


class ProblemCounts:
    """Counts over all steps of a run; a file is read once, and again when it was written anew.

    Args:
        trajectories: directory of the run's files.
    """

    def __init__(self, trajectories: Path) -> None:
        self._trajectories = trajectories
        self._steps: dict[int, StepProblems] = {}

    def refresh(self) -> int:
        """Read files that are new, newest first, at most `AT_ONCE`; returns how many are left."""
        files = trajectory_files(self._trajectories)
        for step in self._steps.keys() - files.keys():
            del self._steps[step]
        stamps = {step: stamp(path) for step, path in files.items()}
        fresh = [step for step in reversed(files) if step not in self._steps or self._steps[step].stamp != stamps[step]]
        for step in fresh[:AT_ONCE]:
            self._steps[step] = _count(files[step], stamps[step])
        return len(fresh[AT_ONCE:])

    def report(self) -> dict[str, Any]:
        """What the page shows: by agent its answers and its reasons, the most frequent first."""
        steps = sorted(self._steps)
        turns, problems = Counter[str](), Counter[tuple[str, str]]()
        for found in self._steps.values():
            turns.update(found.turns)
            problems.update(found.problems)
        edges = [steps[len(steps) * n // BARS] for n in range(BARS)] if len(steps) > BARS else steps
        told: dict[str, Any] = {agent: {"turns": count, "invalid": 0, "reasons": []} for agent, count in turns.items()}
        for (agent, problem), count in problems.most_common():
            own = told[agent]
            own["invalid"] += count
            if len(own["reasons"]) < MOST:
                own["reasons"].append(self._reason(agent, problem, count, edges))
        return {"steps": len(steps), "edges": edges, "last": steps[-1] if steps else None, "agents": told}

    def _reason(self, agent: str, problem: str, count: int, edges: list[int]) -> dict[str, Any]:
        key = agent, problem
        counts, examples, bar = [0] * len(edges), [], 0
        for step in sorted(self._steps):
            while bar + 1 < len(edges) and step >= edges[bar + 1]:
                bar += 1
            found = self._steps[step]
            counts[bar] += found.problems[key]
            if key in found.examples:
                examples.append({"step": step, "row": found.examples[key]})
        return {"problem": problem, "count": count, "counts": counts, "examples": examples[-3:]}


def _count(path: Path, stamped: tuple[int, int]) -> StepProblems:
    """What a file says; nothing, if it was deleted meanwhile or is damaged."""
    found = StepProblems(stamped)
    try:
        outlines = read_outlines(path)
    except AffectError:
        return found
    for row, episode in enumerate(outlines):
        for turn in episode["turns"]:
            found.turns[turn["agent"]] += 1
            if turn["problem"]:
                key = turn["agent"], turn["problem"]
                found.problems[key] += 1
                found.examples.setdefault(key, row)
    return found
