"""A training under random faults, seeded; prints one JSON line: what failed, what was counted, whose memory grew.

    python tests/nodes/soak.py --steps 200 --every 5 --seed 0

A job that stops is resumed, as often as there are faults. Exit status 1 if a sample was lost or counted twice.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness import Cluster, make_cluster, start_ray
from jobs import Job, Jobs
from test_chaos import KILL, PATIENCE_S, RAYLET, SAMPLES, World, lost_node, signalled

from affect_rl.data.dataset import Dataset
from affect_rl.team.store import read_trajectories
from cluster.sampler import StepSampler

FAULTS = [
    *((role, KILL) for role in ("engine", "shard", "frontend", "learner", "driver")),
    *((f"node of the {role}", RAYLET) for role in ("learner", "shard")),
]
ROLE = re.compile(r"ray::([A-Za-z]\w+)|/(raylet|gcs_server)\b|bin/(affect-rl)")
SETTLED, FEWEST = 50, 10
"""Steps of a process's life before its memory should be flat (an engine touches its KV cache bit by bit), and samples
that a slope needs after them."""


def soak(cluster: Cluster, steps: int, every: int, seed: int) -> dict[str, Any]:
    """Train for `steps` steps with a fault about every `every` of them."""
    chance, jobs = random.Random(seed), Jobs.on(cluster, f"train.steps={steps}", "rollout.max_restarts=1000")
    world, name, began = World(jobs, []), "soak", time.monotonic()
    warm = jobs.start("sft", "warm")
    assert warm.wait(), warm.said[-3000:]
    start = [f"policy={cluster.runs}/runs/warm/sft", "train.eval_every=0", "train.select=last"]
    memory: dict[tuple[str, int, int], list[tuple[int, float]]] = defaultdict(list)
    faults, resumed = [], 0
    job, due = jobs.start("train", name, *start), chance.randint(1, 2 * every - 1)
    while True:
        done = _next_step(jobs, job, name, len(jobs.metrics(name)))
        _sample(cluster, done, memory)
        if not job.running:
            if job.wait():
                break
            if resumed > len(faults):
                raise RuntimeError(f"stopped without a fault: {job.said[-3000:]}")
            print(f"step {done}: stopped: {job.said.strip()[-500:]}", file=sys.stderr)
            job, resumed = jobs.start("train", name, *start, "--resume"), resumed + 1
        elif done >= due and done < steps:
            role, fault = chance.choice(FAULTS)
            due = done + chance.randint(1, 2 * every - 1)
            faults.append((done, role, fault))
            print(f"step {done}: {role}, {fault}", file=sys.stderr)
            try:
                with (lost_node if role.startswith("node") else signalled)(world, role, fault):
                    pass
            except IndexError:
                faults.pop()  # the actor is still on its way back from the fault before
    return {
        "benchmark": "soak", "seed": seed, "steps": steps, "seconds": round(time.monotonic() - began),
        "faults": dict(Counter(f"{role}, {fault}" for _, role, fault in faults)), "resumed": resumed,
        **_counted(jobs, name, steps), "mib_per_step": _slopes(memory),
    }  # fmt: skip


def _next_step(jobs: Jobs, job: Job, name: str, done: int) -> int:
    """Wait for a further step, or for the job's end; returns how many steps there are."""
    ends = time.monotonic() + PATIENCE_S
    while job.running and len(jobs.metrics(name)) == done:
        if time.monotonic() > ends:
            raise TimeoutError(f"no step within {PATIENCE_S} s after step {done}: {job.said[-3000:]}")
        time.sleep(0.5)
    return len(jobs.metrics(name))


def _sample(cluster: Cluster, step: int, memory: dict[tuple[str, int, int], list[tuple[int, float]]]) -> None:
    """Resident memory of Ray's and our processes, MiB."""
    for node in cluster.nodes:
        proc = Path(f"/proc/{node.space.pid}/root/proc")
        for process in node.processes():
            try:
                line = (proc / str(process) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                pages = int((proc / str(process) / "statm").read_text().split()[1])
            except OSError:  # ended meanwhile
                continue
            if found := ROLE.search(line):
                role = next(filter(None, found.groups()))
                memory[role, node.number, process].append((step, pages / 256))


def _slopes(memory: dict[tuple[str, int, int], list[tuple[int, float]]]) -> dict[str, float]:
    """By role, the steepest line through the memory of a process that lived long enough."""
    steepest: dict[str, float] = {}
    for (role, *_), samples in memory.items():
        settled = [(step, size) for step, size in samples if step >= samples[0][0] + SETTLED]
        if len({step for step, _ in settled}) >= FEWEST:
            slope = float(np.polyfit(*np.array(settled).T, 1)[0])
            steepest[role] = round(max(slope, steepest.get(role, slope)), 2)
    return steepest


def _counted(jobs: Jobs, name: str, steps: int) -> dict[str, int]:
    """Samples that were lost and doubled, by the trajectories that were learned from."""
    disk = jobs.cluster.seen(jobs.cluster.runs)
    sampler = StepSampler(Dataset.load(disk / "synth").samples("train"), SAMPLES, 0)
    lost = doubled = 0
    for step in range(steps):
        rows = read_trajectories(jobs.run_dir(name) / "trajectories" / f"step-{step + 1:05d}.parquet")
        played, asked = Counter(row["sample_id"] for row in rows), Counter(s.id for s in sampler.batch(step))
        lost, doubled = lost + (asked - played).total(), doubled + (played - asked).total()
    last = jobs.metrics(name)[-1]
    counts = {key: int(last[f"counts/{key}"]) for key in ("episodes", "replayed", "dropped")}
    return {"lost": lost, "doubled": doubled, **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    temporary = tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True)
    with temporary as folder, make_cluster(Path(folder) / "nodes") as cluster:
        start_ray(cluster)
        result = soak(cluster, asked.steps, asked.every, asked.seed)
    print(json.dumps(result))
    sys.exit(bool(result["lost"] or result["doubled"] or result["episodes"] != asked.steps * SAMPLES))


if __name__ == "__main__":
    main()
