"""Adapters on a policy: used one at a time, saved beside their base, merged on request."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from affect_rl.errors import AffectError
from affect_rl.policy.adapters import TEAM, Lora
from affect_rl.policy.batches import TokenBatch
from affect_rl.policy.fusion import collate_percepts
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.reference import Reference
from affect_rl.trajectory import Percept
from benchmarks.workload import AUDIO_DIM, VIDEO_DIM, tiny_policy

AGENTS = ("planner", "filter", "generator")
LORA = Lora(rank=4, alpha=10)


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(dim=64).save(tmp_path_factory.mktemp("run") / "sft")


@pytest.fixture
def adapted(base_dir: Path) -> AffectPolicy:
    """An adapter for each agent, all moved."""
    return with_adapters(base_dir)


@torch.no_grad()
def with_adapters(base_dir: Path, names: tuple[str, ...] = AGENTS, dtype: torch.dtype | None = None) -> AffectPolicy:
    torch.manual_seed(0)
    policy = AffectPolicy.load(base_dir, dtype=dtype).eval()
    policy.add_adapters(LORA, names)
    for adapter in policy.adapters():
        for tensor in adapter.tensors.values():
            tensor.add_(torch.randn(tensor.shape) * 0.05)
    return policy


def batch() -> TokenBatch:
    ids = torch.arange(3, 27).reshape(2, 12)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 6:] = True
    return TokenBatch(ids, mask, collate_percepts([], AUDIO_DIM, VIDEO_DIM))


def perceived(policy: AffectPolicy) -> TokenBatch:
    """The same behind a percept each."""
    plain, rng = batch(), np.random.default_rng(0)
    soft = torch.full((2, policy.fusion.shape.tokens), policy.config.percept_token_id)
    shown = [
        Percept(*(rng.normal(size=(3, dim)).astype(np.float32) for dim in (AUDIO_DIM, VIDEO_DIM))) for _ in range(2)
    ]
    ids, mask = torch.cat([soft, plain.input_ids], dim=1), torch.cat([soft < 0, plain.response_mask], dim=1)
    return TokenBatch(ids, mask, collate_percepts(shown, AUDIO_DIM, VIDEO_DIM))


def logprobs(policy: AffectPolicy | Reference, adapter: str | None = TEAM) -> Tensor:
    with torch.no_grad():
        if isinstance(policy, Reference):
            return policy.logprobs(batch())
        with policy.use_adapter(adapter):
            return policy(batch()).logprobs


def state(policy: AffectPolicy, name: str) -> dict[str, Tensor]:
    (adapter,) = (a for a in policy.adapters() if a.name == name)
    return {key: tensor.detach().clone() for key, tensor in adapter.tensors.items()}


def test_each_name_is_a_policy_of_its_own(adapted: AffectPolicy, base_dir: Path) -> None:
    said = [logprobs(adapted, name) for name in (*AGENTS, None)]
    assert all(not torch.allclose(a, b, atol=1e-4) for i, a in enumerate(said) for b in said[:i])
    assert torch.equal(said[-1], logprobs(AffectPolicy.load(base_dir).eval(), None))
    with pytest.raises(AffectError, match=r"no such adapter \(it has: planner, filter, generator\)"):
        logprobs(adapted, "critic")


def test_only_the_adapter_in_use_gets_gradients(adapted: AffectPolicy) -> None:
    """The others keep `requires_grad`, also behind a pass of the reference, which uses none."""
    reference = Reference(adapted)
    with adapted.use_adapter("filter"):
        reference.logprobs(batch())
        adapted(batch()).logprobs.sum().backward()
    for adapter in adapted.adapters():
        assert all(p.requires_grad for p in adapter.tensors.values())
        assert all((p.grad is not None) == (adapter.name == "filter") for p in adapter.tensors.values())


def test_the_reference_of_a_policy_that_goes_on_is_its_base(base_dir: Path, tmp_path: Path) -> None:
    """Its fusion modules too, which train with the adapters; in the type that the run computes in."""
    trained = with_adapters(base_dir)
    with torch.no_grad():
        for parameter in trained.fusion.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    directory = trained.save(tmp_path / "trained")
    base = AffectPolicy.load(base_dir).eval()
    seen = perceived(base)
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            expected = AffectPolicy.load(base_dir, dtype=dtype).eval()(seen).logprobs
            policy = AffectPolicy.load(directory, dtype=dtype).eval()
            assert torch.equal(Reference(policy).logprobs(seen), expected)
            with policy.use_adapter(None):
                assert not torch.allclose(policy(seen).logprobs, expected, atol=1e-2)


def test_an_adapter_stays_where_it_is_while_others_train(adapted: AffectPolicy) -> None:
    """Bit for bit, after it has gathered momentum: with a learning rate of 0, whatever gradient and decay are."""
    groups = adapted.parameter_groups()
    optimizer = torch.optim.AdamW([{"params": p} for p in groups.values()], lr=1e-2, weight_decay=0.1)

    def train(name: str, zeros: bool) -> None:
        for group, owner in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = 1e-2 if owner in ("", name) else 0.0
        optimizer.zero_grad()
        with adapted.use_adapter(name):
            adapted(batch()).logprobs.sum().backward()
        for parameter in groups["planner"]:
            if zeros and parameter.grad is None:  # what ZeRO hands to the optimiser
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()

    train("planner", zeros=False)
    before, other = state(adapted, "planner"), state(adapted, "filter")
    for zeros in (False, True, True):
        train("filter", zeros)
    after = state(adapted, "planner")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(torch.equal(other[name], tensor) for name, tensor in state(adapted, "filter").items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_are_bit_equal(base_dir: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    policy = with_adapters(base_dir, dtype=dtype)
    again = AffectPolicy.load(policy.save(tmp_path / "policy")).eval()
    assert set(again.adapter_names) == set(AGENTS)
    for name in AGENTS:
        assert all(torch.equal(t, state(again, name)[key]) for key, t in state(policy, name).items())
        assert torch.equal(logprobs(policy, name), logprobs(again, name))
    assert again.save(tmp_path / "again").joinpath("manifest.json").read_text() == (
        (tmp_path / "policy" / "manifest.json").read_text()
    )
    files = {str(p.relative_to(tmp_path / "policy")) for p in (tmp_path / "policy").rglob("*.safetensors")}
    assert files == {"model.safetensors", *(f"adapters/{name}/adapter_model.safetensors" for name in AGENTS)}


def test_peft_reads_what_is_saved(adapted: AffectPolicy, base_dir: Path, tmp_path: Path) -> None:
    adapted.save(tmp_path / "policy")
    plain = AffectPolicy.load(base_dir).eval()
    plain.language_model = PeftModel.from_pretrained(plain.language_model, tmp_path / "policy" / "adapters" / "filter")
    with torch.no_grad():
        assert torch.equal(plain(batch()).logprobs, logprobs(adapted, "filter"))


def test_merging_rounds_once(base_dir: Path, tmp_path: Path) -> None:
    policy = with_adapters(base_dir, (TEAM,), torch.bfloat16)
    layer = policy.language_model.get_base_model().model.layers[1].mlp.up_proj
    a, b = (part[TEAM].weight.double() for part in (layer.lora_A, layer.lora_B))
    expected = (layer.base_layer.weight.double() + 2.5 * b @ a).to(torch.bfloat16)
    merged = AffectPolicy.load(policy.save(tmp_path / "merged", merge=TEAM)).eval()
    assert not merged.has_adapters
    found = merged.language_model.model.layers[1].mlp.up_proj.weight
    assert (found != expected).float().mean() < 1e-2  # a double may round another way than a float32
    policy.merge()
    assert all(torch.equal(p, q) for p, q in zip(policy.parameters(), merged.parameters(), strict=True))
    assert all(p.requires_grad for p in policy.parameters())


def test_a_base_is_found_again(adapted: AffectPolicy, base_dir: Path, tmp_path: Path) -> None:
    """Where a run directory is moved whole, and where a policy is copied within one."""
    run = tmp_path / "run"
    shutil.copytree(base_dir, run / "sft")
    own = with_adapters(run / "sft")
    own.save(run / "policies" / "step-00003")
    shutil.copytree(run / "policies" / "step-00003", run / "policy")
    run.rename(tmp_path / "moved")
    for place in ("policy", "policies/step-00003"):
        policy = AffectPolicy.load(tmp_path / "moved" / place).eval()
        assert torch.equal(logprobs(policy, "filter"), logprobs(own, "filter"))


def remove(base: Path) -> None:
    shutil.rmtree(base)


def replace_base(base: Path) -> None:
    shutil.rmtree(base)
    tiny_policy(dim=32).save(base)


def damage(base: Path) -> None:
    (base / "model.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (remove, r"policy: its adapters stand on the policy .*/sft, which is not there; bring that directory back"),
        (replace_base, r"stand on the policy .*/sft, which is another policy now"),
        (damage, r"sft/model.safetensors: content does not match manifest.json"),
    ],
)
def test_a_base_that_is_lost_is_named(
    harm: Callable[[Path], None], message: str, base_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(base_dir, tmp_path / "sft")
    with_adapters(tmp_path / "sft").save(tmp_path / "policy")
    harm(tmp_path / "sft")
    with pytest.raises(AffectError, match=message):
        AffectPolicy.load(tmp_path / "policy")


def test_adapters_need_a_base_in_a_directory(tmp_path: Path) -> None:
    policy = tiny_policy(dim=32)
    policy.add_adapters(LORA)
    with pytest.raises(AffectError, match="save the policy and load it again before you add adapters, or merge them"):
        policy.save(tmp_path / "policy")
    assert not list(tmp_path.iterdir())


def test_training_goes_on_with_the_adapters_that_are_there(adapted: AffectPolicy) -> None:
    before = logprobs(adapted, "filter")
    adapted.add_adapters(LORA, AGENTS)
    assert torch.equal(logprobs(adapted, "filter"), before)
    for lora, names in ((Lora(rank=8, alpha=10), AGENTS), (LORA, ("planner",))):
        with pytest.raises(AffectError, match="go on with what it was trained with, or merge it first"):
            adapted.add_adapters(lora, names)


@pytest.mark.parametrize("name", ["", "a/b", "two words", "a.b"])
def test_a_name_is_that_of_a_folder(name: str) -> None:
    with pytest.raises(AffectError, match="name it with letters, digits, - and _ only"):
        tiny_policy(dim=32).add_adapters(LORA, (name,))
