"""The retrieval service on Ray: sharded answers, lost shards, errors at the start."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from affect_rl.config.load import load_config
from affect_rl.config.services import RetrievalConfig
from affect_rl.errors import AffectError
from affect_rl.evidence import CognitiveResult, Exclusion, Support, render_evidence
from affect_rl.policy.tokens import train_tokenizer
from affect_rl.sample import AffectSample
from affect_rl.team.prompts import Prompts, template_texts
from cluster.warm_start import demonstrate_all, team_of
from retrieval_service.client import RetrievalClient
from retrieval_service.errors import RetrievalError
from retrieval_service.frontend import ShardPool
from retrieval_service.retriever import LocalRetriever
from retrieval_service.service import launch_retrieval

pytestmark = pytest.mark.usefixtures("cluster")

QUERIES = {"supportive": "a soft voice", "confusing": "a soft voice in winter", "countering": "a loud red bird"}


@pytest.fixture(scope="module")
def client(evidence_index: Path, cluster: None) -> Iterator[RetrievalClient]:
    client = launch_retrieval(evidence_index, RetrievalConfig(shards=2))
    yield client
    client.close()


def queries_of(sample: AffectSample) -> dict[str, str]:
    words = render_evidence(sample).split()
    chance = random.Random(sample.id)
    return {group: " ".join(chance.choices(words, k=3)) for group in QUERIES}


def wait_for_death(actor: ActorHandle) -> None:
    """`ray.kill` returns before the process is gone, and until then the actor may answer."""
    with pytest.raises(RayActorError):
        ray.get(actor.__ray_call__.remote(lambda _: time.sleep(30)))


async def answers(retriever: Any, samples: list[AffectSample]) -> list[CognitiveResult | Support]:
    calls: list[Awaitable[Any]] = []
    for sample in samples:
        calls.append(retriever.cognitive(queries_of(sample), 3, Exclusion.of(sample)))
        calls.append(retriever.perceptual(sample.audio, sample.video, Exclusion.of(sample)))
    return list(await asyncio.gather(*calls))


def assert_same(one: list[CognitiveResult | Support], other: list[CognitiveResult | Support]) -> None:
    """The same rows in the same order. Scores may differ in the last bit: another process encodes the query."""
    for a, b in zip(one, other, strict=True):
        if isinstance(a, CognitiveResult):
            assert isinstance(b, CognitiveResult) and a.degraded == b.degraded
            for group, found in a.groups.items():
                assert [e.id for e in found] == [e.id for e in b.groups[group]]
                assert [e.score for e in found] == pytest.approx([e.score for e in b.groups[group]], abs=1e-6)
        else:
            assert isinstance(b, Support) and (a.ids, a.labels, a.degraded) == (b.ids, b.labels, b.degraded)
            for x, y in ((a.audio, b.audio), (a.video, b.video)):
                np.testing.assert_array_equal(x, y)


def test_two_shards_equal_one_index_in_any_batch(
    client: RetrievalClient, evidence_index: Path, evidence_library: list[AffectSample]
) -> None:
    async def ask() -> None:
        samples = evidence_library[:60]
        together = await answers(client, samples)
        assert_same(together, await answers(LocalRetriever(evidence_index, RetrievalConfig()), samples))
        assert_same(together[::-1], [x for s in samples[::-1] for x in (await answers(client, [s]))[::-1]])

    asyncio.run(ask())


def test_the_number_of_shards_changes_nothing(evidence_index: Path, evidence_library: list[AffectSample]) -> None:
    client = launch_retrieval(evidence_index, RetrievalConfig(shards=5))
    try:
        local = LocalRetriever(evidence_index, RetrievalConfig())
        samples = evidence_library[60:90]
        assert_same(asyncio.run(answers(client, samples)), asyncio.run(answers(local, samples)))
    finally:
        client.close()


def test_a_client_works_from_another_actor(client: RetrievalClient, evidence_library: list[AffectSample]) -> None:
    @ray.remote(num_cpus=1)
    class Worker:
        def __init__(self, client: RetrievalClient) -> None:
            self.client = client

        async def ask(self, sample: AffectSample) -> CognitiveResult:
            return await self.client.cognitive(QUERIES, 3, Exclusion.of(sample))

    sample = evidence_library[7]
    there = ray.get(Worker.remote(client).ask.remote(sample), timeout=60)
    assert there == asyncio.run(client.cognitive(QUERIES, 3, Exclusion.of(sample)))


def test_errors_of_a_request_reach_the_episode(client: RetrievalClient, evidence_library: list[AffectSample]) -> None:
    with pytest.raises(AffectError, match=r"audio features of shape \(1, 9\) cannot be looked up"):
        asyncio.run(client.perceptual(np.zeros((1, 9), np.float32), None, Exclusion.of(evidence_library[7])))


def kill_process(actor: Any) -> None:
    os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=30), signal.SIGKILL)


async def until(
    ready: Callable[[CognitiveResult], bool], client: RetrievalClient, exclusion: Exclusion
) -> CognitiveResult:
    """Ask until the answer is as it should be."""
    give_up = time.monotonic() + 60
    while not ready(answer := await client.cognitive(QUERIES, 3, exclusion)):
        assert time.monotonic() < give_up, answer
        await asyncio.sleep(0.1)
    return answer


def test_a_killed_shard_degrades_answers_until_it_is_back(
    client: RetrievalClient, evidence_library: list[AffectSample]
) -> None:
    async def survive() -> None:
        exclusion = Exclusion.of(evidence_library[7])
        whole = await client.cognitive(QUERIES, 3, exclusion)
        kill_process(client.shards[0])
        degraded = await until(lambda answer: answer.degraded, client, exclusion)
        rest = {sample.id for sample in evidence_library[len(evidence_library) // 2 :]}
        assert {e.id for found in degraded.groups.values() for e in found} <= rest
        assert all(len(found) == 3 for found in degraded.groups.values())
        assert await until(lambda answer: not answer.degraded, client, exclusion) == whole

    asyncio.run(survive())


def test_a_killed_frontend_is_only_a_pause(client: RetrievalClient, evidence_library: list[AffectSample]) -> None:
    exclusion = Exclusion.of(evidence_library[7])
    whole = asyncio.run(client.cognitive(QUERIES, 3, exclusion))
    kill_process(client.frontend)
    assert asyncio.run(client.cognitive(QUERIES, 3, exclusion)) == whole


def test_a_hanging_shard_costs_one_timeout_and_is_reported(
    evidence_index: Path, evidence_library: list[AffectSample], caplog: pytest.LogCaptureFixture
) -> None:
    client = launch_retrieval(evidence_index, RetrievalConfig(shards=2, shard_timeout_s=1.0))
    exclusion = Exclusion.of(evidence_library[7])
    pid = ray.get(client.shards[1].__ray_call__.remote(lambda _: os.getpid()), timeout=30)
    config = load_config(None, ["episode.k=2"])
    samples = [replace(sample, candidates=("joy", "sadness", "anger")) for sample in evidence_library[:3]]
    words = [
        *map(render_evidence, evidence_library),
        *template_texts(),
        *team_of(config, samples[0].label_kind).texts(),
    ]
    prompts = Prompts(train_tokenizer(words, 800), soft_tokens=4, context=512, evidence_tokens=32)

    async def report() -> str:
        """What a warm start says of its demonstrations."""
        caplog.clear()
        await demonstrate_all(samples, client, prompts, config, None)
        return caplog.text

    async def survive() -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            assert (await client.cognitive(QUERIES, 3, exclusion)).degraded
            start = time.monotonic()
            assert (await client.cognitive(QUERIES, 3, exclusion)).degraded
            assert time.monotonic() - start < 1.0  # it is not waited for again
            assert "sft: 3 of 3 episodes lack evidence" in await report()
        finally:
            os.kill(pid, signal.SIGCONT)
        await until(lambda answer: not answer.degraded, client, exclusion)
        assert "lack evidence" not in await report()

    try:
        asyncio.run(survive())
    finally:
        client.close()


def test_a_shard_that_hangs_until_the_deadline_is_started_anew(
    evidence_index: Path, evidence_library: list[AffectSample]
) -> None:
    client = launch_retrieval(evidence_index, RetrievalConfig(shards=2))
    pid = ray.get(client.shards[1].__ray_call__.remote(lambda _: os.getpid()), timeout=30)
    # Of its own, for the service's deadline also bounds its start.
    pool = ShardPool(client.shards, RetrievalConfig(shards=2, shard_timeout_s=0.5, deadline_s=3.0))

    async def survive() -> float:
        query = np.zeros((1, 384), np.float32)
        assert not (await pool.search("text", query, 3))[1]
        os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        while (await pool.search("text", query, 3))[1]:
            assert time.monotonic() < begun + 60
            await asyncio.sleep(0.1)
        return time.monotonic() - begun

    try:
        assert asyncio.run(survive()) > 3
        assert ray.get(client.shards[1].__ray_call__.remote(lambda _: os.getpid()), timeout=30) != pid
        sound, hung = (counts.restarts_total for counts in pool.counts)
        assert sound == 0 and hung >= 1  # Ray may take longer than this deadline to end a process that is stopped
    finally:
        client.close()


def test_actors_can_be_found_by_name_and_the_loss_of_all_shards_is_an_error(evidence_index: Path) -> None:
    config = RetrievalConfig(shards=2)
    client = launch_retrieval(evidence_index, config, name="doomed")
    assert ray.get_actor("doomed-frontend") == client.frontend and ray.get_actor("doomed-shard-1") == client.shards[1]
    client.close()
    for shard in client.shards:
        wait_for_death(shard)

    async def search() -> None:
        pool = ShardPool(client.shards, config.model_copy(update={"deadline_s": 1.0}))
        await pool.search("text", np.zeros((1, 384), np.float32), 3)

    with pytest.raises(RetrievalError, match=r"index 'text': none of the 2 shards answered within retrieval\."):
        asyncio.run(search())


def test_a_frontend_that_does_not_answer_is_an_error(
    client: RetrievalClient, evidence_library: list[AffectSample]
) -> None:
    hurried = RetrievalClient(client.name, client.frontend, client.shards, deadline_s=1e-4)
    with pytest.raises(RetrievalError, match=r"cognitive path: the actor RetrievalFrontend gave no answer within"):
        asyncio.run(hurried.cognitive(QUERIES, 3, Exclusion.of(evidence_library[7])))


def test_a_service_that_cannot_start_says_why(evidence_index: Path, tmp_path: Path) -> None:
    with pytest.raises(AffectError, match="so this is not an index directory"):
        launch_retrieval(tmp_path, RetrievalConfig())
    with pytest.raises(AffectError, match=r"retrieval\.search_parameters='nprobe=4': not parameters of the index"):
        launch_retrieval(evidence_index, RetrievalConfig(search_parameters="nprobe=4"))
    with pytest.raises(RetrievalError, match=r"did not start within.*they need 40 free CPUs"):
        launch_retrieval(evidence_index, RetrievalConfig(shards=39, deadline_s=2))
