"""A fleet on PostgreSQL: prepared, up, its server restarted and a host killed under load, and down."""

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus_ray.config import Settings
from nexus_ray.core.errors import AlreadyExistsError, UnavailableError
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.runtime.which_ledger import check_ledger
from tests.ray.conftest import Fleet, until
from tests.support.postgres import Server

pytestmark = pytest.mark.e2e

CLIENTS = 4
ONCE_EACH = [1] * 10 + [11] * 10


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def fleet(server: Server, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path / "state", "tests.ray.fleet_app:app")
    fleet.environment["NEXUS_LEDGER__URL"] = server.url(server.empty_database())
    fleet.environment["NEXUS_LEDGER__CLUSTER"] = "first"
    yield fleet
    if (fleet.state / "fleet.json").exists():
        fleet.down()


def submit_until(done: threading.Event, fleet: Fleet, client: int, accepted: dict[str, str]) -> None:
    """Submit goals one after the other, as a client does that repeats what was refused for now."""
    with fleet.connect() as connection:
        number = 0
        while not done.is_set():
            key = f"{client}-{number}"
            try:
                accepted[key] = connection.submit("sleep", 0.01, idempotency_key=key).id
            except UnavailableError:
                done.wait(0.1)
                continue
            number += 1


@pytest.mark.timeout(180)
def test_no_goal_is_lost_while_its_server_restarts_and_a_host_is_killed(fleet: Fleet, server: Server) -> None:
    # Before the tables are there it says what to do, and starts nothing.
    refused = fleet.nexus("up", fleet.app, "--detach")
    assert refused.returncode == 2 and "run `nexus ledger migrate`" in refused.stderr
    assert fleet.nexus("ledger", "migrate").returncode == 0
    fleet.up()

    # A second fleet is told who has the ledger.
    ledger = LedgerSettings(url=fleet.environment["NEXUS_LEDGER__URL"], cluster="second")
    with pytest.raises(AlreadyExistsError, match="held by the fleet 'first'"):
        check_ledger(Settings(ledger=ledger))

    accepted: dict[str, str] = {}
    done = threading.Event()
    clients = [threading.Thread(target=submit_until, args=(done, fleet, n, accepted)) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    with fleet.connect() as connection:
        counting = connection.submit("count_then_sleep", 1.5)
        until(lambda: counting.status == "running" and len(accepted) > 20)
        server.stop(signal.SIGINT)
        server.start()
        before = len(accepted)
        until(lambda: len(accepted) > before + 10)
        host = connection.goal(counting.id).record["host"]
        fleet.host_process(host).kill()
        until(lambda: len(connection.hosts()) == 2 and host not in {entry["host"] for entry in connection.hosts()})
        before = len(accepted)
        until(lambda: len(accepted) > before + 10)
        done.set()
        for client in clients:
            client.join(30)

        assert counting.result(30) == ONCE_EACH
        assert len(set(accepted.values())) == len(accepted)
        for goal_id in accepted.values():
            assert connection.goal(goal_id).result(30) == 0.01

    fleet.down()
    status = json.loads(fleet.nexus("ledger", "status", "--json").stdout)
    assert status["goals"] == {"succeeded": len(accepted) + 1}
    assert (status["standing"], status["fenced"] >= 1, status["lease_holder"]) == ("current", True, "")
