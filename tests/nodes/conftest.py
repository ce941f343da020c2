"""Clusters of nodes for the tests of this folder; skipped with the reason where they cannot be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from harness import Cluster, NoNodesError, make_cluster

MakeCluster = Callable[..., Cluster]


@pytest.fixture(scope="module")
def new_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeCluster]:
    """Make clusters, see `harness.make_cluster`; they end with the tests of the file."""
    with ExitStack() as clusters:

        def make(*args: Any, **kwargs: Any) -> Cluster:
            try:
                return clusters.enter_context(make_cluster(tmp_path_factory.mktemp("nodes"), *args, **kwargs))
            except NoNodesError as error:
                pytest.skip(f"no nodes on this machine: {error}")

        yield make
