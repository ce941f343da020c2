"""Small jobs for a cluster of nodes, submitted as the README says, and what they leave behind."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Cluster, Node

from affect_rl.data.dataset import write_dataset
from affect_rl.data.synth import SynthSettings, synthesise

SETTINGS = [
    "model.context=320", "model.tiny.layers=2", "model.tiny.dim=64", "model.tiny.heads=2", "model.tiny.vocabulary=600",
    "model.fusion.dim=32", "episode.k=2", "retrieval.shards=2", "retrieval.shard_timeout_s=3",
    "retrieval.deadline_s=30",
    "sft.workers=2", "sft.steps=60", "sft.batch_samples=16", "sft.lr=4e-3", "sft.prompt_weight=1", "sft.threads=1",
    "learner.workers=2", "learner.lr=1e-3", "learner.threads=1", "learner.deadline_s=120",
    "rollout.workers=2", "rollout.threads=1", "rollout.kv_cache_gib=0.1", "rollout.deadline_s=120",
    "train.samples_per_step=16", "train.eval_every=2", "train.checkpoint_every=1", "train.verify_sync=true",
    "evaluate.resamples=100",
]  # fmt: skip
ROLES = {
    "engine": "RolloutWorker", "learner": "LearnerWorker", "shard": "IndexShard", "frontend": "RetrievalFrontend"
}  # fmt: skip
TRANSFERS = ("file", "collective")
"""Ways from learner to engines."""
_CLOCK = re.compile(r"time|.*_s$")


@dataclass
class Job:
    """A submitted job.

    Attributes:
        process: ``ray job submit``, which ends with it.
        log: what it printed so far.
    """

    process: subprocess.Popen[str]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, timeout: float = 420) -> bool:
        """Whether it succeeded."""
        return self.process.wait(timeout) == 0


@dataclass
class Jobs:
    """Jobs of one cluster on a small synthetic dataset.

    Attributes:
        cluster: they run on; its Ray must run.
        settings: overrides of all jobs.
    """

    cluster: Cluster
    settings: list[str]

    @classmethod
    def on(cls, cluster: Cluster, *more: str) -> Jobs:
        """Write the dataset; `more` are settings of all jobs."""
        disk = cluster.seen(cluster.runs)
        (disk / "job.yaml").write_text("")
        samples = synthesise(SynthSettings(train=48, dev=8, test=16, expressions=30))
        write_dataset(disk / "synth", samples, name="synth")
        paths = [f"data.dir={cluster.runs}/synth", f"runs_dir={cluster.runs}/runs"]
        return cls(cluster, [*SETTINGS, *paths, *more])

    def start(self, command: str, name: str, *more: str) -> Job:
        """Submit ``affect-rl <command>``; options stand among `more`."""
        log = self.cluster.folder / f"{name}.log"
        line = ["affect-rl", command, f"{self.cluster.runs}/job.yaml", *self.settings, f"name={name}", *more]
        return Job(self.cluster.submit(*line, log=log), log)

    def run_dir(self, name: str) -> Path:
        """A run's directory, seen from outside."""
        return self.cluster.seen(self.cluster.runs / "runs" / name)

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """Lines of the run's ``metrics.jsonl`` that are whole."""
        path = self.run_dir(name) / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def numbers(self, name: str) -> list[dict[str, Any]]:
        """The metrics that depend neither on the clock nor on what was played twice, nor on how busy engines were.

        An engine that plays twice counts the steps of both, and its use of the cache is a mean over them.
        """
        skip = {
            "learner/tokens_per_s", "counts/replayed", "counts/learners_lost", "engine/steps", "engine/kv_cache_use",
        }  # fmt: skip
        return [
            {key: value for key, value in line.items() if not _CLOCK.match(key) and key not in skip}
            for line in self.metrics(name)
        ]

    def actors(self, role: str) -> list[tuple[Node, int]]:
        """Node and process of each actor of a role that lives; asked of the nodes themselves, for Ray takes seconds."""
        title = f"ray::{ROLES[role]}"
        return [(node, process) for node in self.cluster.nodes for process in node.processes(title)]

    def places(self, role: str) -> set[int]:
        """Numbers of the nodes on which actors of a role are or were, as Ray knows them."""
        nodes = {node["node_id"]: node["node_ip"] for node in self.cluster.state("nodes")}
        number = {node.address: node.number for node in self.cluster.nodes}
        actors = [actor for actor in self.cluster.state("actors") if actor["class_name"] == ROLES[role]]
        return {number[nodes[actor["node_id"]]] for actor in actors if actor["node_id"] in nodes}

    def drivers(self) -> list[int]:
        """Processes of ``affect-rl`` on the head."""
        return self.cluster.head.processes("bin/affect-rl")
