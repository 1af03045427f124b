from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.ledger.ports import Ledger
from nexus_ray.ledger.postgres import PostgresLedger
from nexus_ray.ledger.sqlite import SqliteLedger
from tests.support.postgres import Server

OpenLedger = Callable[..., Awaitable[Ledger]]

# Another adapter is one more name here and one more line in `open_ledger`.
ADAPTERS = ("memory", "sqlite", "postgres")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """One server for all tests here; who stops it starts it again."""
    server = Server()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(params=ADAPTERS)
async def open_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenLedger]:
    """Opens ledgers of one adapter, each a new and empty one; closes them all in the end."""
    opened: list[Ledger] = []
    databases: list[str] = []
    server: Server = request.getfixturevalue("postgres") if request.param == "postgres" else None

    async def open_one(**limits: Any) -> Ledger:
        if request.param == "memory":
            ledger: Ledger = MemoryLedger(LedgerSettings(**limits))
        elif request.param == "sqlite":
            ledger = await SqliteLedger.open(tmp_path / f"{len(opened)}.sqlite", LedgerSettings(**limits))
        else:
            databases.append(server.ledger())
            settings = LedgerSettings(url=server.url(databases[-1]), cluster="here", **limits)
            ledger = await PostgresLedger.open(settings, "host")
        opened.append(ledger)
        return ledger

    yield open_one
    for ledger in opened:
        await ledger.close()
    for database in databases:
        server.give_back(database)


@pytest.fixture
async def ledger(open_ledger: OpenLedger) -> Ledger:
    return await open_ledger()
