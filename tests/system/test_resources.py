"""Asking a cluster for GPUs that it lacks: an answer at once, instead of actors that wait."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

import pytest
import ray

from affect_rl.config.load import load_config
from affect_rl.errors import AffectError
from cluster.runtime.capacity import Capacity, Node, cluster_at, connected_cluster
from cluster.runtime.run import make_run
from cluster.runtime.services import Services

pytestmark = pytest.mark.usefixtures("cluster")


def test_the_cluster_is_seen_as_it_is() -> None:
    assert connected_cluster() == Capacity("the cluster", (Node(16, ray.cluster_resources().get("GPU", 0)),))


@pytest.mark.parametrize("stage", ["sft", "bridge", "train", "eval"])
def test_need_against_have_within_ten_seconds(stage: str) -> None:
    config = load_config(
        "configs/quickstart.yaml",
        ["rollout.workers=99", "rollout.gpus_per_worker=1", "sft.workers=99", "sft.gpus_per_worker=1"],
    )
    began = time.monotonic()
    with pytest.raises(AffectError, match=rf"{stage} needs \d+ GPUs .* the cluster has \d+ on 1 node"):
        make_run(config, None, Services(), stage)  # type: ignore[arg-type]  # the dataset is not reached
    assert time.monotonic() - began < 10


HEAD = """
import sys, ray
from cluster.runtime.session import deaf_to_other_rays
with deaf_to_other_rays():
    context = ray.init(
        address="local", num_cpus=3, num_gpus=2, object_store_memory=100 << 20, include_dashboard=True,
        _temp_dir=sys.argv[1],
    )
print(context.dashboard_url, flush=True)
sys.stdin.read()
"""


def test_a_running_cluster_is_asked_without_joining_it() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [sys.executable, "-c", HEAD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as head,
    ):
        try:
            assert head.stdout
            url = next(line.strip() for line in head.stdout if line.startswith("127.0.0.1"))
            assert cluster_at(f"http://{url}") == Capacity("the cluster as it is now", (Node(3, 2),))
        finally:
            head.communicate()
