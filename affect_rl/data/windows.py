"""Frames over time to a fixed number of rows: what equal windows of a clip have on average, and how much it varies."""

from __future__ import annotations

import numpy as np


def window_statistics(frames: np.ndarray, count: int) -> np.ndarray:
    """Mean and deviation of frames ``[T, d]`` in `count` equal windows of time, ``[count, 2 d]`` float32.

    Neighbouring windows share the frame that their border falls into, so that there may be fewer frames than windows.
    """
    length = len(frames)
    edges = [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
    rows = [np.concatenate([frames[a:b].mean(axis=0), frames[a:b].std(axis=0)]) for a, b in edges]
    return np.stack(rows).astype(np.float32)
