"""Rollout workers as Ray actors, with the retrieval service and the synthetic world."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from affect_rl.config.load import Config, load_config
from affect_rl.data.synth import AUDIO_DIM, VIDEO_DIM, SynthSettings, synthesise
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.tokens import tiny_language_model, train_tokenizer
from affect_rl.policy.weights import publish_weights
from affect_rl.sample import AffectSample
from affect_rl.trajectory import Trajectory
from retrieval_service.client import RetrievalClient
from retrieval_service.index import build_index
from retrieval_service.service import launch_retrieval
from rollout_workers.worker import EpisodeSpec, RolloutWorker

pytestmark = pytest.mark.usefixtures("cluster")

DEADLINE_S = 120


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(None, ["rollout.kv_cache_gib=0.1", "rollout.max_num_seqs=32"])


@pytest.fixture(scope="module")
def samples() -> list[AffectSample]:
    return synthesise(SynthSettings(train=12, dev=1, test=1, expressions=20, speakers=2))


@pytest.fixture(scope="module")
def policy(samples: list[AffectSample], config: Config) -> AffectPolicy:
    tokenizer = train_tokenizer([text for s in samples for text in (s.text, s.description)], 600)
    model = tiny_language_model(tokenizer, layers=2, dim=64, heads=2, context=config.model.context, seed=0)
    return AffectPolicy.create(
        model, tokenizer, audio_dim=AUDIO_DIM, video_dim=VIDEO_DIM, dim=32, heads=2, soft_tokens=2, experts=4, top_k=2
    )


@pytest.fixture(scope="module")
def policy_dir(policy: AffectPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy.save(tmp_path_factory.mktemp("policies") / "start")


@pytest.fixture(scope="module")
def retrieval(
    samples: list[AffectSample], config: Config, tmp_path_factory: pytest.TempPathFactory, cluster: None
) -> Iterator[RetrievalClient]:
    library = [sample for sample in samples if sample.split in config.retrieval.library_splits]
    index = build_index(library, tmp_path_factory.mktemp("evidence") / "index", config.retrieval)
    client = launch_retrieval(index, config.retrieval)
    yield client
    client.close()


@pytest.fixture
def launch(policy_dir: Path, retrieval: RetrievalClient) -> Iterator[Callable[[Config], ActorHandle]]:
    """Starts workers of a test's own and ends them."""
    workers: list[ActorHandle] = []

    def start(config: Config) -> ActorHandle:
        workers.append(start_worker(config, policy_dir, retrieval))
        return workers[-1]

    yield start
    for worker in workers:
        ray.kill(worker)


@pytest.fixture(scope="module")
def worker(config: Config, policy_dir: Path, retrieval: RetrievalClient) -> Iterator[ActorHandle]:
    """One that tests share."""
    worker = start_worker(config, policy_dir, retrieval)
    yield worker
    ray.kill(worker)


def start_worker(config: Config, policy_dir: Path, retrieval: RetrievalClient) -> ActorHandle:
    actor = ray.remote(RolloutWorker).options(num_cpus=1, max_restarts=1, max_concurrency=1000)
    return actor.remote(config, policy_dir, retrieval)


def get(answer: Any) -> Any:
    return ray.get(answer, timeout=DEADLINE_S)


def specs(samples: list[AffectSample], config: Config) -> list[EpisodeSpec]:
    chosen = [s for s in samples if s.split == "train"]
    return [EpisodeSpec.to_train(config, i, sample, 100 + i) for i, sample in enumerate(chosen)]


def tokens(episodes: list[Trajectory]) -> list[Any]:
    return [(turn.generation.token_ids, turn.generation.logprobs) for episode in episodes for turn in episode.turns]


def test_a_sample_at_fault_costs_its_own_episode_alone(
    worker: ActorHandle, config: Config, samples: list[AffectSample]
) -> None:
    wanted = specs(samples, config)
    long = replace(wanted[3].sample, id="too-long", text="and so on " * config.model.context)
    wanted[3] = EpisodeSpec.to_train(config, 3, long, 103)
    played = get(worker.play.remote(wanted))
    assert [episode.sample_id for episode in played] == [spec.sample.id for spec in wanted]
    assert [bool(episode.turns) for episode in played] == [place != 3 for place in range(len(wanted))]
    assert "sample too-long: its prompt takes" in played[3].output.problem
    assert get(worker.ping.remote()) == "pong"
    assert get(worker.stats.remote())["running"] == 0


def test_episodes_syncs_and_a_kill(
    worker: ActorHandle,
    config: Config,
    samples: list[AffectSample],
    policy: AffectPolicy,
    tmp_path: Path,
) -> None:
    played = get(worker.play.remote(specs(samples, config)))
    assert [episode.sample_id for episode in played] == [spec.sample.id for spec in specs(samples, config)]
    for episode in played:
        assert [turn.agent for turn in episode.turns] == ["planner", "filter", "generator"]
        assert set(episode.bypassed) == {"planner", "filter"}
        assert episode.oldest_version == 0 and not episode.degraded
        assert episode.generated_tokens >= sum(len(turn.generation.token_ids) for turn in episode.turns)
    assert get(worker.stats.remote())["cached_tokens"] > 0

    again = get(worker.play.remote(specs(samples, config)))
    assert tokens(again) == tokens(played)

    handle = publish_weights(policy.export(), 5, tmp_path)
    assert get(worker.update_weights.remote(handle)) == 5
    assert get(worker.checksum.remote()) == handle.checksum
    synced = get(worker.play.remote(specs(samples, config)))
    assert {v for e in synced for t in e.turns for v in t.generation.weight_versions} == {5}
    assert tokens(synced) == tokens(played), "the same weights under another version"

    lost = worker.play.remote(specs(samples, config))
    os.kill(get(worker.apply.remote(lambda _: os.getpid())), signal.SIGKILL)
    with pytest.raises(RayActorError):
        get(lost)
    assert get(worker.ping.options(max_task_retries=-1).remote()) == "pong"
    restarted = get(worker.play.remote(specs(samples, config)))
    versions = {v for e in restarted for t in e.turns for v in t.generation.weight_versions}
    assert versions == {0}, "a restarted engine begins with the policy directory"
    assert tokens(restarted) == tokens(played)


def test_calls_in_asynchronous_training_share_the_engine(
    launch: Callable[[Config], ActorHandle], config: Config, samples: list[AffectSample]
) -> None:
    train = config.train.model_copy(update={"max_staleness": 1})
    worker = launch(config.model_copy(update={"train": train}))
    greedy = [EpisodeSpec.to_measure(config, "dev", sample) for sample in samples if sample.split == "train"]
    halves = [worker.play.remote(greedy[:6]), worker.play.remote(greedy[6:])]
    episodes = [episode for half in get(halves) for episode in half]
    assert [episode.sample_id for episode in episodes] == [spec.sample.id for spec in greedy]


@pytest.mark.slow
def test_frozen_agents_play_with_their_own_policy_and_keep_its_version(
    launch: Callable[[Config], ActorHandle],
    config: Config,
    samples: list[AffectSample],
    policy: AffectPolicy,
    policy_dir: Path,
    tmp_path: Path,
) -> None:
    team = config.team.with_agent("generator", policy="start", trains=False)
    frozen = config.model_copy(update={"team": team.with_agent("filter", policy="start", trains=False)})
    start = frozen.model_copy(update={"policy": str(policy_dir)})
    worker = launch(start)
    get(worker.update_weights.remote(publish_weights(policy.export(), 5, tmp_path)))
    played = get(worker.play.remote(specs(samples, start)))
    versions = {(t.agent, v) for e in played for t in e.turns for v in t.generation.weight_versions}
    assert versions == {("planner", 5), ("filter", 0), ("generator", 0)}
    assert {(t.agent, t.trained) for e in played for t in e.turns} == {
        ("planner", True), ("filter", False), ("generator", False),
    }  # fmt: skip
    assert all(e.oldest_version == 5 for e in played), "of those that learn"
