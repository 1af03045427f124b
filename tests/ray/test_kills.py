"""SIGKILL, one process at a time: the client that waits sees nothing but the result."""

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from nexus_ray.runtime.client import Connection

from .conftest import Fleet, until

pytestmark = pytest.mark.ray

ONCE_EACH = [1] * 10 + [11] * 10


def journal(connection: Connection, goal_id: str) -> list[dict]:
    return connection._json("GET", f"/v1/goals/{goal_id}/journal")["entries"]


def begun(connection: Connection, seconds: float = 1.5):
    """Submit a goal and return it when its first ten steps are done and it sleeps."""
    goal = connection.submit("count_then_sleep", seconds)
    until(lambda: sum(entry["kind"] == "step" for entry in journal(connection, goal.id)) == 10)
    return goal


def test_after_its_host_is_killed_a_goal_goes_on_elsewhere_within_five_seconds(
    fleet: Fleet, connection: Connection
) -> None:
    goal = begun(connection)
    host = goal.record["host"]
    killed_at = time.time()

    fleet.host_process(host).kill()

    assert goal.result(30) == ONCE_EACH
    entries = journal(connection, goal.id)
    claims = [(entry["body"]["host"], entry["at"]) for entry in entries if entry["kind"] == "claimed"]
    assert len(claims) == 2 and claims[0][0] == host != claims[1][0]
    assert claims[1][1] - killed_at < 5.0
    steps = [entry["step"] for entry in entries if entry["kind"] == "step"]
    assert len(steps) == len(set(steps)) == 21
    until(lambda: len(connection.hosts()) == 2)


def test_after_a_host_that_it_only_asked_is_killed_a_goal_goes_on(fleet: Fleet, connection: Connection) -> None:
    goal = begun(connection)
    (other,) = [entry["host"] for entry in connection.hosts() if entry["host"] != goal.record["host"]]

    fleet.host_process(other).kill()

    assert goal.result(30) == ONCE_EACH
    until(lambda: len(connection.hosts()) == 2)


PARTS = ["ray::LedgerActor", "ray::DirectoryActor", "ray::ServeReplica", "ray::ServeController"]


@pytest.mark.parametrize("name", PARTS)
def test_after_a_part_is_killed_goals_end_once_and_new_ones_are_taken(
    fleet: Fleet, connection: Connection, name: str
) -> None:
    goal = begun(connection)

    fleet.kill(name)

    until(lambda: _answers(connection), within_s=40)
    assert goal.result(30) == ONCE_EACH
    assert connection.submit("count", 4).result(30)
    kinds = [entry["kind"] for entry in journal(connection, goal.id)]
    assert kinds.count("finished") == 1


def test_a_host_that_dies_while_the_directory_is_down_is_replaced(fleet: Fleet, connection: Connection) -> None:
    before = {entry["host"] for entry in connection.hosts()}
    goal = begun(connection)
    victim = fleet.host_process(goal.record["host"])

    fleet.kill("ray::DirectoryActor")
    victim.kill()

    assert goal.result(60) == ONCE_EACH
    until(lambda: len(connection.hosts()) == 2 and {entry["host"] for entry in connection.hosts()} != before)


def test_events_go_on_over_a_kill_and_none_comes_twice(fleet: Fleet, connection: Connection) -> None:
    goal = begun(connection)
    seen = []

    for event in goal.events():
        seen.append((event["seq"], event["kind"]))
        if len(seen) == 5:
            fleet.host_process(goal.record["host"]).kill()

    assert [seq for seq, _ in seen] == sorted({seq for seq, _ in seen})
    assert seen[-1][1] == "finished"
    until(lambda: len(connection.hosts()) == 2)


def test_a_host_that_is_killed_while_the_ledger_has_its_writes_changes_nothing_twice(
    fleet: Fleet, connection: Connection
) -> None:
    goal = begun(connection)
    host = fleet.host_process(goal.record["host"])
    (ledger,) = fleet.processes("ray::LedgerActor")

    ledger.suspend()
    try:
        # The host has recorded the end of the sleep, or more, and nobody has told it yet that this is durable.
        until(lambda: not [a for a in connection.agents() if a["agent"] == f"sleeper/{goal.id}" and a["running"]])
        host.kill()
    finally:
        ledger.resume()

    assert goal.result(30) == ONCE_EACH
    assert_once(journal(connection, goal.id))
    until(lambda: len(connection.hosts()) == 2)


def test_a_host_that_is_paused_until_it_is_given_up_records_nothing_when_it_wakes(
    fleet: Fleet, connection: Connection
) -> None:
    goal = begun(connection)
    host = fleet.host_process(goal.record["host"])

    host.suspend()
    try:
        assert goal.result(40) == ONCE_EACH
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # The directory ends it; if it cannot, the fence does.
            host.resume()

    until(lambda: not host.is_running() or host.status() == psutil.STATUS_ZOMBIE)
    assert_once(journal(connection, goal.id))
    until(lambda: len(connection.hosts()) == 2)


def test_a_host_drains_while_goals_keep_coming_and_nothing_is_refused(fleet: Fleet, connection: Connection) -> None:
    refused: list[float] = []
    is_over = threading.Event()

    def client() -> int:
        ended = 0
        token = (fleet.state / "token").read_text().strip()
        with Connection(fleet.record["url"], token, pause=refused.append) as own:
            while not is_over.is_set():
                assert len(own.submit("count", 4).result(20)) == 4
                ended += 1
        return ended

    goal = begun(connection)
    host = goal.record["host"]
    with ThreadPoolExecutor(2) as clients:
        counts = [clients.submit(client) for _ in range(2)]
        try:
            assert connection.drain(host) == [host]
            assert goal.result(30) == ONCE_EACH
            drained = fleet.nexus("node", "drain", host, "--wait", "30", "--json")
        finally:
            is_over.set()

    assert json.loads(drained.stdout) == {"hosts": {host: "drained"}}, drained.stderr
    assert all(count.result() for count in counts) and refused == []
    entries = journal(connection, goal.id)
    assert_once(entries)
    assert [entry["body"]["host"] for entry in entries if entry["kind"] == "released"] == [host]

    # A directory that starts again hears of it from the hosts.
    epoch = connection.hosts()[0]["epoch"]
    fleet.kill("ray::DirectoryActor")
    until(lambda: all(entry["epoch"] > epoch for entry in connection.hosts()))
    assert states(connection)[host] == "drained"
    fleet.nexus("node", "drain", host, "--undo")
    assert set(states(connection).values()) == {"active"}


def states(connection: Connection) -> dict[str, str]:
    return {entry["host"]: entry["state"] for entry in connection.hosts()}


def assert_once(entries: list[dict]) -> None:
    kinds = [entry["kind"] for entry in entries]
    steps = [entry["step"] for entry in entries if entry["kind"] == "step"]
    assert len(steps) == len(set(steps)) == 21 and kinds.count("finished") == 1


def _answers(connection: Connection) -> bool:
    return connection.is_healthy() and all(connection.ready().get(part) for part in ("ready", "hosts", "ledger"))
