"""Tiny random checkpoints of published systems; their keys are written out as the systems' own code saves them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

DIM, LAYERS, HEADS, RANK, CONTEXT = 64, 2, 2, 4, 384
HIDDEN = 96
TEXTS = ["so glad to see you again, my friend", "what a terrible, sad day it was", "well, there it is"]
FILES = {"affectgpt": "checkpoint_000030_loss_0.751.pth", "pandagpt": "pytorch_model.pt"}


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
    family = Qwen2Config if system == "affectgpt" else LlamaConfig
    config = family(
        vocab_size=len(fast), hidden_size=DIM, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=CONTEXT,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


def adapters(rng: torch.Generator, targets: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    """PEFT's keys for adapters on `targets`, whose values are the modules' widths in and out."""
    tensors = {}
    for layer in range(LAYERS):
        for target, (wide_in, wide_out) in targets.items():
            key = f"llama_model.base_model.model.model.layers.{layer}.{target}"
            tensors[f"{key}.lora_A.default.weight"] = torch.randn(RANK, wide_in, generator=rng) * 0.3
            tensors[f"{key}.lora_B.default.weight"] = torch.randn(wide_out, RANK, generator=rng) * 0.3
    return tensors


def linear(rng: torch.Generator, key: str, wide_in: int, wide_out: int) -> dict[str, Tensor]:
    """A linear layer's keys."""
    weight = torch.randn(wide_out, wide_in, generator=rng) * wide_in**-0.5
    return {f"{key}.weight": weight, f"{key}.bias": torch.randn(wide_out, generator=rng) * 0.1}


ATTENTION = {f"self_attn.{name}_proj": (DIM, DIM) for name in "qkvo"}
MLP = {"mlp.gate_proj": (DIM, HIDDEN), "mlp.up_proj": (DIM, HIDDEN), "mlp.down_proj": (HIDDEN, DIM)}


def affectgpt_tensors(audio_dim: int, video_dim: int) -> dict[str, Tensor]:
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


def pandagpt_tensors(width: int) -> dict[str, Tensor]:
    """The trained parameters of PandaGPT."""
    rng = torch.Generator().manual_seed(2)
    return {**adapters(rng, ATTENTION), **linear(rng, "llama_proj", width, DIM)}


def write_checkpoint(folder: Path, system: str, audio_dim: int, video_dim: int) -> Path:
    """A checkpoint file as the system's training writes it."""
    path = folder / FILES[system]
    if system == "affectgpt":
        tensors = affectgpt_tensors(audio_dim, video_dim)
        training = {"optimizer": {"state": {}}, "config": {"run": {"amp": True}}, "scaler": None, "epoch": 30}
        torch.save({"model": tensors, **training}, path)
    else:
        named = ((key, nn.Parameter(tensor)) for key, tensor in pandagpt_tensors(audio_dim).items())
        torch.save(OrderedDict(named), path)
    return path
