"""``affect-rl plan``: tables, a verdict and an exit status, and nothing is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray
from typer.testing import CliRunner

from affect_rl.errors import AffectError
from cluster.cli.main import app


def test_a_small_job_fits_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = ray.is_initialized()
    result = CliRunner().invoke(app, ["plan", "configs/quickstart.yaml", "data.dir=absent"])
    assert result.exit_code == 0
    assert "absent is not here, so features count as 1024 wide" in result.stdout
    assert result.stdout.rstrip().endswith("It fits.")
    for name in ("sft worker", "learner", "engine", "KV cache", "optimiser", "checkpoints", "published weights"):
        assert name in result.stdout
    assert ray.is_initialized() == before


def test_what_is_missing_is_said_with_status_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    published = tmp_path / "config.json"
    published.write_text(
        json.dumps({"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2})
    )
    call = ["plan", "configs/gpu.yaml", "rollout.workers=999", "--model-config", str(published), "--gpu-memory", "24"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 1
    assert "Does not fit: train needs 1003 GPUs (999 x 1 for each engine, 4 x 1 for each learner)" in result.stdout
    assert "24.00 (GPU)" in result.stdout


def test_a_cluster_that_does_not_answer_is_named() -> None:
    with pytest.raises(AffectError, match=r"--address http://127\.0\.0\.1:9: no answer from a Ray cluster"):
        CliRunner().invoke(
            app, ["plan", "configs/quickstart.yaml", "--address", "http://127.0.0.1:9"], catch_exceptions=False
        )
