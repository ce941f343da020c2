"""Sweeps with real Ray Tune on real engines: killed in the middle and resumed; and a population that exchanges."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from affect_rl.data.dataset import write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.experiments.sweep_results import PAGE, SweepResults

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LR = {"learner.lr": {"loguniform": [1e-4, 1e-2]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_dataset(folder / "synth", synthesise(SynthSettings(train=24, dev=4, test=8, expressions=20)), name="synth")
    (folder / "base.yaml").write_text("")
    return folder


def write(folder: Path, name: str, steps: int, **sweep: Any) -> Path:
    overrides = {
        "data.dir": str(folder / "synth"), "model.context": 320, "model.tiny.layers": 2, "model.tiny.dim": 64,
        "model.tiny.heads": 2, "model.tiny.vocabulary": 600, "model.fusion.dim": 32, "episode.k": 2, "sft.steps": 10,
        "sft.batch_samples": 8, "sft.threads": 1, "learner.threads": 1, "rollout.threads": 1,
        "rollout.kv_cache_gib": 0.1, "retrieval.shards": 1, "train.steps": steps, "train.samples_per_step": 8,
        "train.eval_every": 2, "train.keep_checkpoints": 20, "evaluate.resamples": 50, "cluster.dashboard": False,
    }  # fmt: skip
    tree = {"name": name, "config": str(folder / "base.yaml"), "overrides": overrides, "space": LR, **sweep}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return folder / name


def run(out: Path, until: Callable[[], bool] | None = None) -> str:
    """``affect-rl sweep``, killed once `until` is true."""
    command = [sys.executable, "-m", "cluster.cli.main", "sweep", f"{out}.yaml", "--out", str(out)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    log = out.with_suffix(".log")
    with log.open("w") as file, subprocess.Popen(
        command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    ) as process:  # fmt: skip
        while until and process.poll() is None and not until():
            time.sleep(0.2)
        if until:
            assert process.poll() is None, log.read_text()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            assert process.wait() == 0, log.read_text()
    return " ".join(log.read_text().split())  # rich breaks lines where the console ends


def weights(checkpoint: Path) -> dict[str, bytes]:
    """Its files of tensors."""
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*.safetensors")}


def lines(out: Path) -> dict[str, list[int]]:
    """Steps of each trial's ``metrics.jsonl``."""
    files = sorted((out / "runs").glob("trial-*/metrics.jsonl"))
    return {f.parent.name: [json.loads(line)["step"] for line in f.read_text().splitlines()] for f in files}


def test_a_sweep_that_is_killed_goes_on(folder: Path) -> None:
    out = write(folder, "asha", 4, trials=3, scheduler={"name": "asha", "grace_steps": 2})
    run(out, until=lambda: any(2 in steps for steps in lines(out).values()) and any(out.glob("tune/experiment_state*")))
    before = lines(out)
    assert "goes on" in run(out)
    after = lines(out)
    assert set(before) <= set(after) and len(after) == 3
    assert all(steps == list(range(1, len(steps) + 1)) for steps in after.values()), "no step twice, none left out"
    results = SweepResults.read(out)
    assert {trial.name for trial in results.trials} == set(after)
    assert len({trial.settings["learner.lr"] for trial in results.trials}) == 3
    assert any(trial.state == "finished" and trial.steps == 4 for trial in results.trials)
    assert results.trials[0].score == max(trial.score for trial in results.trials)
    best = results.best["dev"][results.metric]
    assert best.value == pytest.approx(results.trials[0].score) and best.low <= best.value <= best.high
    assert len(list((out / "runs").glob("sft-*"))) == 1, "one warm start for all"
    assert "Weighted F1 on dev" in (out / PAGE).read_text()


def test_a_population_hands_on_its_checkpoints(folder: Path) -> None:
    # Tune exchanges when a trial reports and the better one has, an exchange before. There are three before the end,
    # for one trial may start many steps after the other.
    scheduler = {"name": "pbt", "perturb_every": 6, "quantile": 0.5}
    out = write(folder, "pbt", 20, trials=2, concurrent=2, scheduler=scheduler)
    run(out)
    results = SweepResults.read(out)
    assert [trial.steps for trial in results.trials] == [20, 20]
    one, other = (out / "runs" / trial.name / "checkpoints" for trial in results.trials)
    both = {path.name for path in one.iterdir()} & {path.name for path in other.iterdir()}
    handed_on = [step for step in both if weights(one / step) == weights(other / step)]
    assert handed_on and "step-00020" not in handed_on, "the clone has trained with its own settings"
    assert max(trial.best_step for trial in results.trials) > int(max(handed_on).removeprefix("step-"))
    rates = {trial.name: trial.settings["learner.lr"] for trial in results.trials}
    assert len(set(rates.values())) == 2, "what was taken over was perturbed"
