"""The pool's own part in bringing actors back, on real engines."""

from __future__ import annotations

import os
import signal
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
from affect_rl.sample import AffectSample
from benchmarks.workload import tiny_policy
from cluster.runtime.pool import RolloutError, RolloutPool
from retrieval_service.errors import RetrievalError
from rollout_workers.vllm.engine import RolloutEngine
from rollout_workers.worker import EpisodeSpec

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


def ranks_of(engine: RolloutEngine) -> list[int]:
    """Process ids, as the ranks say them: titles and parents are not the same everywhere."""
    return engine._engine.collective_rpc(lambda _: os.getpid())


def process_of(pool: RolloutPool, actor: int) -> int:
    return ray.get(pool._actors[actor].apply.remote(lambda _: os.getpid()), timeout=60)


def all_play(pool: RolloutPool) -> bool:
    return len(pool._fleet.healthy()) == pool.size


def test_an_actor_that_comes_back_is_checksummed(pool: RolloutPool, policy_dir: Path, tmp_path: Path) -> None:
    """With the version alone, a file that was damaged after the others had read it would go unnoticed."""
    late = process_of(pool, 0)
    policy = AffectPolicy.load(policy_dir)
    pool.sync(policy.publish(1, tmp_path), verify=True)
    pool._kill_late(0, "made up")
    poll_until(pool, lambda: all_play(pool))
    assert process_of(pool, 0) != late

    handle = policy.publish(2, tmp_path)
    pool.sync(handle, verify=True)
    with torch.no_grad():
        policy.language_model.get_input_embeddings().weight[3, 3] += 1e-3
    policy.publish(2, tmp_path)
    pool._fault(0, TimeoutError("made up"))
    with pytest.raises(RolloutError, match=r"actor 0 has other weights than the learner at version 2: checksum 0x"):
        poll_until(pool, lambda: all_play(pool))


def test_an_engine_whose_search_fails_plays_all_that_it_had(config: Config, policy_dir: Path) -> None:
    """For RLlib's manager a failed call makes an actor unhealthy, and it forgets all other calls of it."""
    free = config.rollout.model_copy(update={"deterministic": False})
    config = config.model_copy(update={"rollout": free, "policy": str(policy_dir)})
    sample = AffectSample("a", "handmade", "train", "clip", "", "hello", ("joy",), "closed", ("joy", "anger"))
    with closing(RolloutPool(config, policy_dir, None)) as pool:
        keys = pool.submit([EpisodeSpec.to_train(config, number, sample, number) for number in range(48)])
        (first, *others) = pool._queue._calls
        assert others
        pool._manager.set_actor_state(0, healthy=False)  # as its manager does before it hands an error on
        pool._take_error(0, first, RetrievalError("made up"))
        assert [len(t.turns) > 0 for t in pool.collect(keys)] == [True] * 48
        assert pool._fleet.faults(0) == 0 and pool.replayed == 48


def test_an_engine_that_hangs_is_killed_at_its_deadline_and_begins_anew(config: Config, policy_dir: Path) -> None:
    config = config.model_copy(update={"policy": str(policy_dir)})
    sample = AffectSample("a", "handmade", "train", "clip", "", "hello", ("joy",), "closed", ("joy", "anger"))
    with closing(RolloutPool(config, policy_dir, None)) as pool:
        hanging = process_of(pool, 0)
        os.kill(hanging, signal.SIGSTOP)
        keys = pool.submit([EpisodeSpec.to_train(config, "key", sample, 3)])
        (call,) = pool._queue.calls
        assert call.deadline > time.monotonic() + 200
        call.deadline = time.monotonic() + 2  # rollout.deadline_s bounds starts as well, so it cannot be so short
        pool._poll()
        assert pool._fleet.healthy() == [0]
        (played,) = pool.collect(keys)
        assert played.turns and pool.replayed == 1 and pool._fleet.faults(0) == 1
        assert process_of(pool, 0) != hanging and not psutil.pid_exists(hanging)


@pytest.mark.slow
def test_a_pool_grows_gives_up_an_episode_and_goes_on_with_what_is_left(
    config: Config, policy_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bounds = {"workers": (1, 2), "deterministic": False, "max_restarts": 1}
    elastic = config.model_copy(update={"rollout": config.rollout.model_copy(update=bounds), "policy": str(policy_dir)})
    sample = AffectSample("said-once", "handmade", "train", "clip", "", "hello", ("joy",), "closed", ("joy", "anger"))
    spec = EpisodeSpec.to_train(elastic, "key", sample, seed=3)
    with closing(RolloutPool(elastic, policy_dir, None)) as pool:
        pool.sync(AffectPolicy.load(policy_dir).publish(1, tmp_path), verify=True)
        pool.fit()
        assert pool.size == 2 and pool._fleet.healthy() == [0]
        poll_until(pool, lambda: all_play(pool))
        pool.fit()
        assert pool.size == 2
        (played,) = pool.play([spec])
        assert {version for turn in played.turns for version in turn.generation.weight_versions} == {1}

        processes = {actor: process_of(pool, actor) for actor in pool._actors}
        keys = pool.submit([spec])
        for losses in range(2):
            poll_until(pool, lambda: bool(pool._queue.calls))
            (call,) = pool._queue.calls
            assert call.losses == losses
            os.kill(processes.pop(call.engine), signal.SIGKILL)
            while call.losses == losses:
                pool._poll()
        (given_up,) = pool.collect(keys)
        assert given_up.lost and not given_up.turns and pool.replayed == 1
        assert "lost, as 2 engines were lost while it played: samples said-once" in caplog.text

        poll_until(pool, lambda: all_play(pool))
        pool._kill_late(0, "made up")  # its second fault within the hour
        assert list(pool._actors) == [1]
        assert pool.play([spec])[0].turns
        pool.fit()
        assert list(pool._actors) == [1, 2]
        pool._kill_late(1, "made up")
        pool._fault(2, TimeoutError("made up"))
        with pytest.raises(RolloutError, match=r"0 engines are left, and rollout.min_workers=1"):
            pool._fault(2, TimeoutError("made up"))


@pytest.mark.slow
def test_the_ranks_of_an_engine_end_with_their_actor(config: Config, policy_dir: Path, tmp_path: Path) -> None:
    rollout = config.rollout.model_copy(update={"tensor_parallel": 2})
    with closing(RolloutPool(config.model_copy(update={"rollout": rollout}), policy_dir, None)) as pool:
        pool.sync(AffectPolicy.load(policy_dir).publish(1, tmp_path), verify=True)
        pids = ray.get(pool._actors[0].apply.remote(lambda worker: ranks_of(worker.engine)), timeout=60)
        ranks = [psutil.Process(pid) for pid in pids]
        assert len(ranks) == 2
    _, alive = psutil.wait_procs(ranks, timeout=240)  # closing kills the actor, which then cannot end them itself
    assert not alive
