"""Trackers: what a resumed run keeps of its numbers, and services that are not there or fail."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from affect_rl.config.load import Config, load_config
from affect_rl.errors import AffectError
from cluster.watching.trackers import JsonlTracker, check_trackers, close_all, log_to, make_trackers


def _config(tmp_path: Path, *trackers: str) -> Config:
    config = load_config(None, [f"runs_dir={tmp_path}", f"tracking.trackers=[{','.join(trackers)}]"])
    config.run_dir.mkdir()
    return config


def test_a_resumed_run_drops_the_steps_that_it_does_again_and_a_line_that_was_cut_off(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        JsonlTracker(tmp_path, step - 1).log(step, {"loss": step / 2, "gap": float("nan")})
    file = tmp_path / "metrics.jsonl"
    with file.open("a") as lines:
        lines.write('{"step": 4, "lo')
    JsonlTracker(tmp_path, 2).log(3, {"loss": 7.0})
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in kept] == [(1, 0.5), (2, 1.0), (3, 7.0)]
    assert kept[0]["gap"] is None


def test_a_run_has_its_file_whatever_else_is_asked_for_and_a_stage_has_one_of_its_own(tmp_path: Path) -> None:
    config = _config(tmp_path, "tensorboard")
    for stage in ("", "sft"):
        trackers = make_trackers(config, stage=stage)
        log_to(trackers, 1, {"loss": 1.0})
        close_all(trackers)
    assert {path.name for path in config.run_dir.glob("*.jsonl")} == {"metrics.jsonl", "sft-metrics.jsonl"}
    assert len(list((config.run_dir / "tensorboard").rglob("events.*"))) == 2


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_tracker_whose_package_is_absent_is_refused_with_the_fix(tmp_path: Path, package: str) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(AffectError, match=f"pip install {package}"):
        check_trackers(_config(tmp_path, package))


def test_mlflow_goes_on_with_the_run_that_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is optional and not installed")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    config = _config(tmp_path, "mlflow")
    for step in (1, 2):
        trackers = make_trackers(config, step - 1)
        log_to(trackers, step, {"loss/policy": 1.0 / step, "gap": float("nan")})
        close_all(trackers)
    (run,) = mlflow.search_runs(experiment_names=["affect-rl"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss/policy")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]
    assert run.data.params["rollout.workers"] == "1" and "gap" not in run.data.metrics


def test_wandb_writes_without_a_network_and_a_failure_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is optional and not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = _config(tmp_path, "wandb")
    trackers = make_trackers(config)
    log_to(trackers, 1, {"loss/policy": 1.0})
    close_all(trackers)
    assert list((config.run_dir / "wandb").glob("offline-run-*"))
    monkeypatch.setenv("WANDB_MODE", "no such mode")
    trackers = make_trackers(config, 1)
    log_to(trackers, 2, {"loss/policy": 0.5})
    close_all(trackers)
    assert len((config.run_dir / "metrics.jsonl").read_text().splitlines()) == 2
