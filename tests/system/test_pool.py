"""The pool's own part in bringing actors back, on real engines."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import ray
import torch

from affect_rl.config.load import Config, load_config
from affect_rl.errors import AffectError
from affect_rl.policy.model import AffectPolicy
from benchmarks.workload import tiny_policy
from cluster.runtime.pool import RolloutError, RolloutPool, _Outage

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(None, ["team.retrieval=false", "rollout.kv_cache_gib=0.1", "rollout.max_num_seqs=32"])


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(dim=64).save(tmp_path_factory.mktemp("policies") / "start")


@pytest.fixture
def pool(config: Config, policy_dir: Path) -> Iterator[RolloutPool]:
    with closing(RolloutPool(config, policy_dir, None)) as pool:
        yield pool


def poll_until(pool: RolloutPool, done: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 240
    while not done():
        assert time.monotonic() < give_up
        pool._poll()


def test_a_setting_that_no_engine_can_run_is_one_message(config: Config, policy_dir: Path) -> None:
    rollout = config.rollout.model_copy(update={"block_size": 16})
    with pytest.raises(AffectError) as error:
        RolloutPool(config.model_copy(update={"rollout": rollout}), policy_dir, None)
    assert str(error.value) == "rollout.block_size=16 is not a multiple of 32, as vLLM on CPU needs it"


def test_an_actor_that_is_not_back_in_time_is_killed_and_begins_anew(pool: RolloutPool) -> None:
    def process() -> int:
        return ray.get(pool._actors[0].apply.remote(lambda _: os.getpid()), timeout=60)

    late = process()
    pool._fault(0, TimeoutError("made up"))
    pool._outages[0] = _Outage(deadline=0, next_probe=math.inf)  # asked, and no answer came
    pool._revive()
    poll_until(pool, pool._manager.healthy_actor_ids)
    assert process() != late and pool._faults[0] == 2


def test_an_actor_that_comes_back_is_checksummed(pool: RolloutPool, policy_dir: Path, tmp_path: Path) -> None:
    """With the version alone, a file that was damaged after the others had read it would go unnoticed."""
    policy = AffectPolicy.load(policy_dir)
    pool.sync(policy.publish(1, tmp_path), verify=True)
    pool._fault(0, TimeoutError("made up"))
    poll_until(pool, pool._manager.healthy_actor_ids)

    handle = policy.publish(2, tmp_path)
    pool.sync(handle, verify=True)
    with torch.no_grad():
        policy.language_model.get_input_embeddings().weight[3, 3] += 1e-3
    policy.publish(2, tmp_path)
    pool._fault(0, TimeoutError("made up"))
    with pytest.raises(RolloutError, match=r"actor 0 has other weights than the learner at version 2: checksum 0x"):
        poll_until(pool, pool._manager.healthy_actor_ids)


def test_the_ranks_of_an_engine_end_with_their_actor(config: Config, policy_dir: Path, tmp_path: Path) -> None:
    rollout = config.rollout.model_copy(update={"tensor_parallel": 2})
    with closing(RolloutPool(config.model_copy(update={"rollout": rollout}), policy_dir, None)) as pool:
        pool.sync(AffectPolicy.load(policy_dir).publish(1, tmp_path), verify=True)
        actor = psutil.Process(ray.get(pool._actors[0].apply.remote(lambda _: os.getpid()), timeout=60))
        ranks = [child for child in actor.children(recursive=True) if "VLLM" in child.name()]
        assert len(ranks) == 2
    _, alive = psutil.wait_procs(ranks, timeout=240)  # closing kills the actor, which then cannot end them itself
    assert not alive
