"""The policy: directories that load bit-equal, one forward for any batch, adapters and the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from affect_rl.algorithms.batching import TokenSequence, collate, rows_of, turns_to_sequences
from affect_rl.errors import AffectError
from affect_rl.policy.adapters import TEAM, Lora
from affect_rl.policy.batches import PolicyOutput, TokenBatch
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.reference import Reference
from benchmarks.workload import random_episodes, tiny_policy, with_common_prefix


@pytest.fixture
def policy() -> AffectPolicy:
    return tiny_policy()


@pytest.fixture(scope="module")
def sequences() -> list[TokenSequence]:
    return turns_to_sequences(e.turns for e in random_episodes(tiny_policy(), 3))


def logprobs(policy: AffectPolicy | Reference, sequences: list[TokenSequence], temperature: float = 1.0) -> Tensor:
    model = policy if isinstance(policy, AffectPolicy) else None
    shape = (model or tiny_policy()).fusion.shape
    batch = collate(rows_of(sequences), range(len(sequences)), shape, pad_id=0).tokens
    with torch.no_grad():
        return policy(batch, temperature).logprobs if model else policy.logprobs(batch, temperature)


def shake(module: torch.nn.Module, seed: int = 1) -> None:
    """Move every trainable parameter, as an optimiser step would."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))


def test_save_and_load_are_bit_equal(policy: AffectPolicy, sequences: list[TokenSequence], tmp_path: Path) -> None:
    policy.fusion.fit_scale([torch.randn(9, 6).numpy()], [torch.randn(9, 5).numpy()])
    again = AffectPolicy.load(policy.save(tmp_path / "policy")).eval()
    assert not (tmp_path / "policy.partial").exists()
    state, loaded = policy.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[name], loaded[name]) for name in state)
    assert torch.equal(logprobs(policy, sequences), logprobs(again, sequences))
    assert again.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    fusion = AffectPolicy.load_fusion(tmp_path / "policy").state_dict()
    assert fusion.keys() == policy.fusion.state_dict().keys()
    assert all(torch.equal(fusion[name], tensor) for name, tensor in policy.fusion.state_dict().items())
    twice = again.save(tmp_path / "twice") / "model.safetensors"
    assert twice.read_bytes() == (tmp_path / "policy" / "model.safetensors").read_bytes()


def rotary(policy: AffectPolicy) -> Tensor:
    return policy.language_model.get_buffer("model.rotary_emb.inv_freq")


def test_bfloat16_spares_the_rotary_frequencies(policy: AffectPolicy, tmp_path: Path) -> None:
    """Rounded ones would turn late positions by radians against the engine, which computes them in float32."""
    model = AutoModelForCausalLM.from_config(policy.config.text_config, dtype=torch.bfloat16)
    sizes = {"audio_dim": 6, "video_dim": 5, "dim": 16, "heads": 2, "soft_tokens": 2, "experts": 4, "top_k": 2}
    created = AffectPolicy.create(model, policy.tokenizer, **sizes)
    rounded = AffectPolicy.load(policy.save(tmp_path / "float32"), dtype=torch.bfloat16)
    again = AffectPolicy.load(rounded.save(tmp_path / "bfloat16"))
    for coarse in (created, rounded, again):
        assert {p.dtype for n, p in coarse.named_parameters() if "value_head" not in n} == {torch.bfloat16}
        assert rotary(coarse).dtype == torch.float32
        assert torch.equal(rotary(coarse), rotary(policy))


def test_the_value_head_is_float32_whatever_the_policy_is(policy: AffectPolicy, tmp_path: Path) -> None:
    rounded = AffectPolicy.load(policy.save(tmp_path / "float32"), dtype=torch.bfloat16)
    again = AffectPolicy.load(rounded.save(tmp_path / "bfloat16"))
    for coarse in (rounded, again):
        assert torch.equal(coarse.value_head.weight, policy.value_head.weight)
    assert not torch.equal(policy.value_head.weight, policy.value_head.weight.bfloat16().float())


class RandomNumbers(TorchDispatchMode):
    """Counts the random numbers that are written to real memory."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and not out.is_meta:
            self.count += out.numel()
        return out


def test_loading_makes_no_random_language_model(policy: AffectPolicy, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy")
    with RandomNumbers() as made:
        AutoModelForCausalLM.from_config(policy.config.text_config)
    assert made.count > 10_000
    with RandomNumbers() as made:
        AffectPolicy.load(tmp_path / "policy")
    parts = [*policy.fusion.parameters(), *policy.value_head.parameters()]
    assert 0 < made.count <= sum(p.numel() for p in parts)


def test_files_that_were_hashed_once_are_not_hashed_again(policy: AffectPolicy, tmp_path: Path) -> None:
    directory = policy.save(tmp_path / "policy")
    with (directory / "tokenizer_config.json").open("a") as file:
        file.write("\n")
    AffectPolicy.load(directory, verify=False)
    (directory / "tokenizer_config.json").unlink()
    with pytest.raises(AffectError, match=r"tokenizer_config\.json is missing"):
        AffectPolicy.load(directory, verify=False)


def test_save_replaces_what_a_killed_run_left(policy: AffectPolicy, tmp_path: Path) -> None:
    (tmp_path / "policy.partial").mkdir()
    (tmp_path / "policy.partial" / "junk").write_text("half a file")
    policy.save(tmp_path / "policy")
    assert not (tmp_path / "policy" / "junk").exists()


def test_rows_do_not_depend_on_their_batch(policy: AffectPolicy, sequences: list[TokenSequence]) -> None:
    together = logprobs(policy, sequences).split([s.answer_tokens for s in sequences])
    for sequence, expected in zip(sequences, together, strict=True):
        torch.testing.assert_close(logprobs(policy, [sequence]), expected, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("base", ["plain", "with adapters", "recomputed"])
def test_rows_that_share_their_beginning_give_the_same_numbers_and_gradients(
    policy: AffectPolicy, base: str, tmp_path: Path
) -> None:
    if base == "with adapters":
        policy.save(tmp_path / "base")
        policy.add_adapters(Lora(2, 4, "all-linear"))
        shake(policy)
    elif base == "recomputed":
        policy.checkpoint_activations()
    episodes = with_common_prefix(policy, random_episodes(policy, 4, rounds=2))
    sequences = turns_to_sequences(e.turns for e in episodes)
    found = []
    for widest in (0, 1000):
        rows = rows_of(sequences, widest=widest)
        batch = collate(rows, range(len(rows)), policy.fusion.shape, pad_id=0)
        policy.zero_grad()
        output = policy(batch.tokens, 0.7, entropies=True, values=True)
        numbers = torch.empty(3, len(batch.places))
        numbers[:, batch.places] = torch.stack([output.logprobs, output.entropies, output.values])
        numbers.sin().sum().backward()
        found.append(
            (numbers.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None})
        )
    assert [len(row.sequences) for row in rows] == [3] * 4
    assert sum(row.width for row in rows) < 0.8 * sum(map(len, sequences))
    (numbers, gradients), (others, other_gradients) = found
    torch.testing.assert_close(others, numbers, atol=2e-6, rtol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, atol=2e-5, rtol=1e-3)


def test_values_come_from_the_state_before_the_token(policy: AffectPolicy, sequences: list[TokenSequence]) -> None:
    one = sequences[0]
    other = replace(one, token_ids=(*one.token_ids[:-1], one.token_ids[-1] ^ 1))
    batches = [collate(rows_of([s]), [0], policy.fusion.shape, 0).tokens for s in (one, other)]
    with torch.no_grad():
        first, second = (policy(batch, values=True) for batch in batches)
    # A value that saw its own token would tell the critic what the policy is about to do.
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.logprobs[:-1], second.logprobs[:-1])
    assert first.logprobs[-1] != second.logprobs[-1]


def test_forward_against_plain_log_softmax(policy: AffectPolicy, sequences: list[TokenSequence]) -> None:
    one = sequences[0]
    batch = collate(rows_of([one]), [0], policy.fusion.shape, 0).tokens
    with torch.no_grad():
        output = policy(batch, temperature=0.7, entropies=True, greedy=True)
        embeddings = policy.language_model.get_input_embeddings()(batch.input_ids)
        embeddings[batch.input_ids == policy.config.percept_token_id] = policy.fusion(batch.percepts).tokens[0]
        logits = policy.language_model(inputs_embeds=embeddings).logits[0] / 0.7
    start, answer = len(one.prompt), list(one.token_ids[len(one.prompt) :])
    distribution = logits[start - 1 : start - 1 + len(answer)].log_softmax(-1)
    picked = distribution[range(len(answer)), answer]
    torch.testing.assert_close(output.logprobs, picked, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.entropies, torch.distributions.Categorical(logits=distribution).entropy())
    assert output.greedy.tolist() == (distribution.argmax(-1) == torch.tensor(answer)).tolist()


ALL = {"logprobs": True, "entropies": True, "values": True, "greedy": True}


def untie(policy: AffectPolicy) -> None:
    model = policy.language_model
    model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    policy.head.weight = torch.nn.Parameter(policy.head.weight.detach() + 0.01)


def gradients(policy: AffectPolicy, batch: TokenBatch, temperature: Tensor) -> tuple[PolicyOutput, dict[str, Tensor]]:
    policy.zero_grad()
    output = policy(batch, temperature, **ALL)
    weights = torch.linspace(-1, 1, len(output.logprobs))
    (weights @ output.logprobs + weights.flip(0) @ output.entropies + output.values.square().sum()).backward()
    return output, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("change", [None, untie, lambda policy: policy.add_adapters(Lora(rank=2))])
def test_chunks_and_recomputation_change_no_number(
    policy: AffectPolicy,
    sequences: list[TokenSequence],
    change: Callable[[AffectPolicy], None] | None,
    rows: int,
) -> None:
    if change:
        change(policy)
    shake(policy)
    batch = collate(rows_of(sequences), range(len(sequences)), policy.fusion.shape, 0).tokens
    temperature = torch.rand(int(batch.response_mask.sum())) + 0.5
    whole, expected = gradients(policy, batch, temperature)
    policy.chunk_logits = rows * policy.config.text_config.vocab_size
    policy.checkpoint_activations()
    chunked, got = gradients(policy, batch, temperature)
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-4, rtol=1e-4)


def test_several_answers_of_a_row_have_each_their_temperature(
    policy: AffectPolicy, sequences: list[TokenSequence]
) -> None:
    """Against float64 log-softmax of the language model's own logits."""
    batch = collate(rows_of(sequences[:2]), [0, 1], policy.fusion.shape, 0).tokens
    mask = torch.zeros_like(batch.response_mask)
    mask[0, 6:8], mask[0, 10:12], mask[1, 7] = True, True, True
    batch = batch._replace(response_mask=mask)
    temperature = torch.tensor([0.5, 0.5, 1.0, 1.5, 2.0])
    with torch.no_grad():
        output = policy(batch, temperature, **ALL)
        embeddings = policy.language_model.get_input_embeddings()(batch.input_ids)
        places = (batch.input_ids == policy.config.percept_token_id) & ~mask
        embeddings = embeddings.masked_scatter(places[..., None], policy.fusion(batch.percepts).tokens)
        logits = policy.language_model(inputs_embeds=embeddings).logits.double()
    rows, columns = mask.nonzero(as_tuple=True)
    expected = (logits[rows, columns - 1] / temperature[:, None]).log_softmax(-1)
    tokens = batch.input_ids[mask]
    torch.testing.assert_close(output.logprobs.double(), expected[range(5), tokens], atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(output.entropies.double(), -(expected.exp() * expected).sum(-1), atol=1e-5, rtol=0)


def test_only_what_is_asked_for_is_computed(policy: AffectPolicy, sequences: list[TokenSequence]) -> None:
    batch = collate(rows_of(sequences), [0, 1], policy.fusion.shape, 0).tokens
    untie(policy)
    output = policy(batch, logprobs=False, values=True)
    assert (output.logprobs, output.entropies, output.greedy) == (None, None, None)
    output.values.sum().backward()
    assert policy.head.weight.grad is None
    plain = policy(batch)
    assert (plain.values, plain.entropies, plain.greedy) == (None, None, None)


@pytest.mark.parametrize("rank", [0, 2])
def test_recomputation_keeps_a_fraction_for_the_way_back(
    policy: AffectPolicy, sequences: list[TokenSequence], rank: int
) -> None:
    if rank:
        policy.add_adapters(Lora(rank=rank))
    batch = collate(rows_of(sequences), range(len(sequences)), policy.fusion.shape, 0).tokens

    def kept(chunk_logits: int) -> int:
        """Numbers that the graph of a pass holds."""
        policy.chunk_logits = chunk_logits
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = policy(batch, entropies=True)
        parameters = {p.untyped_storage().data_ptr() for p in policy.parameters()}
        assert output.logprobs.requires_grad
        return sum(size for place, size in sizes.items() if place not in parameters)

    whole = kept(2**25)
    policy.checkpoint_activations()
    assert kept(8 * policy.config.text_config.vocab_size) < whole / 3


def test_recomputation_leaves_dropout_off(policy: AffectPolicy) -> None:
    policy.checkpoint_activations()
    inside = [m for m in policy.modules() if m.training]
    assert len(inside) == policy.config.text_config.num_hidden_layers
    assert not any(child.training for block in inside for child in block.children())


def test_export_merges_adapters(policy: AffectPolicy, sequences: list[TokenSequence], tmp_path: Path) -> None:
    names = [name for name, _ in policy.export()]
    plain = logprobs(policy, sequences)
    policy.add_adapters(Lora(rank=4, alpha=8))
    assert torch.equal(logprobs(policy, sequences), plain)  # adapters start at zero
    shake(policy)
    assert [name for name, _ in policy.export(merge=TEAM)] == names
    merged = AffectPolicy.load(policy.save(tmp_path / "merged", merge=TEAM)).eval()
    assert not merged.has_adapters
    assert not torch.allclose(logprobs(merged, sequences), plain, atol=1e-3)
    torch.testing.assert_close(logprobs(merged, sequences), logprobs(policy, sequences), atol=1e-5, rtol=0)


def test_adapters_freeze_the_language_model_only(policy: AffectPolicy) -> None:
    policy.add_adapters(Lora(rank=2))
    frozen = {name for name, p in policy.named_parameters() if not p.requires_grad}
    assert all(name.startswith("language_model.") and ".lora_" not in name for name in frozen)
    assert all(p.requires_grad for p in policy.fusion.parameters())


@pytest.mark.parametrize("rank", [0, 4])
def test_the_reference_stays_where_it_was(policy: AffectPolicy, sequences: list[TokenSequence], rank: int) -> None:
    if rank:
        policy.add_adapters(Lora(rank=rank))
    reference, before = Reference(policy), logprobs(policy, sequences)
    assert torch.equal(logprobs(reference, sequences), before)
    shake(policy.fusion)
    shake(policy)
    assert not torch.allclose(logprobs(policy, sequences), before, atol=1e-3)
    assert torch.equal(logprobs(reference, sequences), before)
    trained = policy.fusion
    assert all(p.requires_grad for p in trained.parameters())


def test_tied_embeddings_are_exported_once(policy: AffectPolicy) -> None:
    names = [name for name, _ in policy.export()]
    assert len(names) == len(set(names))
    assert "language_model.lm_head.weight" not in names or "language_model.model.embed_tokens.weight" not in names


def corrupt(directory: Path) -> None:
    content = bytearray((directory / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (directory / "model.safetensors").write_bytes(content)


def drop_manifest(directory: Path) -> None:
    (directory / "manifest.json").unlink()


def drop_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def foreign_shape(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["fusion"]["experts"] = 3
    (directory / "config.json").write_text(json.dumps(config))
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["sha256"]["config.json"]
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_manifest, "no manifest.json, so this is no policy directory; make one with `affect-rl sft`"),
        (drop_weights, "model.safetensors is missing; copy the policy directory again, whole"),
        (corrupt, "content does not match manifest.json; copy the policy directory again"),
        (foreign_shape, "weights do not fit config.json"),
    ],
)
def test_damaged_directories_are_errors(policy: AffectPolicy, tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    directory = policy.save(tmp_path / "policy")
    damage(directory)
    with pytest.raises(AffectError, match=message):
        AffectPolicy.load(directory)
