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
import torch.nn.functional as F
from backbone_cases import (
    DIM,
    LAYERS,
    QUERY_HEADS,
    QUERY_WIDTH,
    RANK,
    TEXTS,
    VOCABULARY,
    WIDTHS,
    tensors_of,
    tiny_layout,
    write_checkpoint,
    write_language_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from affect_rl.backbones.importing import (
    PUBLISHED_ADAPTER,
    Backbone,
    adapt_fusion,
    check_features,
    read_backbone,
    write_backbone,
)
from affect_rl.backbones.layouts import LAYOUTS
from affect_rl.config.model import FusionConfig
from affect_rl.errors import AffectError
from affect_rl.policy.fusion import collate_percepts
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.slots import SlotConfig
from affect_rl.trajectory import Percept

SYSTEMS = sorted(LAYOUTS)
ADAPTED = {"affectgpt": 7, "pandagpt": 4, "emotion_llama": 2}
"""Modules with adapters in each block of the systems that have them."""


@pytest.fixture(scope="module")
def language_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("language-models")
    return {system: write_language_model(folder / system, system) for system in SYSTEMS}


@pytest.fixture
def read(language_models: dict[str, Path], tmp_path: Path) -> Callable[..., Backbone]:
    """Reads a tiny checkpoint of a system."""

    def read_system(system: str) -> Backbone:
        files = write_checkpoint(tmp_path, system)
        return read_backbone(tiny_layout(system), files, language_models[system], name=system)

    return read_system


def features(length: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, dim)).astype(np.float32)


def percept(system: str, seed: int, *, fused: bool) -> Percept:
    """What a system sees and, unless it is VideoChat, hears; the fused one has support."""

    def frames(length: int, dim: int, number: int) -> np.ndarray | None:
        return features(length, dim, number) if dim else None

    audio, video = WIDTHS[system]
    support = (frames(6, audio, seed + 20), frames(3, video, seed + 30)) if fused else (None, None)
    return Percept(frames(3 + seed, audio, seed), frames(4, video, seed + 10), *support, fused)


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
    backbone, layout = read(system), tiny_layout(system)
    path = write_backbone(layout, backbone, tmp_path / "again.pth")
    content = torch.load(path, weights_only=True)
    assert_equal(content if system in ("pandagpt", "video_llama2") else content["model"], tensors_of(system))
    safe = write_backbone(layout, backbone, tmp_path / "again.safetensors")
    assert_equal(load_file(safe), tensors_of(system))
    assert not list(tmp_path.glob("*.partial"))


def trained_language_model(system: str, directory: Path) -> Any:
    """The language model as the system trained it: its own weights if there are any, adapters merged by hand."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    tensors, merged = tensors_of(system), 0
    model.load_state_dict({k: t for k, t in tensors.items() if k in model.state_dict()}, strict=False)
    for name, weight in model.named_parameters():
        key = f"llama_model.base_model.model.{name.removesuffix('.weight')}.lora_"
        for suffix in ("weight", "default.weight"):
            if f"{key}A.{suffix}" in tensors:
                scale = (16 if system == "emotion_llama" else 32) / RANK
                weight.data += scale * tensors[f"{key}B.{suffix}"] @ tensors[f"{key}A.{suffix}"]
                merged += 1
    assert merged == LAYERS * ADAPTED.get(system, 0)
    return model


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_language_model_says_what_it_said(
    system: str, read: Callable[..., Backbone], language_models: dict[str, Path], tmp_path: Path
) -> None:
    """Logits of the policy as it was read, and from the policy directory."""
    policy = read(system).policy
    tokenizer = AutoTokenizer.from_pretrained(language_models[system])
    plain = logits(AutoModelForCausalLM.from_pretrained(language_models[system]), tokenizer)
    expected = logits(trained_language_model(system, language_models[system]), tokenizer)
    frozen = system in ("video_llama", "videochat", "chatbridge")
    assert torch.allclose(expected, plain, atol=1e-2) == frozen
    known = expected.shape[-1]  # the placeholder token is new
    found = logits(policy.language_model, tokenizer)[..., :known]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    stored = AffectPolicy.load(policy.save(tmp_path / "policy", merge=PUBLISHED_ADAPTER)).eval()
    assert not stored.has_adapters
    assert stored.config.backbone == system
    torch.testing.assert_close(logits(stored.language_model, tokenizer)[..., :known], expected, atol=1e-4, rtol=1e-4)
    both = (percept(system, 1, fused=True), percept(system, 2, fused=False))
    assert torch.equal(soft_tokens(stored, *both), soft_tokens(policy, *both))


def linear(t: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    return x @ t[f"{key}.weight"].T + t[f"{key}.bias"]


def frames_of(given: Percept) -> tuple[Tensor, Tensor]:
    """Audio and video of a percept; what is not there has no rows."""
    audio, video = (np.zeros((0, 0), np.float32) if x is None else x for x in (given.audio, given.video))
    return torch.from_numpy(audio), torch.from_numpy(video)


def test_soft_tokens_of_affectgpt_are_those_of_its_formulas(read: Callable[..., Backbone]) -> None:
    policy, t = read("affectgpt").policy.eval(), tensors_of("affectgpt")
    given = percept("affectgpt", 1, fused=False)
    audio, video = frames_of(given)
    v, a = linear(t, "multi_video_embs", video.mean(0)), linear(t, "multi_audio_embs", audio.mean(0))
    weights = linear(t, "fc_att", linear(t, "attention_mlp", torch.cat([v, a])))
    expected = [
        linear(t, "multi_llama_proj", torch.stack([v, a], dim=1) @ weights),
        linear(t, "audio_llama_proj", (audio.T @ linear(t, "audio_attention_mlp", audio))[:, 0]),
        linear(t, "affectgpt_proj", (video.T @ linear(t, "video_attention_mlp", video))[:, 0]),
    ]
    torch.testing.assert_close(soft_tokens(policy, given)[0], torch.stack(expected))


def test_the_soft_token_of_pandagpt_is_that_of_its_formula(read: Callable[..., Backbone]) -> None:
    policy, t = read("pandagpt").policy.eval(), tensors_of("pandagpt")
    given = percept("pandagpt", 1, fused=False)
    sound, image = (linear(t, "llama_proj", frames.mean(0)) for frames in frames_of(given))
    found = soft_tokens(policy, given, replace(given, audio=None), replace(given, video=None))
    torch.testing.assert_close(found[:, 0], torch.stack([image + sound, image, sound]))


def test_soft_tokens_of_emotion_llama_are_those_of_its_formulas(read: Callable[..., Backbone]) -> None:
    """On 1,024 patches: four a token, then a token each of MAE, VideoMAE, speech and the picture's class token."""
    policy, t = read("emotion_llama").policy.eval(), tensors_of("emotion_llama")
    patches, clip, audio = features(1024, 5, 1), features(1, 13, 2), features(1, 7, 3)
    given = Percept(audio, np.concatenate([patches, clip.repeat(1024, axis=0)], axis=1))
    face, motion, picture = torch.from_numpy(clip).split([4, 4, 5], dim=1)
    expected = [
        linear(t, "llama_proj", torch.from_numpy(patches).reshape(256, 20)),
        linear(t, "feats_llama_proj1", face),
        linear(t, "feats_llama_proj2", motion),
        linear(t, "feats_llama_proj3", torch.from_numpy(audio)),
        linear(t, "cls_tk_llama_proj", picture),
    ]
    torch.testing.assert_close(soft_tokens(policy, given)[0], torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_soft_tokens_of_video_llama_2_are_those_of_its_formulas(read: Callable[..., Backbone]) -> None:
    policy, t = read("video_llama2").policy.eval(), tensors_of("video_llama2")
    given = Percept(features(8, 7, 1), features(8, DIM, 2))
    audio, video = frames_of(given)
    expected = [
        linear(t, f"{key}.2", F.gelu(linear(t, f"{key}.0", frames)))
        for key, frames in (("model.mm_projector.readout", video), ("model.mm_projector_a", audio))
    ]
    torch.testing.assert_close(soft_tokens(policy, given)[0], torch.cat(expected))


def attend(t: dict[str, Tensor], key: str, hidden: Tensor, seen: Tensor) -> Tensor:
    """BERT's attention with what follows it, by the checkpoint's names."""
    q, k, v = (
        linear(t, f"{key}.self.{name}", x).unflatten(-1, (QUERY_HEADS, -1)).transpose(0, 1)
        for name, x in (("query", hidden), ("key", seen), ("value", seen))
    )
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
    return normed(
        t, f"{key}.output", linear(t, f"{key}.output.dense", (weights @ v).transpose(0, 1).flatten(1)) + hidden
    )


def normed(t: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (QUERY_WIDTH,), t[f"{key}.LayerNorm.weight"], t[f"{key}.LayerNorm.bias"], 1e-12)


def bert(t: dict[str, Tensor], key: str, layers: int, queries: Tensor, frames: Tensor) -> Tensor:
    hidden = normed(t, f"{key}.bert.embeddings", queries)
    for number in range(layers):
        block = f"{key}.bert.encoder.layer.{number}"
        hidden = attend(t, f"{block}.attention", hidden, hidden)
        if f"{block}.crossattention.self.query.weight" in t:
            hidden = attend(t, f"{block}.crossattention", hidden, frames)
        inner = F.gelu(linear(t, f"{block}.intermediate_query.dense", hidden))
        hidden = normed(t, f"{block}.output_query", linear(t, f"{block}.output_query.dense", inner) + hidden)
    return hidden


def video_llama_tokens(t: dict[str, Tensor], audio: Tensor, video: Tensor) -> list[Tensor]:
    seen = video + t["video_frame_position_embedding.weight"][: len(video)]
    heard = audio + t["audio_position_embedding.weight"][: len(audio)]
    return [
        linear(t, "llama_proj", bert(t, "video_Qformer", 2, t["video_query_tokens"][0], seen)),
        linear(t, "audio_llama_proj", bert(t, "audio_Qformer", 2, t["audio_query_tokens"][0], heard)),
    ]


def videochat_tokens(t: dict[str, Tensor], _: Tensor, video: Tensor) -> list[Tensor]:
    queries = torch.cat([t["query_tokens"], t["extra_query_tokens"]], dim=1)[0]
    return [linear(t, "llama_proj", bert(t, "Qformer", 12, queries, video))]


def chatbridge_tokens(t: dict[str, Tensor], audio: Tensor, video: Tensor) -> list[Tensor]:
    heard = linear(t, "audio_trans", audio)
    return [
        linear(t, "llama_proj", bert(t, "Qformer", 12, t["image_query_tokens"][0], video)),
        linear(t, "llama_proj", bert(t, "Qformer", 12, t["audio_query_tokens"][0], heard)),
    ]


@pytest.mark.parametrize(
    ("system", "formula"),
    [("video_llama", video_llama_tokens), ("videochat", videochat_tokens), ("chatbridge", chatbridge_tokens)],
)
def test_soft_tokens_of_queries_are_those_of_bert(
    system: str, formula: Callable[..., list[Tensor]], read: Callable[..., Backbone]
) -> None:
    policy, given = read(system).policy.eval(), percept(system, 1, fused=False)
    expected = torch.cat(formula(tensors_of(system), *frames_of(given)))
    torch.testing.assert_close(soft_tokens(policy, given)[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("system", SYSTEMS)
def test_fusion_starts_as_the_identity(system: str, read: Callable[..., Backbone]) -> None:
    policy = read(system).policy.eval()
    fused = percept(system, 1, fused=True)
    plain = soft_tokens(policy, replace(fused, fused=False))
    assert torch.equal(soft_tokens(policy, fused), plain)
    unsupported = replace(fused, audio_support=None, video_support=None)
    assert torch.equal(soft_tokens(policy, unsupported), plain)
    for modality in {"audio", "video"} - policy.fusion.shape.unread:
        nn.init.normal_(getattr(policy.fusion, modality).up.weight)
    moved = soft_tokens(policy, fused)
    assert not torch.allclose(moved, plain, atol=1e-3)
    assert not torch.allclose(soft_tokens(policy, unsupported), moved, atol=1e-3)


@pytest.mark.parametrize("system", SYSTEMS)
def test_new_fusion_keeps_what_the_checkpoint_brought(
    system: str, read: Callable[..., Backbone], tmp_path: Path
) -> None:
    imported = AffectPolicy.load(read(system).policy.save(tmp_path / "policy", merge=PUBLISHED_ADAPTER)).eval()
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
    merged = AffectPolicy.load(backbone.policy.save(tmp_path / "policy", merge=PUBLISHED_ADAPTER))
    with pytest.raises(AffectError, match=r"again.pt: the policy's adapters are merged"):
        write_backbone(LAYOUTS["pandagpt"], replace(backbone, policy=merged), tmp_path / "again.pt")
    assert not list(tmp_path.glob("again.pt*"))


def test_without_adapters_a_stored_policy_can_be_written_back(read: Callable[..., Backbone], tmp_path: Path) -> None:
    backbone = read("video_llama2")
    stored = replace(backbone, policy=AffectPolicy.load(backbone.policy.save(tmp_path / "policy")))
    path = write_backbone(tiny_layout("video_llama2"), stored, tmp_path / "again.safetensors")
    assert_equal(load_file(path), tensors_of("video_llama2"))


def test_copies_that_have_grown_apart_are_not_written_as_one(read: Callable[..., Backbone], tmp_path: Path) -> None:
    backbone = read("chatbridge")
    backbone.policy.get_parameter("fusion.slots.audio.project.weight").data.zero_()
    with pytest.raises(AffectError, match=r"share key llama_proj.weight have been trained apart"):
        write_backbone(tiny_layout("chatbridge"), backbone, tmp_path / "again.pth")
    assert not list(tmp_path.glob("again.pth*"))


def test_a_modality_that_is_not_read_has_the_width_of_the_data(read: Callable[..., Backbone]) -> None:
    policy = read("videochat").policy
    check_features(policy, 9, 5, "data")
    adapted = adapt_fusion(policy, FusionConfig(), audio_dim=9, video_dim=8).eval()
    assert (adapted.fusion.shape.audio_dim, adapted.fusion.shape.video_dim) == (9, 5)
    given = percept("videochat", 1, fused=False)
    assert torch.equal(soft_tokens(adapted, given), soft_tokens(policy.eval(), given))


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
    (path,) = write_checkpoint(tmp_path, "affectgpt")
    spoil, message = BAD[case]
    spoil(path)
    with pytest.raises(AffectError) as caught:
        read_backbone(LAYOUTS["affectgpt"], [path], language_models["affectgpt"])
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert not (tmp_path / "executed").exists()


CONNECTOR = {
    "affectgpt": "attention_mlp.weight",
    "pandagpt": "llama_proj.weight",
    "emotion_llama": "feats_llama_proj2.weight",
    "video_llama": "audio_Qformer.bert.encoder.layer.1.output_query.dense.weight",
    "video_llama2": "model.mm_projector_a.2.weight",
    "videochat": "extra_query_tokens",
    "chatbridge": "Qformer.bert.encoder.layer.2.crossattention.self.value.weight",
}
WRONG: dict[str, tuple[Callable[[dict[str, Tensor], str], Any], str, str]] = {
    "missing": (lambda t, key: t.pop(key), "key {key} is missing", "; give all files of a checkpoint of {title}"),
    "misshapen": (
        lambda t, key: t.update({key: torch.cat([t[key]] * 2)}),
        "{key} has shape ",
        "; give the language model that the checkpoint was trained on",
    ),
    "unknown": (
        lambda t, key: t.update({f"{key}.more": t[key].clone()}),
        "key {key}.more is not one of {title} on ",
        "; give the language model and the system that the checkpoint was trained with",
    ),
}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_are_not_the_systems_are_named_with_the_fix(
    case: str, system: str, language_models: dict[str, Path], tmp_path: Path
) -> None:
    tensors, layout = tensors_of(system), tiny_layout(system)
    spoil, message, fix = WRONG[case]
    spoil(tensors, CONNECTOR[system])
    save_file(tensors, tmp_path / "whole.safetensors")
    with pytest.raises(AffectError) as caught:
        read_backbone(layout, [tmp_path / "whole.safetensors"], language_models[system])
    for words in (message, fix):
        assert words.format(key=CONNECTOR[system], title=layout.title) in str(caught.value)


@pytest.mark.parametrize("rows", [-1, 1])
def test_another_vocabulary_is_named(rows: int, language_models: dict[str, Path], tmp_path: Path) -> None:
    tensors = tensors_of("video_llama2")
    tensors["lm_head.weight"] = torch.ones(VOCABULARY + rows, DIM)
    save_file(tensors, tmp_path / "whole.safetensors")
    message = rf"key lm_head.weight has shape \[{VOCABULARY + rows}, {DIM}\], but \[\d+, {DIM}\] fits"
    with pytest.raises(AffectError, match=message):
        read_backbone(tiny_layout("video_llama2"), [tmp_path / "whole.safetensors"], language_models["video_llama2"])


def test_half_a_checkpoint_is_named(language_models: dict[str, Path], tmp_path: Path) -> None:
    _, audio = write_checkpoint(tmp_path, "video_llama")
    with pytest.raises(AffectError, match=r"audio_branch.pth: key video_frame_.* is missing.*; give all files of a"):
        read_backbone(tiny_layout("video_llama"), [audio], language_models["video_llama"])


def test_a_language_model_that_is_none_is_named(tmp_path: Path) -> None:
    files = write_checkpoint(tmp_path, "pandagpt")
    with pytest.raises(AffectError, match=r"is no language model .*; give .* that .*pytorch_model.pt was trained on"):
        read_backbone(LAYOUTS["pandagpt"], files, tmp_path)


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
