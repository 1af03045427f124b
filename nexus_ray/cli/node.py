"""`nexus node`: the machines and their hosts, and draining them."""

import time
from collections import Counter
from typing import Annotated, Any

import typer

from nexus_ray.cli.exits import Verbs
from nexus_ray.cli.fleet import spinner
from nexus_ray.cli.show import print_json, print_rich, say, table
from nexus_ray.core.errors import DeadlineExceededError

verbs = typer.Typer(cls=Verbs, no_args_is_help=True, help="See the machines and their hosts, and drain them.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

_LOOK_EVERY_S = 0.2
_ID_CHARACTERS_SHOWN = 12  # Of 56; enough to name a machine by.


@verbs.command("list")
def list_nodes(as_json: AsJson = False) -> None:
    """List the hosts of each machine, whether they drain, and what they have."""
    from nexus_ray.runtime.client import connect

    with connect() as fleet:
        hosts = fleet.hosts()
    if as_json:
        print_json({"hosts": hosts})
        return
    columns = ("node", "node_id", "host", "state", "goals", "agents")
    hosts.sort(key=lambda host: (host["node"], host.get("node_id", ""), host["host"]))
    print_rich(table(columns, [_row(host) for host in hosts], ("goals", "agents")))


@verbs.command()
def drain(
    target: Annotated[str, typer.Argument(metavar="NODE|HOST", help="As `nexus node list` shows them.")],
    wait: Annotated[float | None, typer.Option(min=0, help="Wait this many seconds until nothing is left.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Let it take its share again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move agents and goals away from a host, or from all of a machine's; nothing that is accepted is refused."""
    from nexus_ray.runtime.client import connect

    with connect() as fleet:
        drained = fleet.drain(target, undo=undo)
        with spinner("draining"):
            states = _states(fleet, drained, wait if wait is not None and not undo else 0.0)
    if as_json:
        print_json({"hosts": states})
    else:
        for host, state in states.items():
            say(f"{host} is {state}")
    if wait is not None and not undo and set(states.values()) - {"drained", "gone"}:
        raise DeadlineExceededError(f"not drained after {wait:g} s; it goes on, and `nexus node list` tells how far")


def _states(fleet: Any, names: list[str], wait_s: float) -> dict[str, str]:
    ends_at = time.monotonic() + wait_s
    while True:
        known = {host["host"]: host["state"] for host in fleet.hosts()}
        states = {name: known.get(name, "gone") for name in names}
        if set(states.values()) <= {"drained", "gone"} or time.monotonic() >= ends_at:
            return states
        time.sleep(_LOOK_EVERY_S)


def _row(host: dict[str, Any]) -> list[Any]:
    agents = Counter(host.get("agents", {})).total()
    node_id = host.get("node_id", "")[:_ID_CHARACTERS_SHOWN]
    return [host["node"], node_id, host["host"], host.get("state", ""), host.get("goals", ""), agents]
