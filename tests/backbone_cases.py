"""Tiny random checkpoints of published systems; their keys are written out as the systems' own code saves them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from affect_rl.backbones.layouts import LAYOUTS, Layout

DIM, LAYERS, HEADS, RANK, CONTEXT = 64, 2, 2, 4, 384
HIDDEN, VOCABULARY = 96, 309
TEXTS = ["so glad to see you again, my friend", "what a terrible, sad day it was", "well, there it is"]

Tensors = dict[str, Tensor]

WIDTHS = {
    "affectgpt": (7, 5),
    "pandagpt": (6, 6),
    "emotion_llama": (7, 18),
    "video_llama": (7, 5),
    "video_llama2": (7, DIM),
    "videochat": (0, 5),
    "chatbridge": (7, 5),
}
"""Of each system's audio and video features; VideoChat does not hear, and Video-LLaMA 2's video is as wide as its
language model."""
QUERY_WIDTH, QUERY_HEADS = 24, 12
"""Of the Q-Formers; their heads are as many as published."""
QWEN = ("affectgpt", "video_llama2")
FILES = {
    "affectgpt": ["checkpoint_000030_loss_0.751.pth"],
    "pandagpt": ["pytorch_model.pt"],
    "emotion_llama": ["checkpoint_best.pth"],
    "video_llama": ["vision_branch.pth", "audio_branch.pth"],
    "video_llama2": ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    "videochat": ["blip2_pretrained_flant5xxl.pth", "videochat_7b.pth"],
    "chatbridge": ["checkpoint_best.pth"],
}

_SMALL: dict[str, dict[str, Any]] = {
    "patches": {"columns": (0, 5)},
    "face": {"columns": (5, 9)},
    "motion": {"columns": (9, 13)},
    "picture": {"columns": (13, 18)},
}


def tiny_layout(system: str) -> Layout:
    """A system's layout with slots as small as its tiny checkpoint; names, tokens, blocks and heads stay."""
    layout = LAYOUTS[system]
    slots = []
    for slot in layout.slots:
        small = _SMALL.get(slot.name, {})
        if slot.connector == "qformer":
            small = {"width": QUERY_WIDTH, "frame_width": WIDTHS[system][1] if slot.frame_width else 0}
        slots.append(slot.model_copy(update=small))
    return replace(layout, slots=tuple(slots))


def write_language_model(directory: Path, system: str) -> Path:
    """A language model of the family that the system builds on, whose tokenizer has no placeholder token yet."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    assert len(fast) == VOCABULARY
    family = Qwen2Config if system in QWEN else LlamaConfig
    config = family(
        vocab_size=len(fast), hidden_size=DIM, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=CONTEXT,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


def adapters(rng: torch.Generator, targets: dict[str, tuple[int, int]], name: str = ".default") -> Tensors:
    """PEFT's keys for adapters on `targets`, whose values are the modules' widths in and out."""
    tensors = {}
    for layer in range(LAYERS):
        for target, (wide_in, wide_out) in targets.items():
            key = f"llama_model.base_model.model.model.layers.{layer}.{target}"
            tensors[f"{key}.lora_A{name}.weight"] = torch.randn(RANK, wide_in, generator=rng) * 0.3
            tensors[f"{key}.lora_B{name}.weight"] = torch.randn(wide_out, RANK, generator=rng) * 0.3
    return tensors


def linear(rng: torch.Generator, key: str, wide_in: int, wide_out: int) -> Tensors:
    """A linear layer's keys."""
    weight = torch.randn(wide_out, wide_in, generator=rng) * wide_in**-0.5
    return {f"{key}.weight": weight, f"{key}.bias": torch.randn(wide_out, generator=rng) * 0.1}


def norm(rng: torch.Generator, key: str, width: int) -> Tensors:
    """A layer norm's keys."""
    return {
        f"{key}.weight": 1 + torch.randn(width, generator=rng) * 0.1,
        f"{key}.bias": torch.randn(width, generator=rng) * 0.1,
    }


def qformer(rng: torch.Generator, key: str, frame_width: int, *, layers: int, cross_every: int) -> Tensors:
    """BLIP-2's copy of BERT without its text path, by the names in the LAVIS code."""
    wide = QUERY_WIDTH
    tensors = norm(rng, f"{key}.bert.embeddings.LayerNorm", wide)
    tensors[f"{key}.bert.embeddings.position_ids"] = torch.arange(4)[None]
    for number in range(layers):
        block = f"{key}.bert.encoder.layer.{number}"
        for part, width in (("attention", wide), ("crossattention", frame_width)):
            if part == "crossattention" and number % cross_every:
                continue
            tensors |= linear(rng, f"{block}.{part}.self.query", wide, wide)
            tensors |= linear(rng, f"{block}.{part}.self.key", width, wide)
            tensors |= linear(rng, f"{block}.{part}.self.value", width, wide)
            tensors |= linear(rng, f"{block}.{part}.output.dense", wide, wide)
            tensors |= norm(rng, f"{block}.{part}.output.LayerNorm", wide)
        tensors |= linear(rng, f"{block}.intermediate_query.dense", wide, 4 * wide)
        tensors |= linear(rng, f"{block}.output_query.dense", 4 * wide, wide)
        tensors |= norm(rng, f"{block}.output_query.LayerNorm", wide)
    return tensors


ATTENTION = {f"self_attn.{name}_proj": (DIM, DIM) for name in "qkvo"}
MLP = {"mlp.gate_proj": (DIM, HIDDEN), "mlp.up_proj": (DIM, HIDDEN), "mlp.down_proj": (HIDDEN, DIM)}
BUFFER = {"llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(3.0)}


def language_model(rng: torch.Generator, prefix: str = "", biased: tuple[str, ...] = ()) -> Tensors:
    """A whole language model's keys, before it knows the placeholder."""
    tensors = {
        f"{prefix}model.embed_tokens.weight": torch.randn(VOCABULARY, DIM, generator=rng),
        f"{prefix}model.norm.weight": torch.ones(DIM),
        f"{prefix}lm_head.weight": torch.randn(VOCABULARY, DIM, generator=rng) * 0.1,
    }
    for layer in range(LAYERS):
        key = f"{prefix}model.layers.{layer}"
        for target, (wide_in, wide_out) in (ATTENTION | MLP).items():
            weights = linear(rng, f"{key}.{target}", wide_in, wide_out)
            tensors |= {k: t for k, t in weights.items() if target in biased or k.endswith("weight")}
        tensors[f"{key}.input_layernorm.weight"] = torch.ones(DIM)
        tensors[f"{key}.post_attention_layernorm.weight"] = torch.ones(DIM)
    return tensors


def affectgpt_tensors(audio_dim: int, video_dim: int) -> Tensors:
    """The trained parameters of AffectGPT with ``attention`` fusion, and a buffer of its frozen encoder."""
    rng = torch.Generator().manual_seed(1)
    wide = max(audio_dim, video_dim)
    return {
        **adapters(rng, ATTENTION | MLP),
        **linear(rng, "image_llama_proj", video_dim, DIM),
        **linear(rng, "video_attention_mlp", video_dim, 1),
        **linear(rng, "affectgpt_proj", video_dim, DIM),
        **linear(rng, "audio_attention_mlp", audio_dim, 1),
        **linear(rng, "audio_llama_proj", audio_dim, DIM),
        **linear(rng, "multi_audio_embs", audio_dim, wide),
        **linear(rng, "multi_video_embs", video_dim, wide),
        **linear(rng, "attention_mlp", 2 * wide, wide),
        **linear(rng, "fc_att", wide, 2),
        **linear(rng, "multi_llama_proj", wide, DIM),
        "visual_encoder.model.vision_model.embeddings.position_ids": torch.arange(5)[None],
    }


def pandagpt_tensors(width: int) -> Tensors:
    """The trained parameters of PandaGPT."""
    rng = torch.Generator().manual_seed(2)
    return {**adapters(rng, ATTENTION), **linear(rng, "llama_proj", width, DIM)}


def emotion_llama_tensors(audio_dim: int) -> Tensors:
    """The trained parameters of Emotion-LLaMA: adapters as PEFT 0.2 named them, projections, an unused classifier."""
    rng = torch.Generator().manual_seed(3)
    return {
        **adapters(rng, {f"self_attn.{name}_proj": (DIM, DIM) for name in "qv"}, name=""),
        **linear(rng, "llama_proj", 4 * 5, DIM),
        **linear(rng, "feats_llama_proj1", 4, DIM),
        **linear(rng, "feats_llama_proj2", 4, DIM),
        **linear(rng, "feats_llama_proj3", audio_dim, DIM),
        **linear(rng, "cls_tk_llama_proj", 5, DIM),
        **linear(rng, "attention.feats_prep.0.0", 4, 8),
        **linear(rng, "attention.fc_out", 8, 6),
        "llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(3.0),
    }


def video_llama_tensors(audio_dim: int, video_dim: int) -> tuple[Tensors, Tensors]:
    """The trained parameters of Video-LLaMA's two branches; each file has the buffers of the whole system."""
    rng = torch.Generator().manual_seed(4)
    buffers = {"Qformer.bert.embeddings.position_ids": torch.arange(4)[None], **BUFFER}
    vision = {
        "video_query_tokens": torch.randn(1, 32, QUERY_WIDTH, generator=rng),
        "video_frame_position_embedding.weight": torch.randn(32, video_dim, generator=rng),
        **qformer(rng, "video_Qformer", video_dim, layers=2, cross_every=1),
        **linear(rng, "llama_proj", QUERY_WIDTH, DIM),
    }
    audio = {
        "audio_query_tokens": torch.randn(1, 8, QUERY_WIDTH, generator=rng),
        "audio_position_embedding.weight": torch.randn(8, audio_dim, generator=rng),
        **qformer(rng, "audio_Qformer", audio_dim, layers=2, cross_every=1),
        **linear(rng, "audio_llama_proj", QUERY_WIDTH, DIM),
    }
    return vision | buffers, audio | buffers


def video_llama2_tensors(audio_dim: int) -> tuple[Tensors, Tensors]:
    """All parameters of Video-LLaMA 2 in two parts; of its towers and of the convolutions one each stands for all."""
    rng = torch.Generator().manual_seed(5)
    connectors = {
        "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.bias": torch.ones(3),
        "model.audio_tower.layer_norm.weight": torch.ones(3),
        "model.mm_projector.s1.b1.conv1.conv.weight": torch.randn(4, 3, 1, 1, generator=rng),
        "model.mm_projector.sampler.0.bias": torch.ones(4),
        "model.mm_projector.s2.b4.conv3.bn.weight": torch.ones(4),
        **linear(rng, "model.mm_projector.readout.0", DIM, DIM),
        **linear(rng, "model.mm_projector.readout.2", DIM, DIM),
        **linear(rng, "model.mm_projector_a.0", audio_dim, DIM),
        **linear(rng, "model.mm_projector_a.2", DIM, DIM),
    }
    return language_model(rng, biased=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")), connectors


def videochat_tensors(video_dim: int) -> tuple[Tensors, Tensors]:
    """BLIP-2's parameters, whose Q-Former VideoChat keeps frozen, and what VideoChat trains."""
    rng = torch.Generator().manual_seed(6)
    blip2 = {
        "query_tokens": torch.randn(1, 32, QUERY_WIDTH, generator=rng),
        **norm(rng, "ln_vision", video_dim),
        **qformer(rng, "Qformer", video_dim, layers=12, cross_every=2),
        **linear(rng, "t5_proj", QUERY_WIDTH, 9),
    }
    videochat = {
        "extra_query_tokens": torch.randn(1, 64, QUERY_WIDTH, generator=rng),
        **linear(rng, "llama_proj", QUERY_WIDTH, DIM),
        **linear(rng, "visual_encoder.gmhra.0.attn.out_proj", video_dim, video_dim),
        **norm(rng, "ln_vision", video_dim),
        "Qformer.bert.embeddings.position_ids": torch.arange(4)[None],
        **BUFFER,
    }
    return blip2, videochat


def chatbridge_tensors(audio_dim: int, video_dim: int) -> Tensors:
    """All parameters of ChatBridge, frozen encoders and language model among them."""
    rng = torch.Generator().manual_seed(7)
    return {
        "image_query_tokens": torch.randn(1, 32, QUERY_WIDTH, generator=rng),
        "audio_query_tokens": torch.randn(1, 32, QUERY_WIDTH, generator=rng),
        **qformer(rng, "Qformer", video_dim, layers=12, cross_every=2),
        **linear(rng, "audio_trans", audio_dim, video_dim),
        **linear(rng, "llama_proj", QUERY_WIDTH, DIM),
        **linear(rng, "visual_encoder.patch_embed.proj", 3, video_dim),
        **linear(rng, "audio_encoder.post_extract_proj", 3, audio_dim),
        **norm(rng, "ln_vision", video_dim),
        **norm(rng, "ln_audio", audio_dim),
        **language_model(rng, "llama_model."),
        **BUFFER,
    }


def tensors_by_file(system: str, audio_dim: int, video_dim: int) -> tuple[Tensors, ...]:
    """What each of a checkpoint's files holds."""
    match system:
        case "affectgpt":
            return (affectgpt_tensors(audio_dim, video_dim),)
        case "pandagpt":
            return (pandagpt_tensors(audio_dim),)
        case "emotion_llama":
            return (emotion_llama_tensors(audio_dim),)
        case "video_llama":
            return video_llama_tensors(audio_dim, video_dim)
        case "video_llama2":
            return video_llama2_tensors(audio_dim)
        case "videochat":
            return videochat_tensors(video_dim)
        case _:
            return (chatbridge_tensors(audio_dim, video_dim),)


def tensors_of(system: str) -> Tensors:
    """What a checkpoint holds, in all its files."""
    return {key: tensor for part in tensors_by_file(system, *WIDTHS[system]) for key, tensor in part.items()}


def write_checkpoint(folder: Path, system: str, audio_dim: int = 0, video_dim: int = 0) -> list[Path]:
    """A checkpoint's files as the system's training writes them; widths of 0 are those of `WIDTHS`."""
    widths = (audio_dim or WIDTHS[system][0], video_dim or WIDTHS[system][1])
    paths = [folder / name for name in FILES[system]]
    for path, tensors in zip(paths, tensors_by_file(system, *widths), strict=True):
        if path.suffix == ".safetensors":
            save_file(tensors, path)
        elif system == "pandagpt":
            torch.save(OrderedDict((key, nn.Parameter(tensor)) for key, tensor in tensors.items()), path)
        else:
            training = {"optimizer": {"state": {}}, "config": {"run": {"amp": True}}, "scaler": None, "epoch": 30}
            torch.save({"model": tensors, **training}, path)
    return paths
