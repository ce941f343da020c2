"""The front of a policy whose soft tokens come from slots, with RAAF and MB-MoE beside the features.

A published system was trained without RAAF and MB-MoE. So that it behaves as published at first, they work in
a bottleneck: features are brought down to ``shape.dim``, fused there, and what comes back up is added to the
features. The way up starts at zero (as adapters do, arXiv 1902.00751); the connectors see what they were trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from affect_rl.policy.connectors import make_connector
from affect_rl.policy.fusion import (
    FeatureScale,
    Fusion,
    FusionOutput,
    FusionShape,
    MbMoe,
    PerceptBatch,
    Raaf,
    Sequences,
    masked_mean,
)
from affect_rl.policy.slots import SlotConfig


class Bottleneck(FeatureScale):
    """One modality's way down to RAAF and MB-MoE, and back up.

    Args:
        feature_dim: width of a frame.
        shape: sizes.
        returns: whether a slot reads this modality; if none does, it only informs the router.
    """

    def __init__(self, feature_dim: int, shape: FusionShape, *, returns: bool) -> None:
        super().__init__(feature_dim)
        self.norm = nn.LayerNorm(feature_dim)
        self.down = nn.Linear(feature_dim, shape.dim)
        self.raaf = Raaf(shape.dim, shape.heads)
        self.up = nn.Linear(shape.dim, feature_dim) if returns else None
        if self.up:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def scaled(self, frames: Sequences) -> Sequences:
        """Standardised frames; those that are none are zero."""
        values = self.standardise(frames.values, self.down.weight.dtype)
        return Sequences(values * frames.mask[..., None], frames.mask)

    def enrich(self, frames: Sequences, support: Sequences) -> Tensor:
        """Frames ``[M, T, d]`` and support ``[M, S, d]`` to ``[M, T, dim]``."""
        return self.raaf(self._narrow(frames.values), self._narrow(support.values), support.mask)

    def widen(self, frames: Sequences, rows: tuple[Tensor, ...], fused: Tensor) -> Sequences:
        """Add what fusion found, ``[M, T, dim]``, to the frames of `rows`."""
        if self.up is None:
            return frames
        more = self.up(fused) * frames.mask[rows][..., None]
        return frames._replace(values=frames.values.index_put(rows, frames.values[rows] + more))

    def _narrow(self, values: Tensor) -> Tensor:
        return self.down(self.norm(values))


def reveal(frames: Sequences, support: Sequences, fused: Tensor) -> Sequences:
    """Give each fused row without frames, but with support, one frame of zeros for RAAF to fill."""
    found = fused & support.mask.any(dim=1) & ~frames.mask.any(dim=1)
    mask = frames.mask.clone()
    mask[:, 0] |= found
    return frames._replace(mask=mask)


class SlotFusion(nn.Module):
    """Percepts in, soft tokens out: the interface of `Fusion`, with the slots' connectors.

    At the start fused percepts give the tokens of unfused ones. One exception: a missing modality that has support
    becomes a frame, which a slot that counts or mixes frames of both modalities takes into account.
    """

    def __init__(self, shape: FusionShape) -> None:
        super().__init__()
        self.shape = shape
        self.audio = Bottleneck(shape.audio_dim, shape, returns="audio" not in shape.unread)
        self.video = Bottleneck(shape.video_dim, shape, returns="video" not in shape.unread)
        self.moe = MbMoe(shape.dim, shape.experts, shape.top_k, shape.residual)
        dims = {"audio": shape.audio_dim, "video": shape.video_dim}
        self.slots = nn.ModuleDict({slot.name: make_connector(slot, dims, shape.lm_dim) for slot in shape.slots})

    def forward(self, batch: PerceptBatch) -> FusionOutput:
        """Soft tokens of N percepts; only the fused ones go through RAAF and MB-MoE."""
        supports = [self.audio.scaled(batch.audio_support), self.video.scaled(batch.video_support)]
        frames = [self.audio.scaled(batch.audio), self.video.scaled(batch.video)]
        audio, video = (reveal(f, s, batch.fused) for f, s in zip(frames, supports, strict=True))
        # No shortcut where no percept is fused, for the reason that `Fusion` has.
        rows = batch.fused.nonzero(as_tuple=True)
        a = self.audio.enrich(_take(audio, rows), _take(supports[0], rows))
        v = self.video.enrich(_take(video, rows), _take(supports[1], rows))
        pooled = torch.cat([masked_mean(v, video.mask[rows]), masked_mean(a, audio.mask[rows])], dim=-1)
        a, v, router, weights = self.moe(a, v, pooled)
        seen = {"audio": self.audio.widen(audio, rows, a), "video": self.video.widen(video, rows, v)}
        tokens = [
            self.slots[slot.name](*(_columns(slot, seen[m]) for m in slot.modalities)) for slot in self.shape.slots
        ]
        return FusionOutput(torch.cat(tokens, dim=1), router, weights)

    def fit_scale(self, audio: Sequence[np.ndarray], video: Sequence[np.ndarray]) -> None:
        """Set the feature statistics from the training split's arrays ``[T, d]``.

        Not for connectors that come trained: they know features as their encoders make them.
        """
        self.audio.fit(audio)
        self.video.fit(video)


def make_fusion(shape: FusionShape) -> Fusion | SlotFusion:
    """The front that a shape describes."""
    return SlotFusion(shape) if shape.slots else Fusion(shape)


def _columns(slot: SlotConfig, frames: Sequences) -> Sequences:
    return frames._replace(values=frames.values[..., slice(*slot.columns)]) if any(slot.columns) else frames


def _take(frames: Sequences, rows: tuple[Tensor, ...]) -> Sequences:
    return Sequences(frames.values[rows], frames.mask[rows])
