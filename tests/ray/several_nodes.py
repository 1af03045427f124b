"""A program for `test_nodes.py`: a cluster of its own, a node that joins, one that is lost, and the head killed.

It runs on a worker, as a client of the cluster would, and prints what it saw. Redis is at RAY_REDIS_ADDRESS.
"""

import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from nexus_ray.config import Settings, load
from nexus_ray.core.errors import UnavailableError
from nexus_ray.observe import metrics
from nexus_ray.runtime.local import set_environment, start_control_plane
from nexus_ray.runtime.state import prepare_state, write_operator_token

APP = "tests.ray.fleet_app:app"
WITHIN_S = 90.0
GOALS = 4
GOALS_ON_TWO = 6


def main(state: Path) -> None:
    os.umask(0o077)
    settings = load(state_dir=state, runtime={"hosts_per_node": 2})
    prepare_state(settings)
    write_operator_token(settings)
    set_environment(settings)
    folder = Path(tempfile.mkdtemp(prefix="nx-", dir="/tmp"))  # Short: a socket's path has 107 bytes.
    os.environ.update(
        RAY_external_storage_namespace="under-test",
        # How soon the head misses a machine that is lost; by default after 15 s.
        # The timeout of a check stays long: a busy machine is slow to answer, a dead one refuses at once.
        RAY_health_check_initial_delay_ms="1000",
        RAY_health_check_period_ms="1000",
        RAY_health_check_failure_threshold="3",
    )
    try:
        nodes = Nodes(folder, os.environ["REDIS_PASSWORD"])
        try:
            print(json.dumps(story(nodes, settings)))
        finally:
            nodes.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Nodes:
    """A head and workers of one cluster; this process is a driver on the first worker."""

    def __init__(self, folder: Path, password: str) -> None:
        # Imported here: ray reads its environment when it is imported.
        import ray
        from ray.cluster_utils import Cluster

        self.folder = folder
        self.password = password
        self.cluster = Cluster()
        self.head_port = 0
        self.start_head()
        self.add_worker("worker")
        ray.init(
            address=self.cluster.address, namespace="nexus", log_to_driver=False, logging_level="ERROR",
            _temp_dir=str(folder / "worker"),
        )  # fmt: skip

    def add_worker(self, name: str) -> Any:
        return self.cluster.add_node(num_cpus=2, object_store_memory=80_000_000, temp_dir=str(self.folder / name))

    def lose(self, worker: Any) -> None:
        self.cluster.remove_node(worker, allow_graceful=False)

    def start_head(self) -> None:
        # Without CPUs: no host is put on it.
        given = {"gcs_server_port": self.head_port} if self.head_port else {}
        head = self.cluster.add_node(
            num_cpus=0, redis_password=self.password, include_dashboard=False, include_log_monitor=False,
            object_store_memory=80_000_000, temp_dir=str(self.folder / "head"), **given,
        )  # fmt: skip
        self.head_port = int(head.gcs_address.rpartition(":")[2])

    def kill_head(self) -> None:
        head = self.cluster.head_node
        for process in [started.process for each in head.all_processes.values() for started in each]:
            process.kill()
        self.cluster.remove_node(head, allow_graceful=False)

    def stop(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()


class Client:
    """A client of the fleet on a thread of its own: making nodes takes the main thread, and the client goes on."""

    def __init__(self, token: str) -> None:
        from nexus_ray.runtime.direct import DirectClient

        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

        async def make() -> DirectClient:
            client = DirectClient(token)
            await client.connect()
            return client

        self.direct = self.do(make()).result(WITHIN_S)

    def do(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def begin(self, goals: int, sleep_s: float) -> "list[Future[Any]]":
        payload = str(sleep_s).encode()
        return [self.do(self.direct.run("count_then_sleep", payload, WITHIN_S)) for _ in range(goals)]

    def membership(self, count: int = 0) -> Any:
        """Return it as soon as there is a directory, and as many members as asked for."""
        from nexus_ray.runtime.follow import watch_membership

        ends_at = time.monotonic() + WITHIN_S
        while True:
            try:
                membership = self.do(watch_membership(0, 1.0)).result(WITHIN_S)
                if count in (0, len(membership.members)):
                    return membership
            except UnavailableError:
                pass
            if time.monotonic() > ends_at:
                raise SystemExit(f"not {count or 'any'} members within {WITHIN_S:g} s")
            time.sleep(0.1)

    def close(self) -> None:
        self.do(self.direct.close()).result(WITHIN_S)
        self._loop.call_soon_threadsafe(self._loop.stop)


def story(nodes: Nodes, settings: Settings) -> dict[str, Any]:
    put_on_the_head(settings)
    start_control_plane(APP, settings)
    client = Client((settings.state_dir / "token").read_text().strip())

    told = {"second": a_second_node(nodes, client), "head": without_its_head(nodes, client)}
    journal = asyncio.run(ledger_of(settings))
    client.close()
    return {**told, **journal}


def a_second_node(nodes: Nodes, client: Client) -> dict[str, Any]:
    """Have a node join, and lose it with goals on it."""
    first = client.membership(2)
    second = nodes.add_worker("second")
    both = client.membership(4)
    (counted,) = results([client.do(client.direct.run("count", b"64", WITHIN_S))])
    ways = client.do(calls_by_way()).result(WITHIN_S)
    walled = client.do(behind_a_wall(both.members[0])).result(WITHIN_S)
    goals = client.begin(GOALS_ON_TWO, 2.0)
    time.sleep(1.0)  # All of them are asleep by then; if not, more is lost with the node, which is as well.
    nodes.lose(second)
    outcomes = results(goals)
    left = client.membership(2)
    return {
        "nodes": len({member.node_id for member in both.members}),
        "processes": len({answer["process"] for answer in counted}),
        "streams": [(member.stream.rpartition(":")[0], "CERTIFICATE" in member.certificate) for member in both.members],
        "ways": ways,
        "walled": walled,
        "epochs": [first.epoch, both.epoch, left.epoch],
        "left": sorted(member.host for member in left.members) == sorted(member.host for member in first.members),
        "results": outcomes,
    }


async def calls_by_way() -> dict[str, float]:
    """Return how often processes called each other which way, as soon as a stream has been used."""
    ends_at = time.monotonic() + WITHIN_S / 2
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


def without_its_head(nodes: Nodes, client: Client) -> dict[str, Any]:
    """Kill the head's GCS, and then all of the head, while goals are under way."""
    head = nodes.cluster.head_node

    epochs = [client.membership().epoch]
    results(client.begin(GOALS, 0.0))  # Every host has heard of the others by the end of these.
    before = client.begin(GOALS, 0.5)
    head.kill_gcs_server()
    without = results([*before, *client.begin(GOALS, 0.1)])  # All to their end while nobody heads the cluster.
    head.start_gcs_server()
    with_it = results(client.begin(GOALS, 0.1))
    epochs.append(client.membership().epoch)

    before = client.begin(GOALS, 2.0)
    time.sleep(1.0)  # They are asleep by then; if not, more is lost with the head, which is as well.
    nodes.kill_head()
    during = client.begin(GOALS, 0.1)
    nodes.start_head()
    over_it = results([*before, *during])
    epochs.append(client.membership().epoch)
    return {"without": without, "with": with_it, "over": over_it, "epochs": epochs}


def put_on_the_head(settings: Settings) -> None:
    """Make ledger and directory where they die with the head; they may be started anew elsewhere."""
    import ray
    from ray._private.state import actors
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from nexus_ray.runtime.fleet import ensure_control_plane
    from nexus_ray.runtime.names import DIRECTORY, LEDGER, NAMESPACE

    (head,) = [node["NodeID"] for node in ray.nodes() if not node["Resources"].get("CPU")]
    for _ in range(10):
        ensure_control_plane(APP, settings, scheduling_strategy=NodeAffinitySchedulingStrategy(head, soft=True))
        astray = 0
        for name in (LEDGER, DIRECTORY):
            actor = ray.get_actor(name, namespace=NAMESPACE)
            ray.get(actor.__ray_ready__.remote())
            if actors(actor._actor_id.hex())["Address"]["NodeID"] != head:
                astray += 1  # A worker that has just joined may not know yet that the head takes anything.
                ray.kill(actor, no_restart=True)
                until_unknown(name)
        if not astray:
            return
    raise SystemExit("ledger and directory are not put on the head")


def until_unknown(name: str) -> None:
    import ray

    ends_at = time.monotonic() + WITHIN_S
    while time.monotonic() < ends_at:
        try:
            ray.get_actor(name, namespace="nexus")
        except ValueError:
            return
        time.sleep(0.05)


async def ledger_of(settings: Settings) -> dict[str, Any]:
    """Count what stands on record."""
    from nexus_ray.ledger.goal import EntryKind, GoalQuery
    from nexus_ray.runtime.ledger_actor import RayLedger

    ledger = RayLedger(settings)
    records = await ledger.goals(GoalQuery(limit=200))
    ends = []
    for record in records:
        entries = await ledger.journal(record.goal.id, 0, 1000)
        ends.append(sum(entry.kind is EntryKind.FINISHED for entry in entries))
    await ledger.close()
    return {"goals": len(records), "ends": sorted(set(ends))}


def results(goals: "Sequence[Future[Any]]") -> list[Any]:
    return [json.loads(goal.result(WITHIN_S).result or b"null") for goal in goals]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
