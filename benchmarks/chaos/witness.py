"""The witness: collects over HTTP, after a run, all that the account is drawn up from."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.chaos.account import ENDED, Evidence
from benchmarks.chaos.agents import COUNTER, GOALS
from benchmarks.chaos.load import COUNTERS, Told
from benchmarks.chaos.probe import PROBES, probe_key
from nexus_ray.core.errors import NexusError
from nexus_ray.runtime.client import Connection

_PAGE = 200
_PAGES_MAX = 1000
_JOURNAL_MAX = 1000
_CALLS_AT_ONCE = 4
_AGAIN_S = 0.25
_TRIES_MAX = 40
T = TypeVar("T")


def until_ended(connection: Connection, run: str, within_s: float) -> dict[str, Mapping[str, Any]]:
    """Wait until every goal of the run has ended, and return all; those that have not by then are stuck."""
    ends_at = time.monotonic() + within_s
    while True:
        records = {record["id"]: record for record in insist(lambda: list(_goals_of(connection, run)))}
        if all(record["status"] in ENDED for record in records.values()) or time.monotonic() > ends_at:
            return records
        time.sleep(_AGAIN_S)


def collect(
    connection: Connection, told: Told, run: str, folder: Path, records: Mapping[str, Mapping[str, Any]]
) -> Evidence:
    """Read every goal's journal, every counter's state and what was done outside."""
    keys = [*(f"{run}-{number}" for number in range(COUNTERS)), *(probe_key(run, number) for number in range(PROBES))]
    with ThreadPoolExecutor(_CALLS_AT_ONCE) as calls:
        journals = list(calls.map(lambda id: insist(functools.partial(_journal, connection, id)), records))
        states = list(calls.map(lambda key: insist(functools.partial(_state, connection, key)), keys))
    return Evidence(
        accepted=list(told.accepted),
        told=dict(told.results),
        records=records,
        journals=dict(zip(records, journals, strict=True)),
        states=dict(zip(keys, states, strict=True)),
        noted=lines(folder / "noted"),
        paid=lines(folder / "paid"),
    )


def insist(ask: Callable[[], T]) -> T:
    """Ask until there is an answer: what is judged is what stands on record, not how fast it can be read.

    Raises NexusError where there is none for long.
    """
    for attempt in range(1, _TRIES_MAX + 1):
        try:
            return ask()
        except NexusError:
            if attempt == _TRIES_MAX:
                raise
            time.sleep(_AGAIN_S)
    raise AssertionError("unreachable")


def _goals_of(connection: Connection, run: str) -> Iterator[dict[str, Any]]:
    for goal in GOALS:
        before: str | None = ""
        for _ in range(_PAGES_MAX):
            query = {"type": goal.__name__, "limit": _PAGE, **({"before": before} if before else {})}
            page = connection._json("GET", "/v1/goals", params=query)
            yield from (record for record in page["goals"] if record["payload"]["tag"].startswith(f"{run}-"))
            before = page["next"]
            if not before:
                break


def _journal(connection: Connection, goal_id: str) -> Sequence[dict[str, Any]]:
    query = {"limit": _JOURNAL_MAX}
    return list(connection._json("GET", f"/v1/goals/{goal_id}/journal", params=query)["entries"])


def _state(connection: Connection, key: str) -> int:
    state = connection.agent(f"{COUNTER}/{key}")["state"]
    return int(state["body"]["n"]) if state is not None else 0


def lines(path: Path) -> list[str]:
    """Return what was left outside."""
    return path.read_text().splitlines() if path.exists() else []
