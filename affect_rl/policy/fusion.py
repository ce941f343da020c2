"""From features to soft tokens: projectors, retrieval-augmented fusion (RAAF), mixture of experts (MB-MoE).

The same modules run in the learner's graph and inside the rollout engine, so that only features
travel and one weight sync covers everything that is trained. `Fusion` is the front of a policy made from
nothing; `affect_rl.policy.slot_fusion` is that of a policy with the connectors of a published system.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affect_rl.policy.slots import SlotConfig
from affect_rl.trajectory import Percept


@dataclass(frozen=True, slots=True)
class FusionShape:
    """Sizes of the fusion modules; stored in the policy's ``config.json``.

    Attributes:
        audio_dim: width of one audio feature frame (at least 1, also where a dataset has none).
        video_dim: width of one video feature frame.
        lm_dim: width of the language model's embeddings.
        dim: width of the fusion modules.
        heads: attention heads of RAAF and of the token pooling.
        soft_tokens: soft tokens per modality, where there are no slots.
        experts: experts of MB-MoE.
        top_k: experts that each sample is routed to.
        residual: add the experts' output to their input and start them at zero, so that training
            begins at the identity. False is equation 7 as published.
        slots: where soft tokens come from, in their order; empty: those of audio, then those of video.
    """

    audio_dim: int
    video_dim: int
    lm_dim: int
    dim: int = 128
    heads: int = 4
    soft_tokens: int = 4
    experts: int = 4
    top_k: int = 2
    residual: bool = True
    slots: tuple[SlotConfig, ...] = ()

    @property
    def tokens(self) -> int:
        """Soft tokens of a percept."""
        return sum(slot.tokens for slot in self.slots) or 2 * self.soft_tokens

    @property
    def unread(self) -> set[str]:
        """Modalities that no slot reads, which inform the router of MB-MoE only."""
        return {"audio", "video"} - {m for slot in self.slots for m in slot.modalities} if self.slots else set()

    def to_dict(self) -> dict[str, Any]:
        """The shape as ``config.json`` holds it; `shape_from_dict` reads it."""
        return asdict(self) | {"slots": [slot.model_dump() for slot in self.slots]}


class Sequences(NamedTuple):
    """Padded feature sequences: values ``[N, T, d]``, and which frames are real ``[N, T]`` (bool)."""

    values: Tensor
    mask: Tensor


class PerceptBatch(NamedTuple):
    """N percepts as tensors. `fused` ``[N]`` (bool) says which go through RAAF and MB-MoE."""

    audio: Sequences
    video: Sequences
    audio_support: Sequences
    video_support: Sequences
    fused: Tensor

    def to(self, device: torch.device | str) -> PerceptBatch:
        frames = (self.audio, self.video, self.audio_support, self.video_support)
        audio, video, *supports = [Sequences(s.values.to(device), s.mask.to(device)) for s in frames]
        return PerceptBatch(audio, video, supports[0], supports[1], self.fused.to(device))


class FusionOutput(NamedTuple):
    """Soft tokens ``[N, shape.tokens, lm_dim]`` and what MB-MoE did.

    `router` holds the router's full distribution and `weights` the mixture after top-k, both
    ``[M, experts]`` for the M fused percepts of the batch.
    """

    tokens: Tensor
    router: Tensor
    weights: Tensor


def pad_sequences(arrays: Sequence[np.ndarray | Tensor | None], dim: int) -> Sequences:
    """Pad ``[T_i, dim]`` arrays (None: no frames) to one tensor of at least one frame."""
    length = max([1, *(a.shape[0] for a in arrays if a is not None)])
    values = torch.zeros(len(arrays), length, dim)
    mask = torch.zeros(len(arrays), length, dtype=torch.bool)
    for row, array in enumerate(arrays):
        if array is not None and array.shape[0]:
            values[row, : array.shape[0]] = torch.tensor(array, dtype=torch.float32)  # arrays may be read-only
            mask[row, : array.shape[0]] = True
    return Sequences(values, mask)


def collate_percepts(percepts: Sequence[Percept], audio_dim: int, video_dim: int) -> PerceptBatch:
    """Pad N percepts into one `PerceptBatch`."""
    return PerceptBatch(
        pad_sequences([p.audio for p in percepts], audio_dim),
        pad_sequences([p.video for p in percepts], video_dim),
        pad_sequences([p.audio_support for p in percepts], audio_dim),
        pad_sequences([p.video_support for p in percepts], video_dim),
        torch.tensor([p.fused for p in percepts], dtype=torch.bool),
    )


class Attention(nn.Module):
    """Multi-head attention whose rows may have no key at all: those rows get zeros."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Queries ``[N, T, d]``, keys ``[N, S, d]``, mask ``[N, S]`` (True: real) to ``[N, T, d]``."""
        some = mask.any(dim=1)
        usable = mask | ~some[:, None]

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.query(queries)), split(self.key(keys)), split(self.value(keys))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=usable[:, None, None, :])
        return self.out(attended.transpose(1, 2).flatten(2)) * some[:, None, None]


class Raaf(nn.Module):
    """Retrieval-augmented affective fusion of one modality, equations 5 and 6.

    ``A = MHA(X, E, E)``, ``g = sigmoid(W [X; A] + b)``, ``X~ = X + g * A``. The gate starts nearly
    shut (b = -2): support has to earn its way in.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.gate = nn.Linear(2 * dim, dim)
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, x: Tensor, support: Tensor, support_mask: Tensor) -> Tensor:
        """X ``[N, T, d]`` and support ``[N, S, d]`` to the enriched X ``[N, T, d]``."""
        attended = self.attention(x, support, support_mask)
        return x + torch.sigmoid(self.gate(torch.cat([x, attended], dim=-1))) * attended


class MbMoe(nn.Module):
    """Modality-balancing mixture of experts, equation 7: one routing for both modalities.

    ``s = [mean X~_v; mean X~_a]``; softmax over the top-k of ``W_r s`` gives alpha;
    ``X^_m = X~_m + sum_k alpha_k E_k(X~_m)`` (without the first term if `residual` is False).
    """

    def __init__(self, dim: int, experts: int, top_k: int, residual: bool) -> None:
        super().__init__()
        self.top_k, self.residual = top_k, residual
        self.router = nn.Linear(2 * dim, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)) for _ in range(experts)
        )
        if residual:
            for name, parameter in self.experts.named_parameters():
                if name.split(".")[1] == "2":  # an expert's last layer
                    nn.init.zeros_(parameter)

    def forward(self, audio: Tensor, video: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Audio ``[N, T_a, d]``, video ``[N, T_v, d]``, pooled ``[N, 2d]`` (video first).

        Returns both modalities, the router's distribution and the mixture weights ``[N, experts]``.
        """
        logits = self.router(pooled)
        chosen, index = logits.topk(self.top_k, dim=-1)
        weights = torch.zeros_like(logits).scatter(-1, index, chosen.softmax(dim=-1))
        mixed = [self._mix(x, weights) for x in (audio, video)]
        if self.residual:
            mixed = [x + m for x, m in zip((audio, video), mixed, strict=True)]
        return mixed[0], mixed[1], logits.softmax(dim=-1), weights

    def _mix(self, x: Tensor, weights: Tensor) -> Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)  # [N, experts, T, d]
        return torch.einsum("ne,netd->ntd", weights, outputs)


class FeatureScale(nn.Module):
    """Brings one modality's features to mean 0 and deviation 1.

    Feature scales differ by orders of magnitude between extractors; the statistics of the training split
    travel with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("std", torch.ones(feature_dim))

    def standardise(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        """Features ``[..., feature_dim]``, likewise."""
        return ((features - self.mean) / self.std).to(dtype)

    @torch.no_grad()
    def fit(self, arrays: Sequence[np.ndarray]) -> None:
        """Take the statistics of arrays ``[T, feature_dim]``; of none, leave them as they are."""
        if arrays:
            frames = np.concatenate(arrays).astype(np.float64)
            self.mean.copy_(torch.from_numpy(frames.mean(axis=0)))
            self.std.copy_(torch.from_numpy(frames.std(axis=0)).clamp(min=1e-6))


class ModalityEncoder(FeatureScale):
    """One modality's projector, its fusion with support, and its pooling into soft tokens."""

    def __init__(self, feature_dim: int, shape: FusionShape) -> None:
        super().__init__(feature_dim)
        self.project = nn.Linear(feature_dim, shape.dim)
        self.absent = nn.Parameter(torch.randn(shape.dim) * 0.02)
        self.raaf = Raaf(shape.dim, shape.heads)
        self.queries = nn.Parameter(torch.randn(shape.soft_tokens, shape.dim) * 0.5)
        self.pool = Attention(shape.dim, shape.heads)
        self.norm = nn.LayerNorm(shape.dim)
        self.to_lm = nn.Linear(shape.dim, shape.lm_dim)

    def embed(self, features: Tensor) -> Tensor:
        """Features ``[N, T, feature_dim]`` to ``[N, T, dim]``."""
        return self.project(self.standardise(features, self.project.weight.dtype))

    def embed_present(self, frames: Sequences) -> tuple[Tensor, Tensor]:
        """Embed frames; a row without any becomes the one learned `absent` frame."""
        x, mask = self.embed(frames.values), frames.mask
        missing = ~mask.any(dim=1)
        x = torch.where(missing[:, None, None], self.absent, x)
        first = torch.zeros_like(mask)
        first[:, 0] = True
        return x, mask | (missing[:, None] & first)

    def soft_tokens(self, x: Tensor, mask: Tensor) -> Tensor:
        """Pool ``[N, T, dim]`` into ``[N, soft_tokens, lm_dim]``."""
        queries = self.queries.expand(x.shape[0], -1, -1)
        return self.to_lm(self.norm(queries + self.pool(queries, x, mask)))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``[N, T, d]`` over the frames with mask True."""
    weight = mask.to(x.dtype)[..., None]
    return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


class Fusion(nn.Module):
    """Percepts in, soft tokens out."""

    def __init__(self, shape: FusionShape) -> None:
        super().__init__()
        self.shape = shape
        self.audio = ModalityEncoder(shape.audio_dim, shape)
        self.video = ModalityEncoder(shape.video_dim, shape)
        self.moe = MbMoe(shape.dim, shape.experts, shape.top_k, shape.residual)

    def forward(self, batch: PerceptBatch) -> FusionOutput:
        """Soft tokens of N percepts; only the fused ones go through RAAF and MB-MoE."""
        audio, audio_mask = self.audio.embed_present(batch.audio)
        video, video_mask = self.video.embed_present(batch.video)
        # No shortcut where no percept is fused: sharded training communicates inside modules, so all
        # ranks must run the same ones, on no rows if need be.
        rows = batch.fused.nonzero(as_tuple=True)
        a = self._enrich(self.audio, audio[rows], batch.audio_support, rows)
        v = self._enrich(self.video, video[rows], batch.video_support, rows)
        pooled = torch.cat([masked_mean(v, video_mask[rows]), masked_mean(a, audio_mask[rows])], dim=-1)
        a, v, router, weights = self.moe(a, v, pooled)
        # Under autocast the experts compute in half precision, and without the residual nothing widens it.
        audio, video = audio.index_put(rows, a.to(audio.dtype)), video.index_put(rows, v.to(video.dtype))
        tokens = [self.audio.soft_tokens(audio, audio_mask), self.video.soft_tokens(video, video_mask)]
        return FusionOutput(torch.cat(tokens, dim=1), router, weights)

    @staticmethod
    def _enrich(encoder: ModalityEncoder, x: Tensor, support: Sequences, rows: tuple[Tensor, ...]) -> Tensor:
        return encoder.raaf(x, encoder.embed(support.values[rows]), support.mask[rows])

    def fit_scale(self, audio: Sequence[np.ndarray], video: Sequence[np.ndarray]) -> None:
        """Set the feature statistics from the training split's arrays ``[T, d]``."""
        self.audio.fit(audio)
        self.video.fit(video)


def load_balance(router: Tensor, weights: Tensor) -> Tensor:
    """Load-balance loss of a batch: 1 when experts share the work evenly, up to `experts` / `top_k` when not.

    ``experts * sum_e f_e P_e``, with f_e the share of chosen slots that went to expert e and P_e its
    mean router probability (Switch Transformer, arXiv 2101.03961, equation 4, for top-k routing).
    A percept chooses an expert once in its `top_k` slots, so f_e is 1 / `top_k` at most; all f_e P_e reach that
    when all percepts choose the same experts and the router gives the others nothing.
    Router and weights are ``[M, experts]``; a batch without fused percepts costs 0.
    """
    if router.shape[0] == 0:
        return router.sum()
    chosen = (weights > 0).to(router.dtype)
    load = chosen.sum(dim=0) / chosen.sum()
    return router.shape[1] * (load * router.mean(dim=0)).sum()


def shape_from_dict(values: dict[str, Any]) -> FusionShape:
    """Read a shape from ``config.json``, ignoring nothing: unknown keys are an error."""
    known = {f.name for f in fields(FusionShape)}
    if unknown := set(values) - known:
        raise ValueError(f"fusion shape has unknown keys {sorted(unknown)}; known: {sorted(known)}")
    slots = tuple(SlotConfig(**slot) for slot in values.get("slots", ()))
    return FusionShape(**values | {"slots": slots})
