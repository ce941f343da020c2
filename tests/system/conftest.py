"""A local Ray for the tests of this folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cluster.runtime.session import deaf_to_other_rays


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray for all system tests. Its CPUs are logical, so that many small actors fit on two cores."""
    # Ray's sockets lie below this folder, and a socket's path may have no more than 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        # Ray's processes import what a test file defines and a configuration names as module:Class.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        with deaf_to_other_rays():
            ray.init(
                address="local",
                num_cpus=16,
                include_dashboard=False,
                object_store_memory=256 * 2**20,
                _temp_dir=folder,
            )
        yield
        ray.shutdown()
