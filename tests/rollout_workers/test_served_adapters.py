"""Adapters that an engine serves unmerged, beside a learner that has them in PEFT."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rollout_cases import SETTINGS, answer_all, logprob_gaps, make_policy, make_prompts, perturbed, token_batch
from safetensors.torch import load_file, save_file
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from affect_rl.errors import AffectError
from affect_rl.policy.adapters import TEAM, Lora
from affect_rl.policy.checksum import multiset_checksum
from affect_rl.policy.export import Form, export_policy
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.weights import stored_weights
from affect_rl.trajectory import Generation, Prompt
from rollout_workers.vllm.engine import RolloutEngine
from rollout_workers.vllm.model import engine_input

AGENTS = ("planner", "filter")
LORA = Lora(rank=5, alpha=12)  # a rank that no slot has, a scale that is no power of two


@torch.no_grad()
def move_adapters(policy: AffectPolicy, scale: float) -> AffectPolicy:
    for adapter in policy.adapters():
        for tensor in adapter.tensors.values():
            tensor.add_(torch.randn(tensor.shape) * scale)
    return policy.eval()


@pytest.fixture
def adapted(policy_dir: Path) -> AffectPolicy:
    """One adapter for each of two agents, all at random."""
    torch.manual_seed(0)
    policy = AffectPolicy.load(policy_dir)
    policy.add_adapters(LORA, AGENTS)
    return move_adapters(policy, 0.1)


async def ask(engine: RolloutEngine, prompts: list[Prompt], seed: int = 0) -> list[Generation]:
    """Everything at once; the prompts go to the two agents and the base in turn."""
    who = (*AGENTS, None)
    calls = [
        engine.generate(prompt, max_tokens=20, temperature=1.0, seed=seed + i, adapter=who[i % 3])
        for i, prompt in enumerate(prompts)
    ]
    return list(await asyncio.gather(*calls))


def gap(policy: AffectPolicy, prompts: list[Prompt], answers: list[Generation]) -> float:
    """The largest difference between engine and learner, each answer under the adapter that it was asked of."""
    largest = 0.0
    for place, name in enumerate((*AGENTS, None)):
        with policy.use_adapter(name):
            gaps = logprob_gaps(policy, prompts[place::3], answers[place::3])
        largest = max(largest, *(float(part.max()) for part in gaps))
    return largest


def assert_served(policy: AffectPolicy, engine: RolloutEngine) -> None:
    prompts = make_prompts(policy, 12)
    assert gap(policy, prompts, asyncio.run(ask(engine, prompts))) < 1e-5


@pytest.mark.parametrize("tied", [True, False], ids=["tied head", "own head"])
def test_engine_and_learner_agree(tied: bool, tmp_path: Path, start: Callable[..., RolloutEngine]) -> None:
    """Agents and base in one batch, with percepts in the prompts; at the start and after each sync."""
    policy = AffectPolicy.load(make_policy(tied=tied).save(tmp_path / "base"))
    policy.add_adapters(LORA, AGENTS)
    engine = start(move_adapters(policy, 0.1).save(tmp_path / "policy"))
    prompts = make_prompts(policy, 24)
    assert gap(policy, prompts, asyncio.run(ask(engine, prompts))) < 1e-5
    for version in (1, 2, 7):
        handle = perturbed(move_adapters(policy, 0.05), 0.02).publish(version, tmp_path)
        assert asyncio.run(engine.update_weights(handle)) == version
        assert engine.checksum() == handle.checksum
        answers = asyncio.run(ask(engine, prompts, seed=version))
        assert {v for answer in answers for v in answer.weight_versions} == {version}
        assert gap(policy, prompts, answers) < 1e-5
    assert handle.bytes < stored_weights(tmp_path / "base", 0).bytes / 2


def test_an_export_is_served_as_it_stands(
    adapted: AffectPolicy, tmp_path: Path, start: Callable[..., RolloutEngine]
) -> None:
    """With its base in it, and both in shards."""
    (tmp_path / "out").mkdir()
    form = Form(with_base=True, shard_size="50KB")
    export_policy(adapted.save(tmp_path / "policy"), tmp_path / "out", form)
    assert_served(adapted, start(tmp_path / "out"))


def test_prefixes_are_shared_within_an_adapter_only(
    adapted: AffectPolicy, tmp_path: Path, start: Callable[..., RolloutEngine]
) -> None:
    engine = start(adapted.save(tmp_path / "policy"))
    prefix, *tails = make_prompts(adapted, 10)[2:]
    prompts = [Prompt(prefix.token_ids + t.token_ids, prefix.percepts + t.percepts) for t in tails for _ in range(3)]
    for seed in (0, 100):
        assert gap(adapted, prompts, asyncio.run(ask(engine, prompts, seed))) < 1e-5
    assert engine.stats()["cached_tokens"] > 0


def test_requests_in_flight_go_on_under_the_new_adapters(
    adapted: AffectPolicy, tmp_path: Path, start: Callable[..., RolloutEngine]
) -> None:
    engine = start(adapted.save(tmp_path / "old"))
    prompts = make_prompts(adapted, 18)
    new = move_adapters(AffectPolicy.load(tmp_path / "old"), 0.05)
    handle = new.publish(1, tmp_path)

    async def play() -> list[Generation]:
        answers = asyncio.ensure_future(ask(engine, prompts, seed=100))
        while engine.stats()["steps"] < 7:
            await asyncio.sleep(0)
        await engine.update_weights(handle)
        return await answers

    answers = asyncio.run(play())
    assert sum(len(set(answer.weight_versions)) == 2 for answer in answers) > 8
    for place, name in enumerate((*AGENTS, None)):
        mine = slice(place, None, 3)
        with adapted.use_adapter(name), new.use_adapter(name):
            under = [logprob_gaps(policy, prompts[mine], answers[mine]) for policy in (adapted, new)]
        for answer, before, after in zip(answers[mine], *under, strict=True):
            versions = np.array(answer.weight_versions)
            assert before[versions == 0].max(initial=0) < 1e-5
            assert after[versions == 1].max(initial=0) < 1e-5


def test_an_engine_takes_any_policy(adapted: AffectPolicy, tmp_path: Path) -> None:
    """Plain ones, and adapters on another base: engines outlive the jobs that they were started for."""
    other = perturbed(make_policy(tied=True), 0.05)
    plain = other.save(tmp_path / "plain")
    elsewhere = AffectPolicy.load(plain)
    elsewhere.add_adapters(LORA)
    stacked = move_adapters(elsewhere, 0.1).save(tmp_path / "stacked")
    engine = RolloutEngine(plain, SETTINGS, context=256, seed=0, lora=LORA, adapters=2)
    try:
        prompts = make_prompts(other, 24)
        for version, directory in enumerate((stacked, adapted.save(tmp_path / "adapted"), plain, stacked), 1):
            asyncio.run(engine.update_weights(stored_weights(directory, version)))
            truth = AffectPolicy.load(directory).eval()
            assert engine.checksum() == truth.publish(version, tmp_path).checksum
            if set(truth.adapter_names) == set(AGENTS):
                assert gap(truth, prompts, asyncio.run(ask(engine, prompts))) < 1e-5
                continue
            answers = asyncio.run(answer_all(engine, prompts))
            assert max(float(part.max()) for part in logprob_gaps(truth, prompts, answers)) < 1e-5
        with pytest.raises(AffectError, match=r"adapter 'planner': the policy has no such adapter \(it has: team\)"):
            asyncio.run(engine.generate(prompts[0], max_tokens=1, temperature=1.0, seed=0, adapter="planner"))
    finally:
        engine.close()


def test_what_does_not_fit_leaves_the_engine_as_it_was(
    adapted: AffectPolicy, policy_dir: Path, tmp_path: Path, start: Callable[..., RolloutEngine]
) -> None:
    engine = start(policy_dir)
    directory = adapted.save(tmp_path / "policy")
    with pytest.raises(
        AffectError, match=r"has 2 adapters, the engine was started for 0; start it with the model.lora"
    ):
        asyncio.run(engine.update_weights(stored_weights(directory, 1)))
    assert engine.version == 0
    assert engine.checksum() == multiset_checksum(
        t for n, t in AffectPolicy.load(policy_dir).export() if not n.startswith("value_head")
    )


@pytest.mark.parametrize(
    ("lora", "fault"),
    [
        (Lora(rank=16, alpha=12), "LoRA rank 16 is greater than max_lora_rank 8"),
        (Lora(5, 12, ("q_proj", "o_proj")), "It changes o_proj, for which the engine has no slots"),
    ],
)
def test_adapters_of_another_shape_leave_the_engine_as_it_was(
    lora: Lora, fault: str, policy_dir: Path, tmp_path: Path, start: Callable[..., RolloutEngine]
) -> None:
    policy, other = AffectPolicy.load(policy_dir), AffectPolicy.load(policy_dir)
    policy.add_adapters(Lora(5, 12, ("q_proj", "down_proj")), AGENTS)
    engine = start(move_adapters(policy, 0.1).save(tmp_path / "policy"))
    other.add_adapters(lora, AGENTS)
    perturbed(move_adapters(other, 0.1), 0.05).save(tmp_path / "other")
    publication = other.publication(1)
    for send in (
        engine.update_weights(stored_weights(tmp_path / "other", 1)),
        engine.receive_weights(publication.announcement()),
    ):
        with pytest.raises(AffectError, match=rf"cannot serve adapter (filter|planner): {fault}.* start it with"):
            asyncio.run(send)
    assert engine.version == 0 and not engine.torn
    assert_served(policy, engine)


def test_nothing_plays_on_adapters_that_did_not_load(
    adapted: AffectPolicy, tmp_path: Path, start: Callable[..., RolloutEngine]
) -> None:
    """Their names, ranks and layers are right, and a tensor is not; the modules before them are new already."""
    engine = start(adapted.save(tmp_path / "policy"))
    new = perturbed(move_adapters(AffectPolicy.load(tmp_path / "policy"), 0.05), 0.05)
    file = new.save(tmp_path / "broken") / "adapters" / "planner" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors |= {name: torch.cat([t, t], dim=1) for name, t in tensors.items() if "q_proj.lora_A" in name}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RuntimeError):
        asyncio.run(engine.update_weights(stored_weights(tmp_path / "broken", 1)))
    assert engine.torn and engine.version == 0
    prompts, handle, steps = make_prompts(adapted, 12), new.publish(2, tmp_path), engine.stats()["steps"]

    async def play() -> list[Generation]:
        answers = asyncio.ensure_future(ask(engine, prompts))
        await asyncio.sleep(0.3)
        assert engine.stats()["steps"] == steps
        assert await engine.update_weights(handle) == 2
        return await answers

    assert gap(new, prompts, asyncio.run(play())) < 1e-5
    assert not engine.torn


def test_the_checksum_sees_one_changed_number(
    adapted: AffectPolicy, tmp_path: Path, start: Callable[..., RolloutEngine]
) -> None:
    engine = start(adapted.save(tmp_path / "policy"))
    sums = {engine.checksum()}
    for part in ("lora_A", "lora_B"):
        name = next(name for name in adapted.adapters()[1].tensors if f"v_proj.{part}" in name)
        adapted.adapters()[1].tensors[name].data.view(-1)[3] += 1e-3
        handle = adapted.publish(len(sums), tmp_path)
        asyncio.run(engine.update_weights(handle))
        sums.add(engine.checksum())
        assert engine.checksum() == handle.checksum
    assert len(sums) == 3


# -- what was learned is what is served ----------------------------------------------------------


def engine_logprobs(engine: RolloutEngine, prompts: list[Prompt], answers: list[Generation]) -> np.ndarray:
    """The engine's log-probs of given answers, all in a row."""
    params = SamplingParams(
        max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, seed=0
    )
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        whole = engine_input(Prompt(prompt.token_ids + answer.token_ids, prompt.percepts), engine.policy_config)
        engine._engine.add_request(str(i), whole, params, lora_request=engine._lora_request(TEAM))
    outputs = {}
    while engine._engine.has_unfinished_requests():
        outputs |= {int(output.request_id): output for output in engine._engine.step()}
    return np.array(
        [
            outputs[i].prompt_logprobs[len(prompt.token_ids) + place][token].logprob
            for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            for place, token in enumerate(answer.token_ids)
        ]
    )


@torch.no_grad()
def learner_logprobs(policy: AffectPolicy, prompts: list[Prompt], answers: list[Generation]) -> np.ndarray:
    return policy(token_batch(prompts, answers)).logprobs.float().numpy()


def test_adapters_are_what_was_learned(tmp_path: Path, start: Callable[..., RolloutEngine]) -> None:
    """bfloat16, rank 16, learning rate 1e-5: engine and learner stay as near as they were. Merged they do not."""
    torch.manual_seed(1)
    whole = make_policy(noise=0.0).save(tmp_path / "float32")
    base = AffectPolicy.load(whole, dtype=torch.bfloat16).save(tmp_path / "base")
    policy = AffectPolicy.load(base).eval()
    policy.add_adapters(Lora(rank=16, alpha=32))
    engine = start(policy.save(tmp_path / "start"))
    prompts = make_prompts(policy, 64)
    answers = asyncio.run(answer_all(engine, prompts, max_tokens=40))
    kept = [i for i, answer in enumerate(answers) if policy.config.percept_token_id not in answer.token_ids]
    prompts, answers = [prompts[i] for i in kept], [answers[i] for i in kept]
    lesson = token_batch(prompts[:4], answers[:4])
    optimizer = torch.optim.AdamW(policy.parameter_groups()[TEAM], lr=1e-5, weight_decay=0.0)
    apart, lost, moved = {}, {}, {}
    for step in range(21):
        if step in (0, 4, 20):
            asyncio.run(engine.update_weights(handle := policy.publish(step + 1, tmp_path)))
            assert engine.checksum() == handle.checksum
            difference = engine_logprobs(engine, prompts, answers) - learner_logprobs(policy, prompts, answers)
            apart[step] = float(np.abs(difference).mean())
            # What merging loses, seen apart from the noise of bfloat16: the same numbers computed in float32.
            kinds = {"apart": None, "merged": TEAM}
            saved = {kind: policy.save(tmp_path / f"{kind}-{step}", merge=merge) for kind, merge in kinds.items()}
            exact, merged, plain = (
                learner_logprobs(AffectPolicy.load(path, dtype=torch.float32).eval(), prompts, answers)
                for path in (saved["apart"], saved["merged"], base)
            )
            lost[step], moved[step] = float(np.abs(merged - exact).mean()), float(np.abs(exact - plain).mean())
        optimizer.zero_grad()
        (-policy(lesson).logprobs.mean()).backward()
        optimizer.step()
    print({"engine - learner": apart, "merged - unmerged": lost, "unmerged - base": moved})
    for step in (4, 20):
        assert apart[step] < apart[0] * 1.05
        assert lost[step] > moved[step] / 2  # noise of rounding in the place of most of the step
