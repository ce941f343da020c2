"""``affect-rl data`` on the command line."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from affect_rl.errors import AffectError
from cluster.cli.data import data_app

HEAVY = ("numpy", "pyarrow", "pydantic", "torch", "ray", "vllm", "affect_rl.data")


@pytest.fixture
def meld_root(tmp_path: Path) -> Path:
    """A copy of MELD's layout with one utterance a split and, in train, a second one with an unknown emotion."""
    header = ["Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID"]
    for split in ("train", "dev", "test"):
        rows = [["Fine, thanks.", "Ann", "joy", 0, 0]] + ([["Go!", "Bob", "rage", 0, 1]] if split == "train" else [])
        with (tmp_path / f"{split}_sent_emo.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    return tmp_path


def test_import_and_info(meld_root: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = CliRunner().invoke(data_app, ["import", "meld", "--root", str(meld_root), "--out", out, "--skip-bad"])
    assert result.exit_code == 0, result.output
    assert "1 train, 1 dev, 1 test" in result.output
    assert "left out 1 samples for 1 bad rows" in result.output
    assert "train_sent_emo.csv:3: Emotion 'rage' is unknown" in result.output
    result = CliRunner().invoke(data_app, ["info", out])
    assert result.exit_code == 0, result.output
    assert "meld (closed labels)" in result.output
    assert "1 (100 %)" in result.output


def test_bad_rows_stop_the_import(meld_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(data_app, ["import", "meld", "--root", str(meld_root), "--out", str(out)])
    assert isinstance(result.exception, AffectError)
    assert not out.exists()


@pytest.mark.parametrize("option", ["--seed", "--dev-share"])
def test_drawing_dev_clips_is_refused_where_none_are_drawn(option: str, tmp_path: Path) -> None:
    arguments = ["import", "sims", "--root", str(tmp_path), "--out", str(tmp_path / "out"), option, "0"]
    result = CliRunner().invoke(data_app, arguments)
    assert "sims: no dev split is drawn, which --seed and --dev-share are for; leave them out" in str(result.exception)


def test_the_module_imports_nothing_heavy() -> None:
    code = f"import sys, cluster.cli.data; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
