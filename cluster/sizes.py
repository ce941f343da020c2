"""How large a policy is, from its configuration alone: on torch's meta device, which holds shapes and no numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from affect_rl.backbones.layouts import LAYOUTS
from affect_rl.config.model import ModelConfig
from affect_rl.errors import AffectError
from affect_rl.policy.config import AffectConfig
from affect_rl.policy.directory import MANIFEST
from affect_rl.policy.fusion import FusionShape
from affect_rl.policy.slot_fusion import make_fusion
from affect_rl.policy.smollm2 import NAME as SMOLLM2
from affect_rl.policy.smollm2 import smollm2_config
from affect_rl.policy.tokens import tiny_config


@dataclass(frozen=True, slots=True)
class PolicySizes:
    """A policy in numbers. Parameters are counted, widths are in elements.

    Attributes:
        language: parameters of the language model, its head included; a tied head is counted once.
        head: parameters of the map from states to logits.
        tied: whether the head is the embeddings.
        adapter: parameters of one adapter; 0: no LoRA.
        fusion: parameters of the fusion modules.
        layers: blocks.
        hidden: width of the states between blocks.
        queries: width of a block's queries, all heads together.
        keys: width of its keys, and of its values.
        key_heads: heads of its keys.
        inner: width of its MLP.
        vocabulary: rows of the head.
    """

    language: int
    head: int
    tied: bool
    adapter: int
    fusion: int
    layers: int
    hidden: int
    queries: int
    keys: int
    key_heads: int
    inner: int
    vocabulary: int

    @property
    def value_head(self) -> int:
        return self.hidden + 1

    @property
    def total(self) -> int:
        """All parameters but those of adapters."""
        return self.language + self.fusion + self.value_head


def text_config_of(model: ModelConfig, published: Path | None = None) -> Any:
    """Configuration of the language model that `model` names; nothing is downloaded.

    Args:
        model: names it.
        published: its ``config.json``, or a directory with one, where the model itself is not on this machine.

    Raises:
        AffectError: there is no configuration of it on this machine.
    """
    if model.base == "tiny" and published is None:
        shape = model.tiny.model_dump(exclude={"vocabulary"})
        return tiny_config(model.tiny.vocabulary, **shape, context=model.context)
    if model.base == SMOLLM2 and published is None:
        return smollm2_config()
    source = str(published or model.base)
    try:
        if (Path(source) / MANIFEST).is_file():
            return AffectConfig.from_pretrained(source).text_config
        return AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise AffectError(
            f"model.base={model.base}: no configuration of it in {source} on this machine, so its size is unknown; "
            "give the config.json that it was published with (--model-config FILE), or a local path as model.base"
        ) from error


def policy_sizes(text_config: Any, model: ModelConfig, audio_dim: int, video_dim: int) -> PolicySizes:
    """Sizes of the policy that `model` makes of a language model, for features so wide."""
    with torch.device("meta"):
        language = AutoModelForCausalLM.from_config(text_config)
        fusion = make_fusion(
            FusionShape(
                max(audio_dim, 1),
                max(video_dim, 1),
                text_config.hidden_size,
                **model.fusion.model_dump(exclude={"load_balance", "slots"}),
                slots=LAYOUTS[model.backbone].slots if model.backbone else model.fusion.slots,
            )
        )
    head: nn.Module = language.get_output_embeddings()
    head_width = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    key_heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
    # A token goes through so many experts of a mixture.
    experts = getattr(text_config, "num_experts_per_tok", None)
    inner = getattr(text_config, "moe_intermediate_size", 0) * experts if experts else text_config.intermediate_size
    return PolicySizes(
        language=_count(language),
        head=_count(head),
        tied=head.weight is language.get_input_embeddings().weight,
        adapter=_adapter(language, head, model) if model.lora.rank else 0,
        fusion=_count(fusion),
        layers=text_config.num_hidden_layers,
        hidden=text_config.hidden_size,
        queries=head_width * text_config.num_attention_heads,
        keys=head_width * key_heads,
        key_heads=key_heads,
        inner=inner,
        vocabulary=text_config.vocab_size,
    )


def _adapter(language: nn.Module, head: nn.Module, model: ModelConfig) -> int:
    """A of ``[rank, in]`` and B of ``[out, rank]`` on each layer that `model.lora` targets."""
    targets = model.lora.targets
    layers = {n: m for n, m in language.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if not isinstance(targets, str):
        layers = {n: m for n, m in layers.items() if n.rpartition(".")[2] in targets}
    return model.lora.rank * sum(layer.in_features + layer.out_features for layer in layers.values())


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
