"""New weights for a live engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_cases import SLOTS, answer_all, logprob_gaps, make_policy, make_prompts, perturbed

from affect_rl.errors import AffectError
from affect_rl.network import LOOPBACK, open_store
from affect_rl.policy.checksum import multiset_checksum
from affect_rl.policy.directory import WEIGHTS
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.tokens import train_tokenizer
from affect_rl.policy.transfer import CollectiveTransfer, Meeting
from affect_rl.policy.weights import publish_weights, stored_weights
from affect_rl.trajectory import Generation, Prompt
from rollout_workers.vllm.engine import RolloutEngine


def gap(policy: AffectPolicy, prompts: list[Prompt], answers: list[Generation]) -> float:
    return max(float(part.max()) for part in logprob_gaps(policy, prompts, answers))


@pytest.mark.parametrize("kind", [{}, {"tied": False}, {"slots": SLOTS}], ids=["tied head", "own head", "slots"])
def test_a_sync_replaces_everything(kind: dict[str, Any], tmp_path: Path, start: Callable[..., RolloutEngine]) -> None:
    """Language model, head, fusion modules, feature statistics, and what was cached under the old weights."""
    policy = make_policy(**kind)
    engine = start(policy.save(tmp_path / "policy"))
    prompts = make_prompts(policy, 16)
    assert engine.checksum() == multiset_checksum(t for n, t in policy.export() if not n.startswith("value_head"))
    asyncio.run(answer_all(engine, prompts))
    for version in (1, 2, 7):
        perturbed(policy, 0.02)
        handle = publish_weights(policy.export(), version, tmp_path)
        assert asyncio.run(engine.update_weights(handle)) == engine.version == version
        assert engine.checksum() == handle.checksum
        answers = asyncio.run(answer_all(engine, prompts, seed=version))
        assert {v for answer in answers for v in answer.weight_versions} == {version}
        assert gap(policy, prompts, answers) < 1e-4


def test_requests_in_flight_go_on_under_the_new_weights(
    policy: AffectPolicy, policy_dir: Path, tmp_path: Path, start: Callable[..., RolloutEngine]
) -> None:
    """Also those whose percepts came from the prefix cache, and whose data vLLM would therefore not have kept."""
    engine = start(policy_dir)
    prompts = make_prompts(policy, 16)
    old, new = policy, perturbed(deepcopy(policy), 0.05)
    handle = publish_weights(new.export(), 1, tmp_path)

    async def play() -> list[Generation]:
        await answer_all(engine, prompts)
        answers = asyncio.ensure_future(answer_all(engine, prompts, seed=100))
        steps = engine.stats()["steps"]
        while engine.stats()["steps"] < steps + 7:
            await asyncio.sleep(0)
        await engine.update_weights(handle)
        return await answers

    answers = asyncio.run(play())
    assert engine.stats()["cached_tokens"] > 0
    seen = [answer for answer in answers if len(set(answer.weight_versions)) == 2]
    assert len(seen) > 8
    under_old, under_new = (logprob_gaps(p, prompts, answers) for p in (old, new))
    for answer, before, after in zip(answers, under_old, under_new, strict=True):
        versions = torch.tensor(answer.weight_versions)
        assert versions.tolist() == sorted(versions.tolist())
        assert before[versions == 0].max(initial=0) < 1e-4
        assert after[versions == 1].max(initial=0) < 1e-4


def test_wrong_weights_leave_the_engine_as_it_was(
    policy: AffectPolicy, policy_dir: Path, tmp_path: Path, start: Callable[..., RolloutEngine]
) -> None:
    engine = start(policy_dir)
    tensors = {name: tensor.detach() for name, tensor in policy.export()}
    head = "language_model.model.norm.weight"
    broken = {
        rf"tensor {head} is absent, the engine's is F32 \[64\]": {n: t for n, t in tensors.items() if n != head},
        rf"tensor {head} is F32 \[32\], the engine's is F32 \[64\]": {**tensors, head: tensors[head][:32].clone()},
        rf"tensor {head} is BF16 \[64\]": {**tensors, head: tensors[head].bfloat16()},
        r"tensor more is F32 \[1\], the engine's is absent; publish the policy": {**tensors, "more": torch.zeros(1)},
    }
    for version, (message, published) in enumerate(broken.items(), 1):
        handle = publish_weights(published.items(), version, tmp_path)
        with pytest.raises(AffectError, match=message):
            asyncio.run(engine.update_weights(handle))
    file = Path(handle.path) / WEIGHTS
    file.write_bytes(b"not tensors")
    with pytest.raises(AffectError, match="cannot be read as published weights"):
        asyncio.run(engine.update_weights(handle))
    file.unlink()
    with pytest.raises(AffectError, match=r"no such file on this node; .* set rollout\.weights_dir to a directory"):
        asyncio.run(engine.update_weights(handle))
    assert engine.version == 0
    prompts = make_prompts(policy, 8)
    assert gap(policy, prompts, asyncio.run(answer_all(engine, prompts))) < 1e-4


def test_another_tokenizer_of_the_same_size_is_refused(
    policy: AffectPolicy, policy_dir: Path, tmp_path: Path, start: Callable[..., RolloutEngine]
) -> None:
    """As each save of the same one is not: transformers writes its settings as it sees fit."""
    engine = start(policy_dir)
    assert asyncio.run(engine.update_weights(stored_weights(AffectPolicy.load(policy_dir).save(tmp_path / "same"), 1)))
    other = perturbed(deepcopy(policy), 0.05)
    other.tokenizer = train_tokenizer(["quite other words of the same number"] * 9, len(policy.tokenizer))
    other.save(tmp_path / "other")
    with pytest.raises(AffectError, match=r"has another tokenizer\.json than the policy that the engine was"):
        asyncio.run(engine.update_weights(stored_weights(tmp_path / "other", 2)))
    assert engine.version == 1
    prompts = make_prompts(policy, 8)
    assert gap(policy, prompts, asyncio.run(answer_all(engine, prompts))) < 1e-4


def test_the_checksum_sees_one_changed_number(
    policy: AffectPolicy, policy_dir: Path, tmp_path: Path, start: Callable[..., RolloutEngine]
) -> None:
    """In a packed projection, in the tied head, and in a feature statistic."""
    engine = start(policy_dir)
    truth = {name: tensor for name, tensor in policy.export() if not name.startswith("value_head")}
    lm = "language_model.model"
    names = (f"{lm}.layers.1.mlp.up_proj.weight", f"{lm}.embed_tokens.weight", "fusion.video.std")
    for version, name in enumerate(names, 1):
        changed = {n: t.detach().clone() for n, t in truth.items()}
        changed[name].view(-1)[3] += 1e-3
        handle = publish_weights(changed.items(), version, tmp_path)
        asyncio.run(engine.update_weights(handle))
        assert engine.checksum() == handle.checksum != multiset_checksum(truth.values())


def test_a_broadcast_does_what_a_file_does_and_one_that_breaks_off_can_be_made_good(
    tmp_path: Path, start: Callable[..., RolloutEngine]
) -> None:
    """The learner is a thread here. After the break an engine rests until a file has made it whole."""
    policy = make_policy()
    engine = start(policy.save(tmp_path / "policy"))
    prompts = make_prompts(policy, 8)
    store = open_store(20)
    meeting = Meeting((LOOPBACK, store.port), members=2, backend="gloo", one_node=True, timeout_s=20)
    with ThreadPoolExecutor() as learner:
        group = learner.submit(CollectiveTransfer, meeting, LOOPBACK, store)
        assert asyncio.run(engine.join_group(meeting, LOOPBACK))
        for version in (1, 2):
            publication = perturbed(policy, 0.02).publication(version)
            publication.count()
            sent = learner.submit(group.result().send, publication.announcement(), publication.buckets())
            assert asyncio.run(engine.receive_weights(publication.announcement())) == version
            sent.result()
            assert engine.checksum() == publication.checksum
            assert gap(policy, prompts, asyncio.run(answer_all(engine, prompts, seed=version))) < 1e-4
        group.result().close()
        publication = perturbed(policy, 0.02).publication(3)

        async def play() -> list[Generation]:
            assert await engine.receive_weights(publication.announcement()) is None
            answers = asyncio.ensure_future(answer_all(engine, prompts))
            await asyncio.sleep(0.3)
            assert engine.stats()["steps"] == steps
            assert await engine.update_weights(handle) == 3
            return await answers

        handle, steps = policy.publish(3, tmp_path), engine.stats()["steps"]
        assert gap(policy, prompts, asyncio.run(play())) < 1e-4
        assert engine.checksum() == handle.checksum
