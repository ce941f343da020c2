"""Prints one episode so that a person can follow it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from affect_rl.errors import AffectError
from affect_rl.experiments.report.episodes import searches
from affect_rl.team.store import read_trajectories, trajectory_files
from affect_rl.trajectory import FULL


def find_episode(run_dir: Path, sample_id: str | None, step: int | None) -> tuple[Path, Mapping[str, Any]]:
    """The newest episode of a sample, or of a step, or of all.

    Raises:
        AffectError: there is none.
    """
    files = trajectory_files(run_dir / "trajectories")
    for file in [file for number, file in reversed(files.items()) if step in (None, number)]:
        if rows := read_trajectories(file, sample_id):
            return file, rows[0]
    wanted = " ".join(
        filter(None, [f"of sample {sample_id}" if sample_id else "", f"in step {step}" if step is not None else ""])
    )
    raise AffectError(
        f"{run_dir / 'trajectories'}: no episode {wanted}".rstrip() + "; look there for what has been played"
    )


def print_episode(episode: Mapping[str, Any], title: str, console: Console) -> None:
    """Print the outcome, the turns of the agents that played and, where there are any, the candidates."""
    turns = episode["turns"]
    blocks: list[Any] = [_outcome(episode), *map(_turn, turns)]
    if episode["candidates"]:  # ahead of whoever chooses from them, or reads what retrieval order chose
        names = [turn["agent"] for turn in turns]
        blocks.insert(1 + (names.index("filter") if "filter" in names else len(names) - 1), _candidates(episode))
    console.print(Panel(Group(*blocks), title=title, expand=True))


def _outcome(episode: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("true", ", ".join(episode["labels"]))
    for line, labels in {FULL: episode["predicted"], **episode["bypassed"]}.items():
        score = f"  (score {episode['scores'][line]:.2f})" if line in episode["scores"] else ""
        table.add_row("predicted" if line == FULL else f"without {line}", _labels(labels) + score)
    table.add_row("neighbours", ", ".join(episode["support_ids"]) or "none")
    if episode["degraded"]:
        table.add_row("degraded", "a retrieval shard did not answer")
    return table


def _turn(turn: Mapping[str, Any]) -> Panel:
    versions = sorted(set(turn["weight_versions"]))
    title = f"{turn['agent']}  reward {turn['reward']:+.2f}  {len(turn['response_ids'])} tokens  weights {versions}"
    text = Text(turn["text"] or "(nothing)")
    if turn["problem"]:
        text.append(f"\n{turn['problem']}", style="red")
    return Panel(text, title=title, title_align="left")


def _candidates(episode: Mapping[str, Any]) -> Table:
    table = Table("group", "kept", "score", "evidence", expand=True, box=None)
    for search in searches(episode):
        table.add_row(search.group, "", "", Text(f"query: {search.query}", style="dim"))
        for found in search.candidates:
            table.add_row("", "yes" if found.kept else "", f"{found.score:.3f}", Text(found.text))
    return table


def _labels(labels: list[str]) -> str:
    return ", ".join(labels) or "no valid answer"
