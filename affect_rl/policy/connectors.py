"""Connectors: from the feature frames of a slot's modalities to its soft tokens.

The kinds are those of published systems, after their code:

- `Projection`: PandaGPT adds up the projections of ImageBind's image and audio vectors
  (yxuansu/PandaGPT, ``code/model/openllama.py``); Emotion-LLaMA puts four neighbouring patches side by side before it
  projects them, as MiniGPT-v2 does (ZebangCheng/Emotion-LLaMA, ``minigpt4/models/minigpt_v2.py``); Video-LLaMA 2 ends
  in an MLP with GELU (DAMO-NLP-SG/VideoLLaMA2, ``videollama2/model/projector.py``).
- `AttentionPooling` and `PreFusion`: AffectGPT's ``attention`` fusion of one modality and of both
  (zeroQiaoba/AffectGPT, ``my_affectgpt/models/affectgpt.py``). Its weights are plain scores, without a softmax.
- `QFormer`: BLIP-2's, as Video-LLaMA (DAMO-NLP-SG/Video-LLaMA, ``video_llama/models/video_llama.py``), ChatBridge
  (joez17/ChatBridge, ``chatbridge/models/chatbridge.py``) and VideoChat (OpenGVLab/Ask-Anything) use it on frames.

Frames of an absent modality are masked and zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from affect_rl.errors import AffectError
from affect_rl.policy.fusion import Sequences, masked_mean
from affect_rl.policy.slots import SlotConfig

_QFORMER_WIDTH = 768


def make_connector(slot: SlotConfig, dims: Mapping[str, int], lm_dim: int) -> nn.Module:
    """The module of a slot; it turns the `Sequences` of each of its modalities into ``[N, slot.tokens, lm_dim]``.

    Args:
        slot: what to build.
        dims: feature widths of ``audio`` and ``video``.
        lm_dim: width of the language model's embeddings.

    Raises:
        AffectError: the slot does not fit the widths.
    """
    widths = [_width(slot, modality, dims[modality]) for modality in slot.modalities]
    if slot.connector == "qformer":
        return QFormer(slot, widths, lm_dim)
    if slot.connector == "attention":
        return PreFusion(slot, widths, lm_dim) if len(widths) == 2 else AttentionPooling(slot, widths[0], lm_dim)
    return Projection(slot, widths, lm_dim)


def _width(slot: SlotConfig, modality: str, width: int) -> int:
    first, end = slot.columns
    if end > width:
        raise AffectError(
            f"slot {slot.name!r}: columns={[first, end]} of frames that are {width} wide; extract {modality} with the "
            "encoders that the slot is for, or give it other columns"
        )
    return end - first or width


def window_means(frames: Sequences, count: int) -> Tensor:
    """Means ``[N, count, d]`` over `count` equal windows of each row's frames, which share frames at their borders.

    Equals ``adaptive_avg_pool1d`` of each row's own frames; zeros where a row has none.
    """
    length = frames.mask.sum(dim=1)[:, None]
    edges = torch.arange(count + 1, device=length.device)
    first = torch.div(edges[:-1] * length, count, rounding_mode="floor")
    last = -torch.div(-edges[1:] * length, count, rounding_mode="floor")
    place = torch.arange(frames.mask.shape[1], device=length.device)
    inside = (place >= first[..., None]) & (place < last[..., None])  # [N, count, T]
    weights = inside / inside.sum(dim=-1, keepdim=True).clamp(min=1)
    return weights.to(frames.values.dtype) @ frames.values


class Projection(nn.Module):
    """A linear layer or MLP on windows of frames; of two modalities in one space, the sum of those present."""

    def __init__(self, slot: SlotConfig, widths: list[int], lm_dim: int) -> None:
        super().__init__()
        if len(set(widths)) > 1:
            raise AffectError(
                f"slot {slot.name!r}: source=joint with connector={slot.connector} projects both modalities with the "
                f"same weights, but audio is {widths[0]} wide and video {widths[1]}; extract both with one encoder for "
                "both, such as ImageBind, or use connector=attention"
            )
        self.tokens, self.stack = slot.tokens, slot.stack
        wide, hidden = slot.stack * widths[0], slot.width or lm_dim
        self.project = (
            nn.Linear(wide, lm_dim)
            if slot.connector == "linear"
            else nn.Sequential(nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, lm_dim))
        )

    def forward(self, *modalities: Sequences) -> Tensor:
        counted = torch.stack([frames.mask.any(dim=1) for frames in modalities])
        counted[0] |= ~counted.any(dim=0)  # a token of zeros has no direction, which a language model's norm needs
        projected = []
        for frames in modalities:
            windows = window_means(frames, self.tokens * self.stack).unflatten(1, (self.tokens, self.stack))
            projected.append(self.project(windows.flatten(2)))
        return torch.einsum("mn,mntd->ntd", counted.to(projected[0].dtype), torch.stack(projected))


class AttentionPooling(nn.Module):
    """Frames weighted by a learned score, summed and projected: ``W sum_t (w h_t + b) h_t``."""

    def __init__(self, slot: SlotConfig, width: int, lm_dim: int) -> None:
        super().__init__()
        self.tokens = slot.tokens
        self.score = nn.Linear(width, 1)
        self.project = nn.Linear(width, lm_dim)

    def forward(self, frames: Sequences) -> Tensor:
        scores = self.score(frames.values) * frames.mask[..., None]
        pooled = (scores * frames.values).sum(dim=1, keepdim=True)
        return self.project(pooled).expand(-1, self.tokens, -1)


class PreFusion(nn.Module):
    """The modalities' means in one space, weighted by scores that both decide, summed and projected."""

    def __init__(self, slot: SlotConfig, widths: list[int], lm_dim: int) -> None:
        super().__init__()
        self.tokens, width = slot.tokens, max(widths)
        self.audio, self.video = (nn.Linear(dim, width) for dim in widths)
        self.mix = nn.Linear(2 * width, width)
        self.score = nn.Linear(width, 2)
        self.project = nn.Linear(width, lm_dim)

    def forward(self, audio: Sequences, video: Sequences) -> Tensor:
        means = [self.video(masked_mean(*video)), self.audio(masked_mean(*audio))]
        scores = self.score(self.mix(torch.cat(means, dim=-1)))
        fused = torch.einsum("nm,nmd->nd", scores, torch.stack(means, dim=1))
        return self.project(fused)[:, None].expand(-1, self.tokens, -1)


class QFormer(nn.Module):
    """Learned queries that attend to frames, with learned positions if there are any, then a projection.

    Two modalities are brought to one width and stand one behind the other, video first.
    """

    def __init__(self, slot: SlotConfig, widths: list[int], lm_dim: int) -> None:
        super().__init__()
        width, frame_width = slot.width or _QFORMER_WIDTH, slot.frame_width or max(widths)
        self.modalities = slot.modalities
        aligned = slot.modalities if len(widths) == 2 or slot.frame_width else ()
        self.align = nn.ModuleDict({m: nn.Linear(dim, frame_width) for m, dim in zip(aligned, widths, strict=False)})
        self.positions = nn.Embedding(slot.positions, frame_width) if slot.positions else None
        self.queries = nn.Parameter(torch.randn(1, slot.tokens, width) * 0.02)
        settings: Any = Blip2QFormerConfig(
            hidden_size=width,
            num_hidden_layers=slot.layers,
            num_attention_heads=slot.heads,
            intermediate_size=4 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            cross_attention_frequency=slot.cross_every,
            encoder_hidden_size=frame_width,
            attn_implementation="eager",
        )
        self.qformer = Blip2QFormerModel(settings)
        self.project = nn.Linear(width, lm_dim)

    def forward(self, *modalities: Sequences) -> Tensor:
        video_first = [*zip(self.modalities, modalities, strict=True)][::-1]
        values = torch.cat([self.align[m](f.values) if m in self.align else f.values for m, f in video_first], dim=1)
        mask = torch.cat([frames.mask for _, frames in video_first], dim=1)
        count = len(values)
        if not count:  # transformers cannot reshape a batch of no rows, and sharded training wants the module run
            values, mask = F.pad(values, (0, 0, 0, 0, 0, 1)), F.pad(mask, (0, 0, 0, 1))
        if self.positions:
            place = (mask.cumsum(dim=1) - 1).clamp(min=0, max=self.positions.num_embeddings - 1)
            values = values + self.positions(place)
        seen = mask.clone()
        seen[:, 0] |= ~mask.any(dim=1)  # softmax over nothing has no value
        hidden = self.qformer(
            query_embeds=self.queries.expand(len(values), -1, -1),
            encoder_hidden_states=values,
            encoder_attention_mask=seen,
        ).last_hidden_state
        return self.project(hidden)[:count]
