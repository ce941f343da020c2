"""Engines of a special kind: eager, late, dying, repeated; vLLM allows one at a time in a process."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rollout_cases import CONTEXT, SETTINGS, answer_all, logprob_gaps, make_policy, make_prompts

from affect_rl.config.load import load_config
from affect_rl.errors import AffectError
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.tokens import tiny_language_model
from affect_rl.trajectory import Generation, Prompt
from rollout_workers.vllm.engine import EngineError, RolloutEngine
from rollout_workers.worker import RolloutWorker


def test_logprobs_survive_a_placeholder_in_an_answer(
    policy: AffectPolicy, start: Callable[..., RolloutEngine], tmp_path: Path
) -> None:
    """A policy that has not learned better may sample the token that stands for percepts."""
    eager = make_policy()
    embeddings = eager.language_model.get_input_embeddings().weight
    embeddings.data[eager.config.percept_token_id] *= 20
    engine = start(eager.save(tmp_path / "eager"))
    prompts = make_prompts(eager, 24)
    answers = asyncio.run(answer_all(engine, prompts))
    assert any(eager.config.percept_token_id in answer.token_ids for answer in answers)
    assert max(gap.max() for gap in logprob_gaps(eager, prompts, answers)) < 1e-4


def test_a_deadline_names_stage_and_version(policy_dir: Path, start: Callable[..., RolloutEngine]) -> None:
    engine = start(policy_dir, deadline_s=0.2)

    async def ask() -> Generation:
        async with engine.waiting_elsewhere():  # the engine rests, so no answer can come
            return await engine.generate(Prompt((5,), ()), max_tokens=5, temperature=1, seed=0)

    with pytest.raises(EngineError, match=r"no answer within rollout.deadline_s=0.2 under weight version 0"):
        asyncio.run(ask())


def test_death_reaches_all_who_wait(
    policy_dir: Path, policy: AffectPolicy, start: Callable[..., RolloutEngine]
) -> None:
    engine = start(policy_dir)
    engine._engine.apply_model(lambda model: delattr(model.fusion, "moe"))
    prompts = [p for p in make_prompts(policy, 20) if any(percept.fused for percept in p.percepts)]

    async def ask() -> list[Generation | BaseException]:
        calls = [engine.generate(p, max_tokens=5, temperature=1, seed=0) for p in prompts]
        return await asyncio.gather(*calls, return_exceptions=True)

    assert {str(error) for error in asyncio.run(ask())} == {str(engine._death)}
    with pytest.raises(EngineError, match=r"engine died under weight version 0: AttributeError.*moe"):
        asyncio.run(answer_all(engine, prompts))


@pytest.mark.parametrize("threads, steps", [(1, 0), (2, 1), (1, 4)])
def test_same_seed_same_numbers(
    policy_dir: Path, policy: AffectPolicy, start: Callable[..., RolloutEngine], threads: int, steps: int
) -> None:
    """Bit for bit, and in as many steps, whoever asks first and however long the answers from outside take."""
    engine = start(policy_dir, deterministic=True, threads=threads)
    prompts = make_prompts(policy, 24)

    async def dialogue(i: int, chance: random.Random) -> list[Generation]:
        answers = []
        for turn in range(2):
            async with engine.waiting_elsewhere(steps):
                await asyncio.sleep(chance.random() * 0.01)
            token_ids = prompts[i].token_ids + tuple(9 + turn for _ in range(turn))
            prompt = Prompt(token_ids, prompts[i].percepts)
            answers.append(await engine.generate(prompt, max_tokens=5 + i % 7, temperature=1, seed=2 * i + turn))
        return answers

    async def play(seed: int) -> tuple[list[list[Generation]], float]:
        chance, before = random.Random(seed), engine.stats()["steps"]
        order = chance.sample(range(len(prompts)), len(prompts))
        engine.forget()
        played = await asyncio.gather(*(dialogue(i, chance) for i in order))
        answers = [answers for _, answers in sorted(zip(order, played, strict=True), key=lambda pair: pair[0])]
        return answers, engine.stats()["steps"] - before

    assert asyncio.run(play(0)) == asyncio.run(play(1)) == asyncio.run(play(2))


def test_free_answers_are_new_each_time(
    policy_dir: Path, policy: AffectPolicy, start: Callable[..., RolloutEngine]
) -> None:
    """Seeds of requests count with ``deterministic`` only."""
    engine = start(policy_dir, deterministic=False)
    prompts = make_prompts(policy, 8)
    first, second = (asyncio.run(answer_all(engine, prompts)) for _ in range(2))
    assert first != second
    assert max(gap.max() for gap in logprob_gaps(policy, prompts * 2, first + second)) < 1e-4


def test_what_vllm_cannot_run_on_cpu_is_refused(policy: AffectPolicy, policy_dir: Path, tmp_path: Path) -> None:
    model = tiny_language_model(policy.tokenizer, layers=1, dim=64, heads=4, context=CONTEXT, seed=0)
    narrow = AffectPolicy.create(
        model, policy.tokenizer, audio_dim=1, video_dim=1, dim=8, heads=2, soft_tokens=1, experts=2, top_k=1
    ).save(tmp_path / "narrow")
    with pytest.raises(AffectError, match=r"attention heads are 16 wide.*choose model.tiny.dim / model.tiny.heads"):
        RolloutEngine(narrow, SETTINGS, context=CONTEXT, seed=0)
    with pytest.raises(AffectError, match=r"rollout.block_size=16 is not a multiple of 32"):
        RolloutEngine(policy_dir, SETTINGS.model_copy(update={"block_size": 16}), context=CONTEXT, seed=0)
    with pytest.raises(AffectError, match=r"no manifest.json"):
        RolloutEngine(tmp_path, SETTINGS, context=CONTEXT, seed=0)


def test_a_worker_leaves_hashing_to_the_driver(policy_dir: Path, tmp_path: Path) -> None:
    """The driver has hashed the policy once; every engine again, at every start, would read 15 GB of a 7B."""
    copied = shutil.copytree(policy_dir, tmp_path / "copied")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["sha256"]["model.safetensors"] = "other"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AffectError, match=r"content does not match manifest\.json"):
        RolloutEngine(copied, SETTINGS, context=CONTEXT, seed=0)

    config = load_config(None, [f"model.context={CONTEXT}"]).model_copy(update={"rollout": SETTINGS})
    RolloutWorker(config, copied, None).engine.close()
