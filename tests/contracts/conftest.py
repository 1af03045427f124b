from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nexus_ray.goals.ledger import Ledger
from nexus_ray.goals.ledger_limits import LedgerSettings
from nexus_ray.goals.ledger_memory import MemoryLedger
from nexus_ray.goals.ledger_sqlite import SqliteLedger

OpenLedger = Callable[..., Awaitable[Ledger]]

# Another adapter is one more name here and one more line in `open_ledger`.
ADAPTERS = ("memory", "sqlite")


@pytest.fixture(params=ADAPTERS)
async def open_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenLedger]:
    """Opens ledgers of one adapter, each a new and empty one; closes them all in the end."""
    opened: list[Ledger] = []

    async def open_one(**limits: Any) -> Ledger:
        settings = LedgerSettings(**limits)
        if request.param == "memory":
            ledger: Ledger = MemoryLedger(settings)
        else:
            ledger = await SqliteLedger.open(tmp_path / f"{len(opened)}.sqlite", settings)
        opened.append(ledger)
        return ledger

    yield open_one
    for ledger in opened:
        await ledger.close()


@pytest.fixture
async def ledger(open_ledger: OpenLedger) -> Ledger:
    return await open_ledger()
