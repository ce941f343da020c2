"""A run's episodes: those of a step in a line each, and one in full."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from affect_rl.errors import AffectError
from affect_rl.experiments.report.episodes import answers, outcome, searches
from affect_rl.team.store import ADVANTAGES, read_episode, read_outlines, trajectory_files
from affect_rl.trajectory import FULL
from cluster.web.watch.text import TokenText

Show = Literal["all", "invalid", "wrong"]
SHOWN: Mapping[Show, Callable[[Mapping[str, Any]], bool]] = {
    "all": lambda episode: True,
    "invalid": lambda episode: any(turn["problem"] for turn in episode["turns"]),
    "wrong": lambda episode: episode["outcome"] in ("wrong", "invalid"),
}
"""Which episodes are listed: all, those in which an agent broke the format, those whose answer scores nothing."""


def stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written anew; zeros for one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def list_episodes(trajectories: Path, step: int | None, show: Show, offset: int, limit: int) -> dict[str, Any]:
    """A page of a step's episodes, and which steps there are.

    Args:
        trajectories: directory of the run's files.
        step: training step; None: the newest.
        show: which of its episodes.
        offset, limit: the page.

    Raises:
        AffectError: there are no episodes of this step.
    """
    files = trajectory_files(trajectories)
    if not files and step is None:
        return {"step": None, "episodes": [], "total": 0}
    step = next(reversed(files)) if step is None else step
    path = _file(files, step, trajectories)
    found = [episode for episode in _outlines(path, stamp(path)) if SHOWN[show](episode)]
    steps = list(files)
    place = steps.index(step)
    return {
        "step": step,
        "previous": steps[place - 1] if place else None,
        "next": steps[place + 1] if place + 1 < len(steps) else None,
        "newest": steps[-1],
        "total": len(found),
        "episodes": found[offset : offset + limit],
    }


def show_episode(trajectories: Path, step: int, row: int, tokens: TokenText) -> dict[str, Any]:
    """An episode in full.

    Args:
        trajectories: directory of the run's files.
        step, row: where the episode lies, as `list_episodes` has it.
        tokens: turns token ids into text.

    Raises:
        AffectError: there is no such episode.
    """
    found = read_episode(_file(trajectory_files(trajectories), step, trajectories), row)
    learned = found.get(ADVANTAGES.name) or [None] * len(found["turns"])
    return {
        "step": step,
        "row": row,
        "sample": found["sample_id"],
        "labels": found["labels"],
        "outcome": outcome(found["predicted"], found["scores"].get(FULL)),
        "answers": [asdict(answer) for answer in answers(found)],
        "searches": [asdict(search) for search in searches(found)],
        "neighbours": found["support_ids"],
        "degraded": found["degraded"],
        "turns": [_turn(turn, own, tokens) for turn, own in zip(found["turns"], learned, strict=True)],
    }


def _file(files: Mapping[int, Path], step: int, trajectories: Path) -> Path:
    if step not in files:
        raise AffectError(f"{trajectories}: no episodes of step {step}; runs have them with train.save_trajectories")
    return files[step]


@lru_cache(maxsize=4)
def _outlines(path: Path, stamp: tuple[int, int]) -> Sequence[Mapping[str, Any]]:
    """All of a file's episodes, a line each; `stamp` tells whether the file is still the same."""
    return [
        {
            "row": row,
            "sample": found["sample_id"],
            "labels": found["labels"],
            "predicted": found["predicted"],
            "score": found["scores"].get(FULL),
            "outcome": outcome(found["predicted"], found["scores"].get(FULL)),
            "turns": found["turns"],
        }
        for row, found in enumerate(read_outlines(path))
    ]


def _turn(turn: Mapping[str, Any], advantages: Sequence[float] | None, tokens: TokenText) -> dict[str, Any]:
    ids = turn["response_ids"]
    told = ("agent", "number", "text", "problem", "reward", "trained", "temperature", "logprobs", "weight_versions")
    return {name: turn[name] for name in told} | {
        "prompt": tokens.text(turn["prompt_ids"]),
        "prompt_tokens": len(turn["prompt_ids"]),
        "tokens": tokens.pieces(ids) or [f"[{token}]" for token in ids],
        "advantages": advantages,
    }
