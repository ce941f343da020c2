"""Backbones: their own keys and back, what they computed before, RAAF and MB-MoE as the identity, bad checkpoints."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_cases import (
    ATTENTION,
    DIM,
    LAYERS,
    RANK,
    TEXTS,
    adapters,
    affectgpt_tensors,
    linear,
    pandagpt_tensors,
    write_checkpoint,
    write_language_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from affect_rl.backbones import (
    LAYOUTS,
    Backbone,
    Layout,
    adapt_fusion,
    check_features,
    read_backbone,
    write_backbone,
)
from affect_rl.errors import AffectError
from affect_rl.fusion import collate_percepts
from affect_rl.policy import AffectPolicy
from affect_rl.settings import FusionConfig, SlotConfig
from affect_rl.trajectory import Percept

WIDTHS = {"affectgpt": (7, 5), "pandagpt": (6, 6)}
SYSTEMS = sorted(WIDTHS)


@pytest.fixture(scope="module")
def language_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("language-models")
    return {system: write_language_model(folder / system, system) for system in SYSTEMS}


@pytest.fixture
def read(language_models: dict[str, Path], tmp_path: Path) -> Callable[..., Backbone]:
    """Reads a tiny checkpoint of a system."""

    def read_system(system: str) -> Backbone:
        path = write_checkpoint(tmp_path, system, *WIDTHS[system])
        return read_backbone(LAYOUTS[system], path, language_models[system], name=system)

    return read_system


def tensors_of(system: str) -> dict[str, Tensor]:
    return affectgpt_tensors(*WIDTHS[system]) if system == "affectgpt" else pandagpt_tensors(WIDTHS[system][0])


def features(length: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, dim)).astype(np.float32)


def percept(system: str, seed: int, *, fused: bool) -> Percept:
    audio, video = WIDTHS[system]
    support = (features(6, audio, seed + 20), features(3, video, seed + 30)) if fused else (None, None)
    return Percept(features(3 + seed, audio, seed), features(4, video, seed + 10), *support, fused)


@torch.no_grad()
def soft_tokens(policy: AffectPolicy, *percepts: Percept) -> Tensor:
    shape = policy.fusion.shape
    return policy.fusion(collate_percepts(percepts, shape.audio_dim, shape.video_dim)).tokens


@torch.no_grad()
def logits(model: nn.Module, tokenizer: Any) -> Tensor:
    return model(torch.tensor([tokenizer.encode(TEXTS[0])])).logits


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_round_trip_gives_equal_tensors_under_equal_keys(
    system: str, read: Callable[..., Backbone], tmp_path: Path
) -> None:
    backbone, layout = read(system), LAYOUTS[system]
    path = write_backbone(layout, backbone, tmp_path / "again.pth")
    content = torch.load(path, weights_only=True)
    assert_equal(content["model"] if system == "affectgpt" else content, tensors_of(system))
    safe = write_backbone(layout, backbone, tmp_path / "again.safetensors")
    assert_equal(load_file(safe), tensors_of(system))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_language_model_says_what_it_said(
    system: str, read: Callable[..., Backbone], language_models: dict[str, Path], tmp_path: Path
) -> None:
    """Logits with adapters, with adapters merged by hand, and from the policy directory."""
    policy = read(system).policy
    model, tokenizer = (kind.from_pretrained(language_models[system]) for kind in (AutoModelForCausalLM, AutoTokenizer))
    plain = logits(model, tokenizer)
    tensors, merged = tensors_of(system), 0
    for name, weight in model.named_parameters():
        key = f"llama_model.base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.default.weight" in tensors:
            up, down = tensors[f"{key}.lora_B.default.weight"], tensors[f"{key}.lora_A.default.weight"]
            weight.data += 32 / RANK * up @ down
            merged += 1
    assert merged == LAYERS * (7 if system == "affectgpt" else 4)
    expected = logits(model, tokenizer)
    assert not torch.allclose(expected, plain, atol=1e-2)
    known = expected.shape[-1]  # the placeholder token is new
    found = logits(policy.language_model, tokenizer)[..., :known]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    stored = AffectPolicy.load(policy.save(tmp_path / "policy")).eval()
    assert not stored.has_adapters
    assert stored.config.backbone == system
    torch.testing.assert_close(logits(stored.language_model, tokenizer)[..., :known], expected, atol=1e-4, rtol=1e-4)
    both = (percept(system, 1, fused=True), percept(system, 2, fused=False))
    assert torch.equal(soft_tokens(stored, *both), soft_tokens(policy, *both))


def test_soft_tokens_of_affectgpt_are_those_of_its_formulas(read: Callable[..., Backbone]) -> None:
    policy, t = read("affectgpt").policy.eval(), affectgpt_tensors(*WIDTHS["affectgpt"])
    given = percept("affectgpt", 1, fused=False)
    assert given.audio is not None and given.video is not None
    audio, video = torch.from_numpy(given.audio), torch.from_numpy(given.video)

    def layer(key: str, x: Tensor) -> Tensor:
        return x @ t[f"{key}.weight"].T + t[f"{key}.bias"]

    v, a = layer("multi_video_embs", video.mean(0)), layer("multi_audio_embs", audio.mean(0))
    weights = layer("fc_att", layer("attention_mlp", torch.cat([v, a])))
    expected = [
        layer("multi_llama_proj", torch.stack([v, a], dim=1) @ weights),
        layer("audio_llama_proj", (audio.T @ layer("audio_attention_mlp", audio))[:, 0]),
        layer("affectgpt_proj", (video.T @ layer("video_attention_mlp", video))[:, 0]),
    ]
    torch.testing.assert_close(soft_tokens(policy, given)[0], torch.stack(expected))


def test_the_soft_token_of_pandagpt_is_that_of_its_formula(read: Callable[..., Backbone]) -> None:
    policy, t = read("pandagpt").policy.eval(), pandagpt_tensors(6)
    given = percept("pandagpt", 1, fused=False)
    assert given.audio is not None and given.video is not None
    image, sound = (
        torch.from_numpy(x).mean(0) @ t["llama_proj.weight"].T + t["llama_proj.bias"]
        for x in (given.video, given.audio)
    )
    found = soft_tokens(policy, given, replace(given, audio=None), replace(given, video=None))
    torch.testing.assert_close(found[:, 0], torch.stack([image + sound, image, sound]))


@pytest.mark.parametrize("system", SYSTEMS)
def test_fusion_starts_as_the_identity(system: str, read: Callable[..., Backbone]) -> None:
    policy = read(system).policy.eval()
    fused = percept(system, 1, fused=True)
    plain = soft_tokens(policy, replace(fused, fused=False))
    assert torch.equal(soft_tokens(policy, fused), plain)
    unsupported = replace(fused, audio_support=None, video_support=None)
    assert torch.equal(soft_tokens(policy, unsupported), plain)
    for modality in (policy.fusion.audio, policy.fusion.video):
        nn.init.normal_(modality.up.weight)
    moved = soft_tokens(policy, fused)
    assert not torch.allclose(moved, plain, atol=1e-3)
    assert not torch.allclose(soft_tokens(policy, unsupported), moved, atol=1e-3)


@pytest.mark.parametrize("system", SYSTEMS)
def test_new_fusion_keeps_what_the_checkpoint_brought(
    system: str, read: Callable[..., Backbone], tmp_path: Path
) -> None:
    imported = AffectPolicy.load(read(system).policy.save(tmp_path / "policy")).eval()
    adapted = adapt_fusion(imported, FusionConfig(dim=24, heads=2, experts=3, soft_tokens=9)).eval()
    assert adapted.fusion.shape.dim == 24 and len(adapted.fusion.moe.experts) == 3
    given = percept(system, 1, fused=True)
    assert torch.equal(soft_tokens(adapted, given), soft_tokens(imported, given))
    assert adapted.config.backbone == system
    again = AffectPolicy.load(adapted.save(tmp_path / "adapted"))
    assert again.fusion.shape == adapted.fusion.shape


@pytest.mark.parametrize(("change", "kept"), [({}, True), ({"residual": False}, False), ({"experts": 2}, False)])
def test_experts_of_another_mixture_begin_anew(
    read: Callable[..., Backbone], change: dict[str, Any], kept: bool
) -> None:
    policy = read("pandagpt").policy
    for parameter in policy.fusion.moe.parameters():
        nn.init.constant_(parameter, 3.0)
    sizes = {"dim": policy.fusion.shape.dim, "heads": policy.fusion.shape.heads, "experts": policy.fusion.shape.experts}
    adapted = adapt_fusion(policy, FusionConfig(**{**sizes, **change}))
    assert all(torch.all(p == 3).item() == kept for p in adapted.fusion.moe.parameters())


def test_merged_adapters_cannot_be_written_back(read: Callable[..., Backbone], tmp_path: Path) -> None:
    backbone = read("pandagpt")
    merged = AffectPolicy.load(backbone.policy.save(tmp_path / "policy"))
    with pytest.raises(AffectError, match=r"again.pt: the policy's adapters are merged"):
        write_backbone(LAYOUTS["pandagpt"], replace(backbone, policy=merged), tmp_path / "again.pt")
    assert not list(tmp_path.glob("again.pt*"))


def bert_block(rng: torch.Generator, key: str, width: int, frame_width: int) -> dict[str, Tensor]:
    """A block of BLIP-2's BERT without its text path, by the names in the LAVIS code."""
    norm = {"weight": torch.randn(width, generator=rng), "bias": torch.randn(width, generator=rng)}
    tensors: dict[str, Tensor] = {}
    for part, wide in (("attention", width), ("crossattention", frame_width)):
        tensors |= linear(rng, f"{key}.{part}.self.query", width, width)
        tensors |= linear(rng, f"{key}.{part}.self.key", wide, width)
        tensors |= linear(rng, f"{key}.{part}.self.value", wide, width)
        tensors |= linear(rng, f"{key}.{part}.output.dense", width, width)
        tensors |= {f"{key}.{part}.output.LayerNorm.{name}": t.clone() for name, t in norm.items()}
    tensors |= linear(rng, f"{key}.intermediate_query.dense", width, 4 * width)
    tensors |= linear(rng, f"{key}.output_query.dense", 4 * width, width)
    return tensors | {f"{key}.output_query.LayerNorm.{name}": t.clone() for name, t in norm.items()}


def test_a_new_system_is_one_table(language_models: dict[str, Path], tmp_path: Path) -> None:
    """AffectGPT's and Video-LLaMA's Q-Former for video, beside a mean for audio."""
    qformer = r"fusion\.slots\.video\.qformer\."
    inner = r"encoder\.layer\.(\d+)\.(\w*attention)\."
    layout = Layout(
        title="Made-up",
        slots=(
            SlotConfig(name="video", source="video", connector="qformer", tokens=3, width=8, heads=2, positions=32),
            SlotConfig(name="audio", source="audio", connector="linear"),
        ),
        keys={
            r"language_model\.(.*\.lora_[AB]\..*)": r"llama_model.\1",
            r"fusion\.slots\.video\.queries": "video_query_tokens",
            r"fusion\.slots\.video\.positions\.weight": "video_frame_position_embedding.weight",
            qformer + r"layernorm\.(.*)": r"video_Qformer.bert.embeddings.LayerNorm.\1",
            qformer + inner + r"attention\.(.*)": r"video_Qformer.bert.encoder.layer.\1.\2.self.\3",
            qformer + r"encoder\.(.*)": r"video_Qformer.bert.encoder.\1",
            r"fusion\.slots\.video\.project\.(.*)": r"llama_proj.\1",
            r"fusion\.slots\.audio\.project\.(.*)": r"audio_llama_proj.\1",
        },
        widths={"audio": "audio_llama_proj.weight", "video": "video_frame_position_embedding.weight"},
        encoders={"audio": "any", "video": "any"},
        lora_alpha=16,
        lora_targets=("q_proj", "v_proj"),
        carried=(r".*\.position_ids",),
    )
    rng = torch.Generator().manual_seed(3)
    tensors = adapters(rng, {f"self_attn.{name}_proj": ATTENTION["self_attn.q_proj"] for name in "qv"})
    for number in range(2):
        tensors |= bert_block(rng, f"video_Qformer.bert.encoder.layer.{number}", 8, 5)
    tensors |= linear(rng, "llama_proj", 8, DIM) | linear(rng, "audio_llama_proj", 7, DIM)
    tensors |= {
        "video_Qformer.bert.embeddings.LayerNorm.weight": torch.randn(8, generator=rng),
        "video_Qformer.bert.embeddings.LayerNorm.bias": torch.randn(8, generator=rng),
        "video_Qformer.bert.embeddings.position_ids": torch.arange(4)[None],
        "video_query_tokens": torch.randn(1, 3, 8, generator=rng),
        "video_frame_position_embedding.weight": torch.randn(32, 5, generator=rng),
    }
    save_file(tensors, tmp_path / "made-up.safetensors")
    backbone = read_backbone(layout, tmp_path / "made-up.safetensors", language_models["pandagpt"])
    assert_equal(load_file(write_backbone(layout, backbone, tmp_path / "again.safetensors")), tensors)
    given = Percept(features(3, 7, 1), features(4, 5, 2))
    found = soft_tokens(backbone.policy.eval(), given)
    assert found.shape == (1, 4, DIM)
    assert found.isfinite().all()


# Bad input


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = torch.load(path, weights_only=True)
    torch.save(change(content), path)


def in_model(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        change(content["model"])
        torch.save(content, path)

    return spoil


def shell(path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (path.with_name("executed"),)

    path.write_bytes(pickle.dumps({"model": Harmful()}))


PROJ = "audio_llama_proj"
LORA = "llama_model.base_model.model.model.layers"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (lambda p: p.unlink(), "is not there; give the checkpoint that the system's training wrote"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:900]), "cannot be read as tensors ("),
    "text": (lambda p: p.write_text("hello"), "cannot be read as tensors ("),
    "code": (shell, "copy it again, or convert it to safetensors"),
    "other entry": (lambda p: rewrite(p, lambda c: {"state": c["model"]}), "has no entry 'model'; give the file"),
    "no tensors": (
        lambda p: rewrite(p, lambda c: {"model": {"a": 3}}),
        "does not hold tensors by name (but a); give the weights",
    ),
    "missing": (in_model(lambda m: m.pop(f"{PROJ}.bias")), f"key {PROJ}.bias is missing (nearest: "),
    "no width": (in_model(lambda m: m.pop("video_attention_mlp.weight")), "key video_attention_mlp.weight is missing"),
    "no adapters": (
        in_model(lambda m: [m.pop(key) for key in list(m) if "lora" in key]),
        "holds no adapters (lora_A); give a checkpoint whose training had them",
    ),
    "unknown": (
        in_model(lambda m: m.update({f"{PROJ}2.bias": torch.ones(2)})),
        f"key {PROJ}2.bias is not one of AffectGPT on ",
    ),
    "too deep": (
        in_model(lambda m: m.update({f"{LORA}.2.self_attn.q_proj.lora_A.default.weight": torch.ones(RANK, DIM)})),
        f"key {LORA}.2.self_attn.q_proj.lora_A.default.weight is not one of AffectGPT on ",
    ),
    "misshapen": (
        in_model(lambda m: m.update({f"{PROJ}.weight": torch.ones(DIM + 1, 7)})),
        f"key {PROJ}.weight has shape [65, 7], but [64, 7] fits ",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints_are_named_with_the_fix(case: str, language_models: dict[str, Path], tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, "affectgpt", *WIDTHS["affectgpt"])
    spoil, message = BAD[case]
    spoil(path)
    with pytest.raises(AffectError) as caught:
        read_backbone(LAYOUTS["affectgpt"], path, language_models["affectgpt"])
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_a_language_model_that_is_none_is_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, "pandagpt", 6, 6)
    with pytest.raises(AffectError, match=r"is no language model .*; give .* that pytorch_model.pt was trained on"):
        read_backbone(LAYOUTS["pandagpt"], path, tmp_path)


def test_features_that_do_not_fit_are_refused(read: Callable[..., Backbone]) -> None:
    affectgpt, pandagpt = read("affectgpt").policy, read("pandagpt").policy
    check_features(affectgpt, 7, 5, "data")
    check_features(affectgpt, 0, 5, "data")
    with pytest.raises(AffectError, match=r"data: audio features are 9 wide.* takes 7; extract them with HuBERT large"):
        check_features(affectgpt, 9, 5, "data")
    with pytest.raises(AffectError, match=r"data: video features are 9 wide.* takes 6; extract them with ImageBind"):
        check_features(pandagpt, 6, 9, "data")


def test_slots_come_from_one_place(read: Callable[..., Backbone]) -> None:
    policy = read("pandagpt").policy
    more = FusionConfig(slots=(SlotConfig(name="a", source="audio", connector="linear"),))
    with pytest.raises(AffectError, match=r"model.fusion.slots: model.base brings its own slots; leave them out"):
        adapt_fusion(policy, more)
