"""What becomes of a training when something fails on a cluster: one row a fault, one JSON line a row.

Every run ends with each sample counted once, or stops and goes on with ``--resume`` to the numbers of a run that
nothing disturbed. The lines go to the file that CHAOS_RESULTS names, and to the output.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeCluster
from harness import Node, start_ray, wait_for
from jobs import ROLES, Job, Jobs

pytestmark = pytest.mark.nodes

STEPS, SAMPLES = 6, 16
PATIENCE_S = 480
PAUSE_S = 20
NOTICE = re.compile(r"WARNING|going on without|[Ee]rror|died|did not answer|failed|Killed")

KILL, STOP, PAUSE = "SIGKILL", "SIGSTOP", "SIGSTOP, then SIGCONT"
RAYLET, CUT, SLOW, FULL = "raylet killed", "link cut", "200 ms and 5 % loss", "full disk"
CASES = [
    *((role, fault) for role in ("engine", "shard", "frontend", "learner") for fault in (KILL, STOP)),
    ("driver", KILL),
    ("driver", PAUSE),
    *((f"node of the {role}", fault) for role in ("learner", "shard") for fault in (RAYLET, CUT)),
    ("node of the learner", SLOW),
    ("weights", FULL),
    ("runs", FULL),
]
CHANGES_NUMBERS = {"shard", "node of the shard"}
"""While a shard is away episodes find less, so a run that does not stop learns from other evidence."""


@dataclass
class World:
    """A cluster and the numbers of a run that nothing disturbed; all others start from its warm start."""

    jobs: Jobs
    undisturbed: list[dict[str, Any]]

    def train(self, name: str, *more: str) -> Job:
        start = f"policy={self.jobs.cluster.runs}/runs/undisturbed/sft"
        weights = f"rollout.weights_dir={self.jobs.cluster.weights}"
        return self.jobs.start("train", name, start, weights, f"train.steps={STEPS}", *more)


@pytest.fixture(scope="module")
def world(new_cluster: MakeCluster) -> World:
    cluster = new_cluster()
    start_ray(cluster)
    jobs = Jobs.on(cluster)
    job = jobs.start("quickstart", "undisturbed", f"rollout.weights_dir={cluster.weights}", f"train.steps={STEPS}")
    assert job.wait(), job.said[-5000:]
    return World(jobs, jobs.numbers("undisturbed"))


# -- faults: each is a context, whose end puts right what a person would have to ------------------------------


@contextmanager
def signalled(world: World, role: str, fault: str) -> Iterator[None]:
    """A signal to the first actor of a role, or to the driver; a stopped process stays so if nobody kills it."""
    head = world.jobs.cluster.head
    victims = [(head, pid) for pid in world.jobs.drivers()] if role == "driver" else world.jobs.actors(role)
    node, process = victims[0]
    node.signal(process, getattr(signal, fault.split(",")[0]))
    if fault == PAUSE:
        time.sleep(PAUSE_S)
        node.signal(process, signal.SIGCONT)
    try:
        yield
    finally:
        if role != "driver" and process in node.processes("ray::", ROLES[role]):
            node.signal(process, signal.SIGKILL)


@contextmanager
def lost_node(world: World, role: str, fault: str) -> Iterator[None]:
    """A worker node without Ray, or without its cable; afterwards it joins again."""
    node = _node(world, role)
    if fault == CUT:
        node.cut()
    else:
        node.kill_raylet()
    try:
        yield
    finally:
        node.mend()
        node.stop_ray()
        node.start_ray()


@contextmanager
def slow_link(world: World, role: str, fault: str) -> Iterator[None]:
    with _node(world, role).delay(200, 0.05):
        yield


@contextmanager
def full_disk(world: World, role: str, fault: str) -> Iterator[None]:
    with world.jobs.cluster.full(getattr(world.jobs.cluster, role)):
        yield


FAULTS: dict[str, Callable[[World, str, str], AbstractContextManager[None]]] = {
    KILL: signalled, STOP: signalled, PAUSE: signalled, RAYLET: lost_node, CUT: lost_node, SLOW: slow_link,
    FULL: full_disk,
}  # fmt: skip


def _node(world: World, role: str) -> Node:
    """Shards and frontend fill one node, engines and learners another, and the third has room for what a lost one held.

    `role`: ``node of the <role>``.
    """
    return world.jobs.actors(role.split()[-1])[0][0]


# -- the test ---------------------------------------------------------------------------------------------


@pytest.mark.timeout(2 * PATIENCE_S + 300)
@pytest.mark.parametrize("role, fault", CASES)
def test_no_sample_is_lost_or_counted_twice(world: World, role: str, fault: str) -> None:
    jobs, name = world.jobs, re.sub(r"\W+", "-", f"{role} {fault}").strip("-")
    line: dict[str, Any] = {"role": role, "fault": fault}
    job = world.train(name)
    wait_for(lambda: jobs.metrics(name) or not job.running, PATIENCE_S, f"the first step of {name}")
    assert job.running, job.said[-5000:]
    try:
        with FAULTS[fault](world, role, fault):
            line |= _watch(jobs, job, name)
        if not line["went on"]:
            began = time.monotonic()
            again = world.train(name, "--resume")
            assert again.wait(PATIENCE_S), again.said[-5000:]
            line["resume took s"] = round(time.monotonic() - began)
        differing = _differing(jobs.numbers(name), world.undisturbed)
        line |= {"same numbers": not differing, "differing": differing, "replayed": _replayed(jobs, name)}
    finally:
        _write(line)
        for process in jobs.drivers():  # of a job that neither went on nor stopped
            jobs.cluster.head.signal(process, signal.SIGKILL)
    assert [entry["counts/episodes"] for entry in jobs.metrics(name)] == [SAMPLES * n for n in range(1, STEPS + 1)]
    if role not in CHANGES_NUMBERS or not line["went on"]:
        assert line["same numbers"]


def _watch(jobs: Jobs, job: Job, name: str) -> dict[str, Any]:
    """Wait for the end of a job that was just disturbed: seconds until it said so, and until its next step."""
    began, before, steps = time.monotonic(), len(job.said), len(jobs.metrics(name))
    noticed = recovered = None
    while job.running:
        now = time.monotonic() - began
        assert now < PATIENCE_S, f"neither went on nor stopped: {job.said[before:][-5000:]}"
        if noticed is None and NOTICE.search(job.said, before):
            noticed = round(now, 1)
        if recovered is None and len(jobs.metrics(name)) > steps + (noticed is None):
            recovered = round(now, 1)
        time.sleep(0.2)
    went_on = job.wait()
    return {
        "noticed after s": noticed, "next step after s": recovered, "ended after s": round(time.monotonic() - began, 1),
        "went on": went_on, "said": _message(job.said[before:]),
    }  # fmt: skip


def _message(said: str) -> str:
    """The first lines that say that something is wrong."""
    lines = [line.strip() for line in said.splitlines() if NOTICE.search(line) and "INFO" not in line]
    return " | ".join(line[:300] for line in [*lines[:1], *lines[1:][-2:]])


def _differing(run: list[dict[str, Any]], undisturbed: list[dict[str, Any]]) -> list[str]:
    """Metrics that are not the same at every step; ``steps`` if one is missing."""
    if len(run) != len(undisturbed):
        return ["steps"]
    pairs = list(zip(run, undisturbed, strict=True))
    names = sorted({name for pair in pairs for line in pair for name in line})
    return [name for name in names if any(mine.get(name) != theirs.get(name) for mine, theirs in pairs)]


def _replayed(jobs: Jobs, name: str) -> float:
    return jobs.metrics(name)[-1]["counts/replayed"]


def _write(line: dict[str, Any]) -> None:
    print(json.dumps(line))
    if results := os.environ.get("CHAOS_RESULTS"):
        with Path(results).open("a") as file:
            file.write(json.dumps(line) + "\n")


def test_a_small_dev_shm_is_enough(new_cluster: MakeCluster) -> None:
    cluster = new_cluster((0, 8), shm="64m")
    start_ray(cluster)
    jobs = Jobs.on(cluster)
    job = jobs.start("quickstart", "small", "train.steps=1")
    assert job.wait(PATIENCE_S), job.said[-5000:]
    assert [entry["counts/episodes"] for entry in jobs.metrics("small")] == [SAMPLES]


def test_a_clock_jump_changes_nothing(world: World, new_cluster: MakeCluster) -> None:
    """Two hours on, then four back, for all processes of Ray and of the job; the monotonic clock goes on."""
    package = importlib.util.find_spec("libfaketime")  # under Debian's, 0.9.10, every sleep is an error
    if package is None or package.origin is None:
        pytest.skip("no libfaketime, which moves a process's clock (pip install libfaketime)")
    library = next(Path(package.origin).parent.rglob("libfaketime.so.1"))
    cluster = new_cluster((0, 8))
    offset = cluster.folder / "offset"
    offset.write_text("+0")
    cluster.environment |= {
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    start_ray(cluster)
    jobs = Jobs.on(cluster)
    job = jobs.start("quickstart", "jump", f"rollout.weights_dir={cluster.weights}", f"train.steps={STEPS}")
    for steps, jump in ((1, "+7200"), (3, "-7200")):
        wait_for(lambda n=steps: len(jobs.metrics("jump")) >= n or not job.running, PATIENCE_S, f"{steps} steps")
        offset.write_text(jump)
    assert job.wait(PATIENCE_S), job.said[-5000:]
    assert jobs.numbers("jump") == world.undisturbed
    seconds = [value for line in jobs.metrics("jump") for name, value in line.items() if name.startswith("time/")]
    assert all(0 <= value < PATIENCE_S for value in seconds)
