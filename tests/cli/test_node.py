"""`nexus node`: listing and draining."""

from collections.abc import Callable

from tests.cli.conftest import Fleet, as_json, as_problem
from tests.cli.support import nexus, printed


def host(name: str, state: str = "active", node_id: str = "5e2a90c1d4b7aaaa") -> dict[str, object]:
    return {
        "host": name, "node": "here", "node_id": node_id, "state": state, "epoch": 3, "goals": 2,
        "agents": {"reader": 3, "editor": 1}, "process": 7,
    }  # fmt: skip


def test_the_hosts_of_each_node_are_listed(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up()
    fleet.on("GET /v1/hosts", as_json({"hosts": [host("host-1", "drained"), host("host-0")]}))

    listed, as_data = nexus("node", "list"), nexus("node", "list", "--json")

    lines = [line.split() for line in listed.stdout.splitlines() if "host-" in line]
    assert lines == [
        ["here", "5e2a90c1d4b7", "host-0", "active", "2", "4"], ["here", "5e2a90c1d4b7", "host-1", "drained", "2", "4"]
    ]
    assert {entry["host"] for entry in printed(as_data)["hosts"]} == {"host-0", "host-1"}


def test_a_drain_is_waited_for_when_asked(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up()
    fleet.on("POST /v1/hosts/here/drain", as_json({"hosts": ["host-0", "host-1"]}))
    going_on, done = host("host-0", "draining"), host("host-0", "drained")
    fleet.on("GET /v1/hosts", as_json({"hosts": [going_on]}), as_json({"hosts": [done]}))

    result = nexus("node", "drain", "here", "--wait", "10", "--json")

    assert result.exit_code == 0
    assert printed(result) == {"hosts": {"host-0": "drained", "host-1": "gone"}}


def test_a_drain_that_is_not_waited_for_tells_how_far_it_is_and_one_that_takes_too_long_fails(
    fleet: Fleet, is_up: Callable[..., None]
) -> None:
    is_up()
    fleet.on("POST /v1/hosts/host-0/drain", as_json({"hosts": ["host-0"]}))
    fleet.on("GET /v1/hosts", as_json({"hosts": [host("host-0", "draining")]}))

    begun = nexus("node", "drain", "host-0")
    late = nexus("node", "drain", "host-0", "--wait", "0.01")

    assert (begun.exit_code, begun.stderr) == (0, "host-0 is draining\n")
    assert late.exit_code == 4 and "not drained after 0.01 s" in late.stderr


def test_a_drain_is_undone(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up()
    fleet.on("DELETE /v1/hosts/host-0/drain", as_json({"hosts": ["host-0"]}))
    fleet.on("GET /v1/hosts", as_json({"hosts": [host("host-0")]}))

    result = nexus("node", "drain", "host-0", "--undo")

    assert (result.exit_code, result.stderr) == (0, "host-0 is active\n")


def test_what_the_fleet_refuses_is_told(fleet: Fleet, is_up: Callable[..., None]) -> None:
    is_up()
    fleet.on("POST /v1/hosts/host-0/drain", as_problem("failed_precondition", "no host would be left", 409))

    result = nexus("node", "drain", "host-0")

    assert result.exit_code == 2 and "no host would be left" in result.stderr
