"""Soft tokens from connectors, as settings and policies describe them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from affect_rl.section import POLICY, SFT, TRAINING, Natural, Positive, Section


def check_heads(heads: int, name: str, width: int) -> None:
    """Raise `ValueError` unless attention heads divide a width."""
    if width % heads:
        raise ValueError(f"heads={heads} does not divide {name}={width}; choose heads from the divisors of {name}")


class SlotConfig(Section, affects=(POLICY, SFT, TRAINING)):
    """Soft tokens from one connector, see `affect_rl.policy.connectors`."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Name of the slot; its parameters carry it."""
    source: Literal["audio", "video", "joint"]
    """Whose features it reads; ``joint``: both."""
    connector: Literal["linear", "mlp", "attention", "qformer"]
    """``linear`` and ``mlp`` project means over equal windows of frames, ``attention`` a weighted sum of the frames;
    ``qformer`` lets learned queries attend to them."""
    columns: tuple[Natural, Natural] = (0, 0)
    """Which of a frame's numbers it reads, from the first to before the second; (0, 0): all."""
    tokens: Positive = 1
    """Soft tokens."""
    stack: Positive = 1
    """Neighbouring windows that lie side by side in one token (linear, mlp)."""
    width: Natural = 0
    """Hidden width; 0: that of the language model (mlp), or 768 (qformer)."""
    layers: Positive = 2
    """Blocks (qformer)."""
    heads: Positive = 12
    """Attention heads (qformer); must divide `width`."""
    cross_every: Positive = 1
    """Every n-th block, the first included, attends to the frames (qformer)."""
    positions: Natural = 32
    """Learned positions of frames (qformer); later frames share the last one; 0: none."""
    frame_width: Natural = 0
    """Width that frames are brought to first (qformer); 0: as wide as they are, of two modalities the wider."""

    @model_validator(mode="after")
    def _reads_frames(self) -> Self:
        first, end = self.columns
        if self.columns != (0, 0) and (self.source == "joint" or first >= end):
            raise ValueError(f"columns={list(self.columns)} need one modality, and the second above the first")
        if self.connector == "qformer":
            check_heads(self.heads, "width", self.width or 768)
        return self

    @property
    def modalities(self) -> tuple[Literal["audio", "video"], ...]:
        """The modalities it reads."""
        return ("audio", "video") if self.source == "joint" else (self.source,)
