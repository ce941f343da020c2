"""Memory that is free goes back to the system; in a process of its own, for a heap remembers."""

from __future__ import annotations

import subprocess
import sys

import pytest

HOLES = """
import numpy as np, psutil
from affect_rl.memory import release_memory
resident = lambda: psutil.Process().memory_info().rss / 2**20
begun = resident()
blocks = [np.ones(2**13) for _ in range(400)]
del blocks[::2]
before = resident() - begun
release_memory()
print(before, resident() - begun)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_holes_between_what_lives_are_given_back() -> None:
    found = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True, timeout=120)
    before, after = map(float, found.stdout.split())
    assert before > 22 and after < 16, "200 blocks of 64 KiB live, 12.5 MiB"
