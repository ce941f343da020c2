"""A node whose end is announced, on a Ray of its own with two nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DRAINED = """
import time
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from affect_rl.config.actors import Actors
from cluster.runtime.nodes import Notices, ending_nodes, free_places, node_of

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
ray.init(address=cluster.address, logging_level="error")
other = cluster.add_node(num_cpus=3)
cluster.wait_for_nodes()

@ray.remote(num_cpus=1)
class Rank:
    def ready(self): pass

def rank_on(node):
    on = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    actor = Rank.options(scheduling_strategy=on).remote()
    ray.get(actor.ready.remote())
    return actor

head = ray.get_runtime_context().get_node_id()
here, there = rank_on(head), rank_on(other.node_id)
assert (node_of(here), node_of(there)) == (head, other.node_id)
two = Actors("engine", 1, 2, 0, ())
deadline = time.monotonic() + 30
while free_places(two) != 1:  # one CPU is left here and two there
    assert time.monotonic() < deadline
    time.sleep(0.1)
with_it, without = Notices([here, there]), Notices([here])
assert not ending_nodes() and not with_it()

client = ray._raylet.GcsClient(address=cluster.address)
preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
accepted, _ = client.drain_node(other.node_id, preemption, "taken away", int((time.time() + 600) * 1000))
assert accepted and ending_nodes() == {other.node_id}
assert with_it() and not with_it(), "a notice is given once"
assert not without()
assert free_places(two) == 0
print("heeded")
"""


@pytest.mark.slow
def test_the_end_of_a_node_that_holds_a_rank_is_announced_once(tmp_path: Path) -> None:
    script = tmp_path / "drained.py"
    script.write_text(DRAINED)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip().endswith("heeded"), done.stderr
