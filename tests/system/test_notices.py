"""Nodes that come and go, on a Ray of its own."""

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
from cluster.runtime.nodes import Notices, Wish, ending_nodes, free_places, node_of

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

def asked():
    groups = ray.util.placement_group_table().values()
    return [group["bundles"][0] for group in groups if group["state"] in ("PENDING", "RESCHEDULING")]

wish = Wish(two)
for _ in range(10):
    assert not wish.granted(), "there is no room"
assert asked() == [{"CPU": 2.0}], "one demand, however often it is asked for"
cluster.add_node(num_cpus=2)
while not wish.granted():
    assert time.monotonic() < deadline + 60
    time.sleep(0.1)
while free_places(two) != 1:
    assert time.monotonic() < deadline + 60
    time.sleep(0.1)
assert not asked()
another = Wish(Actors("engine", 1, 8, 0, ()))
assert not another.granted() and asked()
another.drop()
assert not asked()
print("heeded")
"""


@pytest.mark.slow
def test_an_end_is_announced_once_and_room_is_asked_for_until_it_is_there(tmp_path: Path) -> None:
    script = tmp_path / "drained.py"
    script.write_text(DRAINED)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip().endswith("heeded"), done.stderr
