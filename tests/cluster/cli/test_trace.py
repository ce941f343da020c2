"""An episode as a person reads it, whoever played in it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from rich.console import Console

from affect_rl.errors import AffectError
from affect_rl.evidence import GROUPS, Evidence, Group
from affect_rl.team.store import write_trajectories
from affect_rl.trajectory import Generation, Output, Prompt, Trajectory, Turn
from cluster.cli.trace import find_episode, print_episode

AGENTS = ("planner", "filter", "debater", "generator")
TEAMS = [team for size in (1, 2, 3, 4) for team in combinations(AGENTS, size) if "generator" in team]
"""Every set of these that can play; without the generator nobody answers."""


def _episode(sample: str, team: tuple[str, ...] = AGENTS[:2] + AGENTS[3:], *, retrieval: bool = True) -> Trajectory:
    candidates: Mapping[Group, tuple[Evidence, ...]] = {
        group: tuple(Evidence(f"{group}-{n}", f"{group} voice {n}: joy", ("joy",), 0.9 - n / 10) for n in range(2))
        for group in GROUPS
        if retrieval
    }
    return Trajectory(
        sample_id=sample,
        labels=("joy",),
        turns=tuple(
            Turn(agent, Prompt((1, 2), ()), Generation((5, 6), (-0.1, -0.2), (4, 4), f"{agent} says", True), None)
            for agent in team
        ),
        queries={group: f"asked for {group}" for group in candidates},
        candidates=candidates,
        kept={group: items[:1] for group, items in candidates.items()},
        support_ids=("library-00017",) if retrieval else (),
        output=Output("reason: a soft voice\nlabel: joy", ("joy",), "a soft voice"),
        bypassed={"filter": Output("?")} if "filter" in team else {},
        scores={"full": 1.0, "filter": 0.0} if "filter" in team else {"full": 1.0},
    )


def _lines(run: Path) -> list[str]:
    """What `affect-rl trace` prints of a run's newest episode."""
    console = Console(file=io.StringIO(), width=100)
    file, episode = find_episode(run, None, None)
    print_episode(episode, file.stem, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def _place(lines: list[str], pattern: str) -> int:
    (place,) = [number for number, line in enumerate(lines) if re.search(pattern, line)]
    return place


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "trajectories").mkdir()
    return tmp_path


@pytest.mark.parametrize("team", TEAMS, ids="+".join)
def test_every_turn_that_was_played_is_there_and_the_candidates_before_the_filter(
    run: Path, team: tuple[str, ...]
) -> None:
    write_trajectories([_episode("a", team)], run / "trajectories" / "step-00001.parquet")
    lines = _lines(run)
    assert tuple(agent for agent in AGENTS if any(f"{agent} says" in line for line in lines)) == team
    shown = [f"{agent} says" for agent in team]
    shown.insert(team.index("filter") if "filter" in team else len(team) - 1, "query: asked for supportive")
    places = [_place(lines, text) for text in shown]
    assert places == sorted(places)
    assert any("without filter" in line for line in lines) == ("filter" in team)
    for group in GROUPS:
        assert re.search(r"yes +0\.900", lines[_place(lines, f"{group} voice 0")])
        assert "yes" not in lines[_place(lines, f"{group} voice 1")]


def test_each_turn_of_one_agent_is_there_and_a_sample_may_have_no_labels(run: Path) -> None:
    episode = _episode("a", ("planner", "planner", "filter", "generator"))
    turns = tuple(replace(turn, number=place) if place < 2 else turn for place, turn in enumerate(episode.turns))
    unknown = replace(episode, turns=turns, labels=(), scores={}, bypassed={})
    write_trajectories([unknown], run / "trajectories" / "step-00001.parquet")
    lines = _lines(run)
    assert sum("planner says" in line for line in lines) == 2
    assert not any("score " in line and "group" not in line for line in lines)
    assert [turn["number"] for turn in find_episode(run, None, None)[1]["turns"]] == [0, 1, 0, 0]


def test_an_episode_without_retrieval_is_an_answer_alone(run: Path) -> None:
    write_trajectories([_episode("a", ("generator",), retrieval=False)], run / "trajectories" / "step-00001.parquet")
    lines = _lines(run)
    assert any("generator says" in line for line in lines)
    assert not any("query:" in line for line in lines)


def test_an_episode_is_found_by_sample_and_step_and_else_the_newest(run: Path) -> None:
    for step, samples in ((1, "ab"), (2, "cd")):
        episodes = [_episode(sample) for sample in samples]
        write_trajectories(episodes, run / "trajectories" / f"step-{step:05d}.parquet")
    assert find_episode(run, None, None)[1]["sample_id"] == "c"
    assert find_episode(run, None, 1)[1]["sample_id"] == "a"
    file, episode = find_episode(run, "b", None)
    assert (file.stem, episode["sample_id"]) == ("step-00001", "b")
    with pytest.raises(AffectError, match=r"trajectories: no episode of sample b in step 2; look there for what"):
        find_episode(run, "b", 2)
