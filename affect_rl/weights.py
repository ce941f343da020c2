"""What a weight sync is made of: a version, a place to read the tensors from, and a checksum."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_INTEGER = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True, slots=True)
class WeightsHandle:
    """A published set of weights.

    Attributes:
        version: grows by one with each publication; generated tokens carry it.
        path: safetensors file that holds the tensors (on a memory file system for ``shared_memory``).
        bytes: its size.
        checksum: `multiset_checksum` of its tensors, the value head left out (engines have none).
    """

    version: int
    path: str
    bytes: int
    checksum: int


def multiset_checksum(tensors: Iterable[Tensor]) -> int:
    """64-bit checksum of all elements' bits, the same however they are split, fused or zero-padded.

    Engines fuse projections and pad vocabularies, so learner and engine hold the same numbers in
    different tensors. Each element's bits are mixed (multiply, shift, multiply) and the results
    summed modulo 2**64: one changed bit changes the sum, zeros add nothing, order does not matter.
    """
    total = 0
    for tensor in tensors:
        bits = tensor.detach().contiguous().view(_INTEGER[tensor.element_size()]).flatten().to(torch.int64)
        mixed = bits * 0x1B873593
        mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D
        mixed = (mixed ^ (mixed >> 12)) * 0x297A2D39
        total += int(mixed.sum())
    return total % 2**64
