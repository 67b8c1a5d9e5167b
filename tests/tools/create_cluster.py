"""Creates a cluster of three shards with the generated client alone, and reads what came of it.

Usage: REEVE_TOKEN=… create_cluster.py URL ADDRESS ADDRESS ADDRESS
"""

import os
import sys
import time

from reeve_client import AuthenticatedClient
from reeve_client.api.knowledge import get_keyslot
from reeve_client.api.plans import get_plan, stream_plan
from reeve_client.api.topologies import create_topology, get_slots, get_topology
from reeve_client.models import (
    ClusterSpec,
    ClusterSpecMode,
    CreateTopology,
    KeySlots,
    NodeSpec,
    Phase,
    Plan,
    PlanState,
    Problem,
    Slots,
    Topology,
)

url, *addresses = sys.argv[1:]
client = AuthenticatedClient(
    base_url=url, token=os.environ["REEVE_TOKEN"], raise_on_unexpected_status=True
)

nodes = [NodeSpec(address=address, zone=zone) for address, zone in zip(addresses, "abc")]
body = CreateTopology(
    name="orders",
    spec=ClusterSpec(mode=ClusterSpecMode.CLUSTER, shards=3, replicas_per_shard=0, nodes=nodes),
)
plan = create_topology.sync(client=client, body=body, prefer="wait=2")
assert isinstance(plan, Plan), plan
deadline = time.monotonic() + 40
while plan.state in (PlanState.QUEUED, PlanState.RUNNING) and time.monotonic() < deadline:
    time.sleep(0.1)
    plan = get_plan.sync(plan.id, client=client)
assert plan.state is PlanState.SUCCEEDED, plan
assert plan.steps and all(step.title for step in plan.steps), plan

# Who has seen all of it is told that there is nothing more.
stream = stream_plan.sync_detailed(plan.id, client=client, last_event_id_header=2**40)
assert stream.status_code == 204, stream

again = create_topology.sync(client=client, body=body)
assert isinstance(again, Problem) and again.code == "name_taken", again

topology = get_topology.sync("orders", client=client)
while topology.status.phase is not Phase.STEADY and time.monotonic() < deadline:
    time.sleep(0.1)
    topology = get_topology.sync("orders", client=client)
assert isinstance(topology, Topology) and topology.status.phase is Phase.STEADY, topology
assert isinstance(topology.spec, ClusterSpec) and topology.spec.shards == 3, topology
assert {shard.primary for shard in topology.status.shards} == set(addresses), topology

slots = get_slots.sync("orders", client=client)
assert isinstance(slots, Slots) and slots.assigned == 16384 and slots.uncovered == "", slots

keys = get_keyslot.sync(client=client, key=["user:123", "{user:123}:cart"])
assert isinstance(keys, KeySlots) and keys.same_slot, keys
assert [key.slot for key in keys.keys] == [12893, 12893], keys
assert keys.keys[0].owner[0].topology == "orders", keys
