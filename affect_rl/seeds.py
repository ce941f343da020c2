"""Seeds from a seed, so that what is random in one place owes nothing to what is drawn in another."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *parts: object) -> int:
    """A 32-bit seed of its own for each thing that is drawn for, from what tells it from the others."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
