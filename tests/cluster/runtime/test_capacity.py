"""What a cluster has against what a job asks for."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affect_rl.config.actors import Actors, Stage, actors_of, engines
from affect_rl.config.load import Config, load_config
from affect_rl.errors import AffectError
from cluster.runtime.capacity import Capacity, Node, check_actors, check_resources, doubt, fits, shortages

GPU = "configs/gpu.yaml"
NEED = actors_of(load_config(GPU), "train")


def cluster(*nodes: tuple[float, float], largest: Node | None = None) -> Capacity:
    return Capacity("the cluster", tuple(Node(cpus, gpus) for cpus, gpus in nodes), largest)


def job(*overrides: str) -> Config:
    return load_config(GPU, overrides)


def lacks(config: Config, stage: Stage, capacity: Capacity) -> list[str]:
    return [*shortages(stage, actors_of(config, stage), capacity)]


def test_says_need_against_have() -> None:
    (line,) = lacks(job(), "train", cluster((32, 2), (32, 2)))
    assert line.startswith("train needs 6 GPUs (2 x 1 for each engine, 4 x 1 for each learner), the cluster has 4 on 2")
    assert "lower rollout.workers" in line and "learner.workers" in line


def test_cards_of_shards_count() -> None:
    (line,) = lacks(job("retrieval.gpus_per_shard=0.5"), "eval", cluster((32, 3)))
    assert line.startswith("eval needs 4 GPUs (2 x 1 for each engine, 4 x 0.5 for each shard), the cluster has 3")
    assert "retrieval.gpus_per_shard" in line


def test_says_all_that_is_missing() -> None:
    found = lacks(job(), "train", cluster((8, 2)))
    assert [line.split(" (")[0] for line in found] == ["train needs 6 GPUs", "train needs 26 CPUs"]


def test_a_job_that_fits_lacks_nothing() -> None:
    for nodes in (((26, 6),), ((14, 4), (14, 2)), ((8, 1),) * 6):
        assert not lacks(job(), "train", cluster(*nodes))


def test_gpus_on_several_nodes_do_not_make_one_actor() -> None:
    config = job(
        "rollout.gpus_per_worker=2", "rollout.tensor_parallel=2", "rollout.workers=3", "learner.gpus_per_worker=0"
    )
    (line,) = lacks(config, "train", cluster((32, 3), (32, 3)))
    assert line.startswith("train: each engine needs 2 CPUs and 2 GPUs on one node")
    assert "the nodes have 32 CPUs and 3 GPUs, 32 CPUs and 3 GPUs" in line
    assert not lacks(config, "train", cluster((32, 4), (32, 2)))


def test_a_fraction_lies_on_one_card() -> None:
    config = job("rollout.gpus_per_worker=0.6", "rollout.workers=3")
    assert lacks(config, "eval", cluster((32, 2)))
    assert not lacks(config, "eval", cluster((32, 3)))
    halves = job("rollout.gpus_per_worker=0.5", "rollout.gpu_memory=0.5", "rollout.workers=4")
    assert not lacks(halves, "eval", cluster((32, 2)))


def test_an_autoscaler_may_bring_what_is_missing() -> None:
    assert not lacks(job(), "train", cluster((4, 0), largest=Node(64, 8)))
    (line,) = lacks(job(), "train", cluster((4, 0), largest=Node(64, 4)))
    assert "the cluster has 4 with all that its autoscaler may add" in line


def test_engines_that_stay_take_their_place() -> None:
    config = job()
    warm = actors_of(config, "sft")
    assert not [*shortages("sft", warm, cluster((64, 4)))]
    assert [*shortages("sft", [*warm, engines(config.rollout)], cluster((64, 4)))]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)), min_size=1, max_size=4))
def test_more_nodes_never_take_room_away(nodes: list[tuple[int, int]]) -> None:
    if not [*shortages("train", NEED, cluster(*nodes))]:
        assert sum(n[1] for n in nodes) >= sum(a.count * a.gpus for a in NEED)
        assert not [*shortages("train", NEED, cluster(*nodes, (1, 1)))]


def some(role: str, count: int, cpus: float, gpus: float = 0) -> Actors:
    return Actors(role, count, cpus, gpus, (f"{role}.workers",))


def test_actors_that_fit_one_way_are_not_refused_for_another() -> None:
    """On the first or the fullest node the engine takes the CPUs that only the frontend or the shard could have."""
    wanted = [some("engine", 1, 1, 1), some("frontend", 1, 4), some("shard", 1, 4)]
    assert fits(wanted, cluster((4, 1), (5, 1)))
    # And here only the fullest nodes leave one empty: five small ones, then a large one.
    assert fits([some("small", 5, 1), some("large", 1, 8, 0)], cluster((5, 0), (8, 0)))


def test_what_may_fit_is_no_error_but_said(caplog: pytest.LogCaptureFixture) -> None:
    wanted = [some("engine", 2, 3, 1), some("frontend", 1, 4)]
    nodes = cluster((5, 1), (5, 1))
    assert not [*shortages("train", wanted, nodes)] and not fits(wanted, nodes)
    check_actors({"train": wanted}, nodes)
    assert "train may have to wait: 2 x 3 CPU and 1 GPU (engine)" in caplog.text
    assert not doubt("train", wanted, cluster((7, 1), (5, 1)))


def test_check_resources_names_every_stage() -> None:
    with pytest.raises(AffectError, match=r"(?s)sft needs 4 GPUs.*train needs 6 GPUs"):
        check_resources(job(), ["sft", "train"], cluster((64, 0)))


BEGIN = """
import time, ray
from affect_rl.config.load import load_config
from affect_rl.errors import AffectError
from cluster.runtime.run import open_run
config = load_config("configs/quickstart.yaml", ["rollout.gpus_per_worker=1", "rollout.workers=999"])
began = time.monotonic()
try:
    with open_run(config, "train"):
        pass
except AffectError as error:
    print(f"{time.monotonic() - began} {ray.is_initialized()} {error}")
"""


def test_a_run_that_cannot_be_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    seconds, ray_runs, error = subprocess.check_output([sys.executable, "-c", BEGIN], text=True).split(" ", 2)
    assert float(seconds) < 10
    assert ray_runs == "False"
    assert re.match(r"train needs 999 GPUs .* this machine has \d+; lower rollout.workers", error)
