"""Files of trajectories: what is read of them, and what they say of a turn's tokens."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from affect_rl.errors import AffectError
from affect_rl.team.store import (
    ROW_GROUP,
    read_episode,
    read_outlines,
    read_trajectories,
    trajectory_files,
    trajectory_table,
    write_trajectories,
)
from affect_rl.trajectory import Generation, Output, Prompt, Trajectory, Turn


def _episode(sample: str, *agents: str) -> Trajectory:
    generation = Generation((5, 6), (-0.1, -0.2), (4, 4), "said", True)
    turns = tuple(
        Turn(agent, Prompt((1,), ()), generation, None, agents[:n].count(agent)) for n, agent in enumerate(agents)
    )
    return Trajectory(sample, ("joy",), turns, Output("joy", ("joy",)), scores={"full": 1.0})


def test_advantages_stand_beside_their_turns_and_a_file_without_them_can_be_read(tmp_path: Path) -> None:
    episodes = [_episode("a", "planner", "planner"), _episode("b", "planner", "generator")]
    file = tmp_path / "step-00001.parquet"
    write_trajectories(episodes, file, {(0, "planner", 1): [0.5, 1.0], (1, "planner", 0): [-1.0, 0.0]})
    rows = read_trajectories(file)
    assert [row["advantages"] for row in rows] == [[None, [0.5, 1.0]], [[-1.0, 0.0], None]]
    pq.write_table(trajectory_table(episodes), file)
    assert [row["advantages"] for row in read_trajectories(file)] == [None, None]


def test_an_episode_is_read_by_its_number_and_outlines_without_tokens(tmp_path: Path) -> None:
    episodes = [_episode(f"s{n}", "planner") for n in range(ROW_GROUP + 2)]
    file = tmp_path / "step-00001.parquet"
    write_trajectories(episodes, file)
    assert pq.ParquetFile(file).num_row_groups == 2
    for row in (0, ROW_GROUP - 1, ROW_GROUP, ROW_GROUP + 1):
        assert read_episode(file, row) == read_trajectories(file)[row]
    outline = read_outlines(file)[-1]
    assert outline["sample_id"] == episodes[-1].sample_id and outline["scores"] == {"full": 1.0}
    assert outline["turns"] == [{"agent": "planner", "number": 0, "problem": None, "reward": 0.0}]
    for row in (-1, ROW_GROUP + 2):
        with pytest.raises(AffectError, match=rf"has no episode {row}; it has {ROW_GROUP + 2}, numbered from 0"):
            read_episode(file, row)


def test_files_are_found_by_step_and_nothing_else_is(tmp_path: Path) -> None:
    assert trajectory_files(tmp_path / "absent") == {}
    for name in ("step-100000.parquet", "step-00002.parquet", "step-00002.parquet.partial", "step-x.parquet"):
        (tmp_path / name).touch()
    assert [*trajectory_files(tmp_path)] == [2, 100_000]
    for read in (read_outlines, lambda path: read_episode(path, 0)):
        with pytest.raises(AffectError, match=r"step-00002\.parquet: not a file of trajectories"):
            read(tmp_path / "step-00002.parquet")
        with pytest.raises(AffectError, match=r"step-00009\.parquet: no such file"):
            read(tmp_path / "step-00009.parquet")
