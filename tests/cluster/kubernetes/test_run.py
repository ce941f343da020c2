"""Which commands ``run.sh`` runs, by what a run has left behind. The command is a script that notes its arguments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "cluster" / "kubernetes" / "run.sh"
WRITES = {"sft": "sft", "train": "policy", "eval": "evaluation"}


@pytest.fixture
def affect_rl(tmp_path: Path) -> Path:
    """The command, which finishes each stage unless ``STOPPED`` names it."""
    command = tmp_path / "bin" / "affect-rl"
    command.parent.mkdir()
    made = "\n".join(
        f'{stage}) [[ ${{STOPPED:-}} == {stage} ]] || mkdir "$RUN/{made}" ;;' for stage, made in WRITES.items()
    )
    command.write_text(f'#!/usr/bin/env bash\necho "$*" >> "$CALLS"\ncase $1 in\n{made}\nesac\n')
    command.chmod(0o755)
    return command


def run(tmp_path: Path, affect_rl: Path, *, stopped: str = "") -> tuple[int, list[str]]:
    """Exit status and the arguments of each call."""
    calls, directory = tmp_path / "calls", tmp_path / "runs" / "mine"
    directory.mkdir(parents=True, exist_ok=True)
    calls.write_text("")
    path = f"{affect_rl.parent}:{os.environ['PATH']}"
    variables = os.environ | {"PATH": path, "RUN": str(directory), "CALLS": str(calls), "STOPPED": stopped}
    done = subprocess.run([SCRIPT, directory, "some.yaml", "seed=1"], env=variables, check=False)
    job = f"some.yaml runs_dir={directory.parent} name=mine seed=1"
    return done.returncode, [line.replace(job, "JOB") for line in calls.read_text().splitlines()]


def test_a_new_run_goes_through_all_stages(tmp_path: Path, affect_rl: Path) -> None:
    assert run(tmp_path, affect_rl) == (0, ["sft JOB --resume", "train JOB", "eval JOB"])


def test_a_training_that_was_cut_off_is_resumed(tmp_path: Path, affect_rl: Path) -> None:
    (tmp_path / "runs" / "mine" / "sft").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "checkpoints").mkdir()
    assert run(tmp_path, affect_rl) == (0, ["train JOB --resume", "eval JOB"])


def test_a_training_that_was_stopped_is_not_evaluated_and_asks_for_another_attempt(
    tmp_path: Path, affect_rl: Path
) -> None:
    assert run(tmp_path, affect_rl, stopped="train") == (75, ["sft JOB --resume", "train JOB"])


def test_nothing_is_done_twice(tmp_path: Path, affect_rl: Path) -> None:
    run(tmp_path, affect_rl)
    (tmp_path / "runs" / "mine" / "evaluation" / "evaluation.json").touch()
    assert run(tmp_path, affect_rl) == (0, [])


def test_it_says_how_it_is_called(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage: run.sh RUN_DIR CONFIG" in done.stderr
