"""How a sample sounds and looks, as one unit vector per modality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

PerceptualModality = Literal["audio", "video"]
MODALITIES: tuple[PerceptualModality, ...] = ("audio", "video")

_SMALLEST_STD = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Standardisation:
    """Mean and standard deviation of each dimension over the library, ``[d]`` float32."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, averages: np.ndarray) -> Self:
        """From the library's time averages ``[N, d]``; a dimension that never varies counts for nothing."""
        std = averages.std(axis=0)
        return cls(
            averages.mean(axis=0).astype(np.float32),
            np.where(std > _SMALLEST_STD, std, np.inf).astype(np.float32),
        )

    @property
    def dim(self) -> int:
        return len(self.mean)

    def unit_vectors(self, averages: np.ndarray) -> np.ndarray:
        """Time averages ``[N, d]`` as float32 rows of norm 1; an average sample is all zeros."""
        standard = (averages.astype(np.float64) - self.mean) / self.std
        norm = np.linalg.norm(standard, axis=1, keepdims=True)
        return (standard / np.where(norm > 0, norm, 1)).astype(np.float32)

    def to_json(self) -> dict[str, list[float]]:
        """Numbers that JSON can hold: a standard deviation of 0 stands for a dimension that never varies."""
        return {"mean": self.mean.tolist(), "std": np.where(np.isinf(self.std), 0, self.std).tolist()}

    @classmethod
    def from_json(cls, numbers: dict[str, list[float]]) -> Self:
        std = np.asarray(numbers["std"], np.float32)
        return cls(np.asarray(numbers["mean"], np.float32), np.where(std > 0, std, np.float32(np.inf)))


def time_average(frames: np.ndarray) -> np.ndarray:
    """Features ``[T, d]`` averaged over time, ``[d]`` float64."""
    return frames.mean(axis=0, dtype=np.float64)


def join(halves: Sequence[np.ndarray]) -> np.ndarray:
    """Unit vectors of several modalities ``[N, d_m]`` as one ``[N, sum d_m]``.

    The inner product of two joined vectors is the mean of the modalities' cosine similarities.
    """
    return np.concatenate(halves, axis=1) / np.float32(np.sqrt(len(halves)))
