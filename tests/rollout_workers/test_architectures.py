"""Architectures that vLLM and transformers both know: engine and learner compute the same log-probs.

Tiny random weights in float32, with percepts. Engines run in a process of their own, as they do in training: where vLLM
has no model of its own, it takes transformers' and changes its classes.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_cases import CONTEXT, SETTINGS, answer_all, logprob_gaps, make_prompts, perturbed, wrapped
from transformers import AutoConfig, AutoModelForCausalLM

from affect_rl.errors import AffectError
from affect_rl.policy.adapters import Lora
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.tokens import train_tokenizer
from affect_rl.trajectory import Generation, Prompt
from rollout_workers.vllm.engine import RolloutEngine

pytestmark = pytest.mark.slow

SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 128, "max_position_embeddings": CONTEXT,
}  # fmt: skip
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MULTIPLIERS = {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22}
KINDS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma3_text", "olmo2", "olmo3", "smollm3", "stablelm",
         "phi", "gpt_neox", "glm"),
        SIZES,
    ),
    "gemma2": {**SIZES, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0},
    "granite": {**SIZES, **MULTIPLIERS, "attention_multiplier": 0.1},
    "cohere": {**SIZES, "logit_scale": 0.5},
    "cohere2": {**SIZES, "logit_scale": 0.5},
    "gpt2": GPT2,
    "qwen3_moe": {**SIZES, **EXPERTS},
}  # fmt: skip
"""Caps and scales are so strong that leaving one out shows."""
REFUSED: Mapping[str, Mapping[str, Any]] = {"mixtral": {**SIZES, **EXPERTS}}
"""Those whose weights vLLM expects under other names than transformers gives them."""


@pytest.fixture(scope="module")
def engines() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def answers(policy_dir: Path, prompts: list[Prompt]) -> list[Generation]:
    engine = RolloutEngine(policy_dir, SETTINGS, context=CONTEXT, seed=0)
    try:
        return asyncio.run(answer_all(engine, prompts))
    finally:
        engine.close()


def make(kind: str) -> AffectPolicy:
    tokenizer = train_tokenizer(["so glad to see you again, my friend", "what a terrible, sad day it was"] * 20, 400)
    config = AutoConfig.for_model(kind, **{**KINDS, **REFUSED}[kind], vocab_size=len(tokenizer), bos_token_id=None)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    return wrapped(AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer, noise=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_engine_and_learner_agree(kind: str, engines: ProcessPoolExecutor, tmp_path: Path) -> None:
    policy = make(kind)
    prompts = make_prompts(policy, 12)
    found = engines.submit(answers, policy.save(tmp_path / "policy"), prompts).result(timeout=120)
    loaded = AffectPolicy.load(tmp_path / "policy").eval()
    assert max(gap.max() for gap in logprob_gaps(loaded, prompts, found)) < 1e-4


@pytest.mark.parametrize("kind", ["llama", "olmo2", "smollm3", "cohere", "granite", "gemma2", "glm", "phi3"])
def test_they_agree_with_adapters_as_well(kind: str, engines: ProcessPoolExecutor, tmp_path: Path) -> None:
    make(kind).save(tmp_path / "base")
    policy = AffectPolicy.load(tmp_path / "base").eval()
    policy.add_adapters(Lora(2, 4, "all-linear"))
    perturbed(policy, 0.1)
    prompts = make_prompts(policy, 12)
    found = engines.submit(answers, policy.save(tmp_path / "adapted"), prompts).result(timeout=120)
    assert max(gap.max() for gap in logprob_gaps(policy, prompts, found)) < 1e-4
    with policy.use_adapter(None):
        assert max(gap.max() for gap in logprob_gaps(policy, prompts, found)) > 1e-3, "adapters matter"


@pytest.mark.parametrize("kind", REFUSED)
def test_what_vllm_cannot_load_is_refused_by_name(kind: str, engines: ProcessPoolExecutor, tmp_path: Path) -> None:
    policy_dir = make(kind).save(tmp_path / "policy")
    with pytest.raises(AffectError, match=rf"vLLM cannot serve this policy \(a {kind}\): There is no module"):
        engines.submit(answers, policy_dir, []).result(timeout=120)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_adapters_that_engines_would_not_find_are_refused(kind: str) -> None:
    with pytest.raises(
        AffectError, match=rf"engines take adapters of modules below `model`, those of {kind} lie below"
    ):
        make(kind).add_adapters(Lora(2, 4, "all-linear"))
