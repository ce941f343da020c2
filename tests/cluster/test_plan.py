"""The arithmetic of memory and files, against real policies where they are small enough to be made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affect_rl.config.load import Config, load_config
from affect_rl.errors import AffectError
from affect_rl.policy.adapters import Lora
from affect_rl.policy.model import AffectPolicy
from benchmarks.workload import AUDIO_DIM, VIDEO_DIM, tiny_policy
from cluster.plan import (
    GIB,
    Training,
    activations,
    cached_tokens,
    checkpoint,
    engine_memory,
    exported,
    gradients,
    optimiser,
    rank_memory,
    token_cache,
    training_of,
    weights,
)
from cluster.prospect import Prospect
from cluster.runtime.capacity import Capacity, Node
from cluster.sizes import PolicySizes, policy_sizes, text_config_of

QWEN_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
CARD = 80 * GIB
ROOMY = Capacity("the cluster", (Node(64, 8),))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen") / "config.json"
    path.write_text(json.dumps(QWEN_7B))
    return path


@pytest.fixture(scope="module")
def seven_billion(published: Path) -> PolicySizes:
    model = load_config("configs/gpu.yaml").model
    return policy_sizes(text_config_of(model, published), model, 12, 12)


def gpu(*overrides: str) -> Config:
    return load_config("configs/gpu.yaml", overrides)


def tiny(*overrides: str) -> Config:
    return load_config(
        None,
        [
            "model.tiny={layers: 2, dim: 32, heads: 2, vocabulary: 300}",
            "model.fusion={dim: 16, heads: 2, soft_tokens: 2}",
            *overrides,
        ],
    )


# -- sizes -----------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_published_model(seven_billion: PolicySizes) -> None:
    assert seven_billion.language == 7_615_616_512
    assert seven_billion.adapter == 40_370_176  # rank 16 on all linear layers
    assert not seven_billion.tied
    assert (seven_billion.queries, seven_billion.keys) == (3584, 512)


def test_sizes_are_those_of_a_real_policy(tmp_path: Path) -> None:
    policy = AffectPolicy.load(tiny_policy().save(tmp_path / "policy"))
    config = tiny("model.lora.rank=4")
    text = text_config_of(config.model.model_copy(update={"base": str(tmp_path / "policy")}))
    sizes = policy_sizes(text, config.model, AUDIO_DIM, VIDEO_DIM)
    assert sizes.total == sum(p.numel() for p in policy.parameters())
    assert sizes.fusion == sum(p.numel() for p in policy.fusion.parameters())
    policy.add_adapters(Lora(4, 32, "all-linear"))
    trained = training_of(config, sizes, config.learner).trained
    assert trained == sum(p.numel() for p in policy.parameters() if p.requires_grad)
    # The statistics of the features are no parameters.
    published = policy.publish(1, tmp_path).bytes - 4 * 2 * (AUDIO_DIM + VIDEO_DIM)
    assert exported(config, sizes) == pytest.approx(published, rel=0.02)


def test_a_base_that_is_not_here_needs_its_configuration() -> None:
    with pytest.raises(AffectError, match=r"no configuration of it .*--model-config"):
        text_config_of(gpu().model)


# -- memory ----------------------------------------------------------------------------------------


def test_the_documented_gpu_job_fits_on_80_gib(published: Path) -> None:
    prospect = Prospect.of(gpu(), ROOMY, 80, published)
    assert [*prospect.problems()] == []
    assert all(memory.peak < 0.8 * CARD for memory, _ in prospect.memory.values())


def test_cards_that_are_too_small_are_named_with_what_fills_them(published: Path) -> None:
    found = [*Prospect.of(gpu(), ROOMY, 16, published).problems()]
    assert any(line.startswith("each learner takes") and "GiB of the 16.00 GiB" in line for line in found)
    assert any("KV cache of an engine holds 0 tokens" in line and "rollout.gpu_memory" in line for line in found)


def test_training_all_weights_of_7b_needs_shards(seven_billion: PolicySizes) -> None:
    plain = replace(seven_billion, adapter=0)
    one, three = (
        rank_memory(config, plain, config.learner)
        for config in (gpu("model.lora.rank=0", f"learner.zero_stage={stage}") for stage in (1, 3))
    )
    assert one.peak > CARD > three.peak
    # The reference is a copy of all weights where there are no adapters to switch off.
    assert three.parts["reference"] == 2 * seven_billion.total


def test_a_separate_critic_is_a_second_model_that_trains_in_full(seven_billion: PolicySizes) -> None:
    shared, separate = gpu(), gpu("algorithm.critic.kind=separate")
    more = rank_memory(separate, seven_billion, separate.learner).parts["optimiser"]
    more -= rank_memory(shared, seven_billion, shared.learner).parts["optimiser"]
    assert more == pytest.approx(12 * (seven_billion.total - seven_billion.head) / 4, rel=1e-6)


def test_recomputation_saves_what_design_says(seven_billion: PolicySizes) -> None:
    """A 7B keeps about 7 MB a token, and without recomputation passes of 16,384 tokens need over 100 GB."""
    kept = activations(seven_billion, 16384, 2, base_trains=False, recompute=False)
    assert 100e9 < kept < 125e9
    assert activations(seven_billion, 16384, 2, base_trains=False, recompute=True) < kept / 8


@given(
    st.integers(1, 10**9),
    st.integers(0, 10**9),
    st.sampled_from([2, 4]),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 64),
)
def test_shards_of_all_ranks_are_the_whole(frozen: int, trained: int, element: int, stage: int, workers: int) -> None:
    alone, shared = (Training(frozen + trained, trained, element, stage, n, True) for n in (1, workers))
    for part in (weights, optimiser, gradients):
        assert part(shared) <= part(alone) <= workers * (part(shared) + 1)
    assert checkpoint(shared) == checkpoint(alone)


def test_the_cache_gets_what_the_rest_leaves(seven_billion: PolicySizes) -> None:
    config = gpu()
    memory = engine_memory(config, seven_billion, CARD)
    assert memory.peak == pytest.approx(0.6 * CARD, abs=8)
    assert token_cache(seven_billion, 2) == 2 * 2 * 28 * 512
    room = cached_tokens(config, seven_billion, CARD)
    assert room * token_cache(seven_billion, 2) == pytest.approx(memory.parts["KV cache"], rel=1e-4)
    assert cached_tokens(gpu("rollout.gpu_memory=0.9"), seven_billion, CARD) > 1.7 * room


def test_frozen_agents_have_an_engine_of_their_own(seven_billion: PolicySizes) -> None:
    config = gpu("team.planner={trains: false, policy: start}", "rollout.gpu_memory=0.5")
    both = engine_memory(config, seven_billion, CARD)
    assert both.parts["weights"] > 1.99 * engine_memory(gpu(), seven_billion, CARD).parts["weights"]
    assert both.peak <= CARD


def test_ranks_of_an_engine_divide_the_model_and_the_cache(seven_billion: PolicySizes) -> None:
    config = gpu("rollout.tensor_parallel=2", "rollout.gpus_per_worker=2")
    one, two = (engine_memory(c, seven_billion, CARD).parts["weights"] for c in (gpu(), config))
    assert two == pytest.approx(one / 2, rel=0.02)
    assert cached_tokens(config, seven_billion, CARD) > 2 * cached_tokens(gpu(), seven_billion, CARD)
    # A head of keys is not divided: eight ranks hold each of four heads twice.
    assert token_cache(seven_billion, 2, 8) == token_cache(seven_billion, 2, 4) == token_cache(seven_billion, 2) // 4


def test_on_the_cpu_the_cache_is_as_large_as_it_says() -> None:
    config = tiny("rollout.kv_cache_gib=0.25")
    sizes = policy_sizes(text_config_of(config.model), config.model, 6, 5)
    assert engine_memory(config, sizes, 0).parts["KV cache"] == GIB // 4
