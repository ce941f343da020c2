"""Tokenizers and tiny language models, for policies that start from nothing but a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import shorten

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from affect_rl.errors import AffectError
from affect_rl.policy.smollm2 import NAME as SMOLLM2
from affect_rl.policy.smollm2 import smollm2
from affect_rl.policy.special_tokens import END_TOKEN, PAD_TOKEN, PERCEPT_TOKEN


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """Byte-level BPE of at most `vocabulary` entries, trained on `texts`; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD_TOKEN, END_TOKEN, PERCEPT_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=END_TOKEN,
        additional_special_tokens=[PERCEPT_TOKEN],
        clean_up_tokenization_spaces=False,
    )


def tiny_language_model(
    tokenizer: PreTrainedTokenizerBase, *, layers: int, dim: int, heads: int, context: int, seed: int
) -> nn.Module:
    """A randomly initialised Qwen2 of `layers` blocks, `dim` wide, with tied embeddings."""
    config = tiny_config(len(tokenizer), layers=layers, dim=dim, heads=heads, context=context)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def tiny_config(vocabulary: int, *, layers: int, dim: int, heads: int, context: int) -> Qwen2Config:
    """Configuration of `tiny_language_model`, but for its special tokens."""
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=3 * dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        # transformers' 0.02 fits widths around 2,000; at 128 attention starts uniform and copying is learned late.
        initializer_range=dim**-0.5,
        bos_token_id=None,
    )


def pretrained_language_model(name: str, dtype: torch.dtype) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer by local path, hub name or `smollm2.NAME`, with a placeholder token.

    Raises:
        AffectError: it cannot be loaded.
    """
    name = str(smollm2()) if name == SMOLLM2 else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        reason = shorten(str(error), 160, placeholder=" ...")
        raise AffectError(
            f"model.base={name}: cannot be loaded ({reason}); give the directory of a policy or of a causal language "
            "model, or a hub name"
        ) from error
    tokenizer.add_special_tokens({"additional_special_tokens": [PERCEPT_TOKEN]})
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer
