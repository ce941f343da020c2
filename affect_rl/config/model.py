"""The policy: language model, adapters, fusion modules."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import model_validator

from affect_rl.backbones.systems import System
from affect_rl.policy.slots import SlotConfig, check_heads
from affect_rl.section import (
    POLICY,
    SFT,
    TRAINING,
    Affects,
    Natural,
    NonNegative,
    Positive,
    Section,
)


class TinyModelConfig(Section, affects=(POLICY, SFT, TRAINING)):
    """The randomly initialised language model used where `ModelConfig.base` is ``tiny``."""

    layers: Positive = 4
    """Transformer blocks."""
    dim: Positive = 128
    """Width of the embeddings."""
    heads: Positive = 4
    """Attention heads; must divide `dim`."""
    vocabulary: Positive = 2048
    """Entries of the tokenizer that is trained on the data."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        check_heads(self.heads, "dim", self.dim)
        return self


class LoraConfig(Section, affects=(SFT, TRAINING)):
    """Low-rank adapters on the language model."""

    rank: Natural = 0
    """Rank of the adapters; 0: train all weights."""
    alpha: Positive = 32
    """Scale: an adapter's output is multiplied by alpha / rank."""
    targets: str | tuple[str, ...] = "all-linear"
    """Module names that get adapters, or ``all-linear``."""


class FusionConfig(Section, affects=(POLICY, SFT, TRAINING)):
    """Projectors, RAAF and MB-MoE."""

    dim: Positive = 64
    """Width of the fusion modules."""
    heads: Positive = 4
    """Attention heads; must divide `dim`."""
    soft_tokens: Positive = 2
    """Soft tokens per modality, where there are no slots."""
    slots: tuple[SlotConfig, ...] = ()
    """Where soft tokens come from, in their order; empty: `soft_tokens` of audio, then of video. With slots, RAAF and
    MB-MoE work beside the features, `dim` wide, and start as the identity."""
    experts: Positive = 4
    """Experts of MB-MoE."""
    top_k: Positive = 2
    """Experts each sample is routed to; at most `experts`."""
    residual: bool = True
    """Start MB-MoE as the identity; False is equation 7 as published."""
    load_balance: Annotated[NonNegative, Affects(SFT, TRAINING)] = 0.01
    """Weight of the load-balance loss."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_heads(self.heads, "dim", self.dim)
        if self.top_k > self.experts:
            raise ValueError(f"top_k={self.top_k} exceeds experts={self.experts}; lower top_k or raise experts")
        names = [slot.name for slot in self.slots]
        if len(set(names)) < len(names):
            raise ValueError(f"slots {names} share a name; give each slot its own")
        return self


class ModelConfig(Section):
    """The policy: language model, adapters, fusion modules."""

    base: Annotated[str, Affects(POLICY, SFT, TRAINING)] = "tiny"
    """``tiny``; ``smollm2``, a real one of 135 million weights that comes with a package; a local path or hub name of a
    causal language model; or a policy directory, trained before or of ``affect-rl backbone import``, which brings its
    fusion modules as far as they fit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights."""
    context: Positive = 512
    """Longest prompt plus answer, in tokens."""
    backbone: Annotated[System | None, Affects(POLICY, SFT, TRAINING)] = None
    """Published system whose connectors it has; they start at random unless `base` is an import of that system."""
    tiny: TinyModelConfig = TinyModelConfig()
    """The tiny model's sizes."""
    lora: LoraConfig = LoraConfig()
    """Adapters; off by default."""
    fusion: FusionConfig = FusionConfig()
    """Fusion modules."""

    def unless_tiny(self, asked: bool | None) -> bool:
        """What a setting `asked` for; if it left it open (None), True with every base but ``tiny``."""
        return self.base != "tiny" if asked is None else asked

    @model_validator(mode="after")
    def _has_slots_once(self) -> Self:
        if self.backbone and self.fusion.slots:
            raise ValueError(f"backbone={self.backbone} brings its own slots; leave it or fusion.slots out")
        return self
