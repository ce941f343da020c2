"""One rank in this process, for what needs DeepSpeed but no Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from learners.engine import choose_device, join_group


@pytest.fixture(scope="package")
def device() -> Iterator[torch.device]:
    """A process group of one for all tests of this folder (DeepSpeed remembers the first group it sees).

    The environment and the group are put back before the tests of other folders.
    """
    environment = dict(os.environ)
    device = choose_device(gpu=False, threads=1, workers=1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join_group(0, 1, "127.0.0.1", port, gpu=False, timeout_s=60)
    yield device
    dist.destroy_process_group()
    os.environ.clear()
    os.environ |= environment
