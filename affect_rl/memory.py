"""Main memory that the C library keeps after it has been freed.

A process holds what its heap was at its largest, in holes between what still lives. Learner and engine of a small
machine work in turns, and each needs what the other has no use for. Only glibc knows these calls; elsewhere they do
nothing.
"""

from __future__ import annotations

import ctypes
from typing import Any

LARGE_BLOCK = 2**22
_M_MMAP_THRESHOLD = -3


def release_memory() -> None:
    """Give back to the system what is free: call it where a process has done its work for a while."""
    if trim := _c_function("malloc_trim"):
        trim(0)


def map_large_blocks() -> None:
    """From now on a block of `LARGE_BLOCK` bytes gets pages of its own, which the system has back when it is freed.

    From its heap glibc would hand out aligned blocks and not reuse the holes that they leave: a pass of a model of
    30 blocks then holds several times what lives at any moment, and more after each step. The price is fresh pages
    for each tensor.
    """
    if mallopt := _c_function("mallopt"):
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)


def _c_function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)
