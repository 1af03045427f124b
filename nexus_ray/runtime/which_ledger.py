"""Which ledger a fleet has, by its settings: the embedded one behind its actor, or PostgreSQL, spoken to directly.

Law: one setting decides, `ledger.url`; nothing above knows which it is. It loads neither ray nor psycopg before one
of them is wanted.
"""

import asyncio
import contextlib
import importlib.util
from pathlib import Path

from nexus_ray.config import Settings
from nexus_ray.core.errors import FailedPreconditionError, NexusError
from nexus_ray.ledger.ports import Ledger


def open_ledger(settings: Settings, name: str) -> Ledger:
    """Return the fleet's ledger as one of its processes sees it; it connects at the first call.

    Args:
        settings: The fleet's.
        name: The host's name, by which it is fenced, or what else this process is.
    """
    if not settings.ledger.url:
        from nexus_ray.runtime.ledger_actor import RayLedger

        return RayLedger(settings)
    from nexus_ray.ledger.postgres import PostgresLedger

    return PostgresLedger(settings.ledger, name)


def check_ledger(settings: Settings) -> None:
    """Refuse to start a fleet on a PostgreSQL that will not do; the embedded ledger is checked when it is opened.

    Raises:
        AlreadyExistsError: Another fleet has it; the message names it.
        FailedPreconditionError: With what to do about it.
        UnavailableError: It cannot be reached now.
    """
    if settings.ledger.url:
        need_postgres()
        asyncio.run(_open_and_close(settings))


def let_go_of_ledger(settings: Settings) -> None:
    """Let another fleet have a PostgreSQL ledger at once, now that this one has stopped."""
    if settings.ledger.url:
        with contextlib.suppress(NexusError):
            asyncio.run(_open_and_close(settings, releases=True))


def need_postgres() -> None:
    """Refuse to go on without the driver.

    Raises:
        FailedPreconditionError: With what to install.
    """
    if not all(importlib.util.find_spec(name) for name in ("psycopg", "alembic", "sqlalchemy")):
        raise FailedPreconditionError("a PostgreSQL ledger needs its driver: pip install 'nexus-ray[postgres]'")


def ledger_path(settings: Settings) -> Path:
    """Return the file of the embedded ledger."""
    return settings.state_dir / "ledger" / "ledger.sqlite"


async def _open_and_close(settings: Settings, releases: bool = False) -> None:
    from nexus_ray.ledger.postgres import PostgresLedger

    ledger = await PostgresLedger.open(settings.ledger, "nexus up")
    try:
        if releases:
            await ledger.release()
    finally:
        await ledger.close()
