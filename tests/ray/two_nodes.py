"""A program for `test_nodes.py`: a cluster of its own, a node that joins, one that is lost. Prints what it saw."""

import asyncio
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from nexus_ray.config import load
from nexus_ray.core.errors import UnavailableError
from nexus_ray.observe import metrics
from nexus_ray.runtime.local import set_environment, start_control_plane
from nexus_ray.runtime.state import prepare_state, write_operator_token

GOALS = 6
WITHIN_S = 60.0


def main(state: Path) -> None:
    os.umask(0o077)
    settings = load(state_dir=state, runtime={"hosts_per_node": 2})
    prepare_state(settings)
    write_operator_token(settings)
    set_environment(settings)
    # Imported here: ray reads its environment when it is imported.
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        ray.init(address=cluster.address, namespace="nexus", log_to_driver=False, logging_level="ERROR")
        start_control_plane("tests.ray.fleet_app:app", settings)
        print(json.dumps(asyncio.run(story(cluster, node, (state / "token").read_text().strip()))))
    finally:
        ray.shutdown()
        cluster.shutdown()


async def story(cluster: Any, node: dict[str, Any], token: str) -> dict[str, Any]:
    from nexus_ray.runtime.direct import DirectClient

    first = await members(2)
    second = cluster.add_node(**node)  # Here: it sets signal handlers, which only the main thread may.
    both = await members(4)
    client = DirectClient(token)
    await client.connect()
    counted = json.loads((await client.run("count", b"64", WITHIN_S)).result)
    ways = await calls_by_way()
    walled = await behind_a_wall(both.members[0])
    goals = [asyncio.ensure_future(client.run("count_then_sleep", b"3.0", WITHIN_S)) for _ in range(GOALS)]
    await asyncio.sleep(1.5)  # All of them are asleep by then; if not, more is lost with the node, which is as well.
    await asyncio.to_thread(cluster.remove_node, second, allow_graceful=False)
    outcomes = await asyncio.gather(*goals)
    await client.close()
    left = await members(2)
    return {
        "nodes": len({member.node_id for member in both.members}),
        "processes": len({answer["process"] for answer in counted}),
        "streams": [(member.stream.rpartition(":")[0], "CERTIFICATE" in member.certificate) for member in both.members],
        "ways": ways,
        "walled": walled,
        "epochs": [first.epoch, both.epoch, left.epoch],
        "left": sorted(member.host for member in left.members) == sorted(member.host for member in first.members),
        "results": [json.loads(outcome.result or b"null") for outcome in outcomes],
    }


async def calls_by_way() -> dict[str, float]:
    """Return how often processes called each other which way, as soon as a stream has been used."""
    ends_at = time.monotonic() + WITHIN_S
    while True:
        found = re.findall(r'nexus_peer_calls_total{way="(\w+)"} (\S+)', metrics.exposition().decode())
        ways = {way: float(count) for way, count in found}
        if (ways.get("stream", 0) > 0 and ways.get("socket", 0) > 0) or time.monotonic() > ends_at:
            return ways
        await asyncio.sleep(0.2)


async def behind_a_wall(member: Any) -> dict[str, Any]:
    """Ask a host for its status again and again where no connection comes through."""
    from nexus_ray.runtime.peer import Peer

    dialled = 0

    async def wall() -> Any:
        nonlocal dialled
        dialled += 1
        if dialled == 1:
            await asyncio.sleep(0.5)  # The first packet is dropped rather than refused.
        raise UnavailableError("a wall")

    peer = Peer(member.host, wall)
    answers = [await peer.call("status") for _ in range(30)]
    return {"answers": len([answer for answer in answers if answer["host"] == member.host]), "dialled": dialled}


async def members(count: int) -> Any:
    from nexus_ray.runtime.follow import watch_membership

    ends_at = time.monotonic() + WITHIN_S
    while True:
        membership = await watch_membership(0, 1.0)
        if len(membership.members) == count:
            return membership
        if time.monotonic() > ends_at:
            raise SystemExit(f"not {count} members within {WITHIN_S:g} s: {membership}")
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
