"""SFT, training and evaluation as a submitted job, whose roles lie on different nodes."""

from __future__ import annotations

import json

import pytest
from conftest import MakeCluster
from harness import start_ray
from jobs import TRANSFERS, Jobs


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
