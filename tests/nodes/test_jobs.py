"""Submitted jobs whose actors lie on different nodes: SFT, training and evaluation; and sweeps."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
import yaml
from conftest import MakeCluster
from harness import start_ray, wait_for
from jobs import SETTINGS, TRANSFERS, Job, Jobs

from affect_rl.experiments.sweep_results import SweepResults
from cluster.watching.trackers import logged


@pytest.mark.nodes
@pytest.mark.parametrize("debian_names", [False, True], ids=["names", "127.0.1.1"])
@pytest.mark.parametrize("transfer", TRANSFERS)
def test_a_job_runs_on_several_nodes(new_cluster: MakeCluster, transfer: str, debian_names: bool) -> None:
    cluster = new_cluster((0, 3, 3, 3), debian_names=debian_names)
    start_ray(cluster)
    jobs = Jobs.on(cluster, f"rollout.transfer={transfer}")
    job = jobs.start("quickstart", "whole", "train.steps=2")
    assert job.wait(540), job.said[-5000:]
    training = jobs.places("engine") | jobs.places("learner")
    assert len(training) == 2, "two engines and two learners, three to a node"
    assert len(jobs.places("shard") | training) == 3, "the driver is on the head, which has no CPU to give"
    metrics = jobs.metrics("whole")
    assert [line["counts/episodes"] for line in metrics] == [16, 32]
    assert all(line["logprob_gap/max"] < 1e-4 for line in metrics)
    assert len((jobs.run_dir("whole") / "sft-metrics.jsonl").read_text().splitlines()) == 60
    assert json.loads((jobs.run_dir("whole") / "evaluation" / "evaluation.json").read_text())["samples"] == 16


@pytest.mark.nodes
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "trials, scheduler",
    [(8, {"name": "asha", "grace_steps": 2}), (4, {"name": "pbt", "perturb_every": 2})],
    ids=["asha", "pbt"],
)
def test_a_sweep_that_is_killed_goes_on(new_cluster: MakeCluster, trials: int, scheduler: dict[str, Any]) -> None:
    cluster = new_cluster()
    start_ray(cluster)
    jobs = Jobs.on(cluster)
    disk, name = cluster.seen(cluster.runs), scheduler["name"]
    alone = ["rollout.workers=1", "learner.workers=1", "sft.workers=1", "retrieval.shards=1", "train.steps=6"]
    sweep = {
        "name": name, "config": f"{cluster.runs}/job.yaml", "space": {"learner.lr": {"loguniform": [1e-4, 1e-2]}},
        "trials": trials, "concurrent": 2, "scheduler": scheduler,
    }  # fmt: skip
    (disk / f"{name}.yaml").write_text(yaml.safe_dump(sweep))

    def start(log: str) -> Job:
        line = ["affect-rl", "sweep", f"{cluster.runs}/{name}.yaml", "--out", f"{cluster.runs}/{name}"]
        own = ("learner.lr", "train.checkpoint_every")  # what the sweep says itself: a trial has one with each score
        settings = [each for each in SETTINGS if not each.startswith(own)]
        settings += [f"data.dir={cluster.runs}/synth", "train.keep_checkpoints=9", *alone]
        path = cluster.folder / log
        return Job(cluster.submit(*line, *settings, log=path), path)

    def lines() -> dict[str, list[dict[str, Any]]]:
        return {file.parent.name: list(logged(file)) for file in (disk / name / "runs").glob("trial-*/metrics.jsonl")}

    job = start("killed.log")
    wait_for(lambda: any(len(trial) >= 3 for trial in lines().values()) or not job.running, 600, "a trial's third step")
    assert job.running, job.said[-5000:]
    for process in jobs.drivers():
        cluster.head.signal(process, signal.SIGKILL)
    assert not job.wait()
    again = start("again.log")
    assert again.wait(900), again.said[-5000:]
    results = SweepResults.read(disk / name)
    assert len(results.trials) == trials and {trial.name for trial in results.trials} == set(lines())
    assert len(jobs.places("engine")) > 1, "trials lie on several nodes"
    for trial in lines().values():
        steps = [line["step"] for line in trial]
        assert steps == list(range(1, len(steps) + 1)), "no step twice, none left out"
    assert results.best["dev"][results.metric].value == pytest.approx(results.trials[0].score)
