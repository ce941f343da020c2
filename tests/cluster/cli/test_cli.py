"""The command line: quick to answer, and a mistake is one message with exit status 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = [sys.executable, "-m", "cluster.cli.main"]
HEAVY = ("torch", "ray", "vllm", "deepspeed", "faiss", "transformers", "pyarrow", "numpy", "pydantic")


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MODULE, *args], capture_output=True, text=True, timeout=120)


def test_help_imports_nothing_heavy() -> None:
    code = f"import sys, cluster.cli.main; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_help_lists_the_commands() -> None:
    text = _run("--help").stdout
    assert all(
        name in text
        for name in ("data", "sft", "train", "eval", "quickstart", "run", "cascade", "trace", "watch", "config")
    )


def test_config_prints_everything_and_the_arithmetic() -> None:
    result = _run("config", "configs/quickstart.yaml", "train.samples_per_step=32")
    assert result.returncode == 0
    assert "samples_per_step: 32" in result.stdout
    assert "a step: 32 episodes, turns of 3 agent(s)" in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("config", "configs/quickstart.yaml", "train.stepz=3"), "unknown key `train.stepz`; did you mean `steps`?"),
        (("config", "absent.yaml"), "absent.yaml: cannot be read"),
        (("train", "configs/quickstart.yaml", "data.dir=absent"), "absent"),
        (("experiment", "configs/experiments/rag.yaml", "evaluate.wheels=absent"), "absent: is not a directory; give"),
        (("trace", "absent"), "no episode"),
        (("watch", "absent"), "absent: no run (it has no config.yaml); name a directory under runs/"),
        (("data", "info", "absent"), "absent"),
    ],
)
def test_a_mistake_is_one_message(args: tuple[str, ...], message: str) -> None:
    result = _run(*args)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_data_synth_writes_a_dataset(tmp_path: Path) -> None:
    out = tmp_path / "world"
    result = _run(
        "data", "synth", "--out", str(out), "--train", "10", "--dev", "5", "--test", "5", "--expressions", "20"
    )
    assert result.returncode == 0
    assert (out / "dataset.json").exists()
