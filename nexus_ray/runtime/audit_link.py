"""The fleet's audit log as one of its processes sees it, wherever that is kept.

Law: it is where the ledger is: behind the ledger's process, which owns the file, or in PostgreSQL, spoken to directly.
"""

import asyncio
import functools
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from nexus_ray.audit.auditor import Auditor
from nexus_ray.audit.log import DatabaseAuditLog
from nexus_ray.audit.ports import Hold, Proof, RecordQuery
from nexus_ray.audit.record import Entry, Record
from nexus_ray.audit.store import Database
from nexus_ray.config import Settings
from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import UnavailableError
from nexus_ray.runtime.state import write_private
from nexus_ray.runtime.wire import WireClient, register
from nexus_ray.security.keys import load_or_create_issuer_key

_TRIES = 40  # With the pauses below some 10 s: longer than a killed ledger process takes to be back.
_PAUSE_S = 0.25
_SALT_BYTES = 32

Call = Callable[..., Awaitable[Any]]
register(Entry, Record)


def audit_folder(settings: Settings) -> Path:
    """Return where the audit log's key is, and its file where it has one; made with mode 0700 if missing."""
    folder = settings.state_dir / "audit"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def load_salt(settings: Settings) -> bytes:
    """Return what names are hashed with, where that is wanted; made at the first start."""
    path = audit_folder(settings) / "salt"
    if not path.exists():
        write_private(path, secrets.token_hex(_SALT_BYTES))
    return bytes.fromhex(path.read_text().strip())


async def open_audit_file(settings: Settings) -> DatabaseAuditLog:
    """Open the embedded log; for the one process that owns it."""
    from nexus_ray.audit.sqlite import SqliteDatabase

    path = audit_folder(settings) / "audit.sqlite"
    return await _open(settings, lambda: SqliteDatabase(path))


def open_audit_log(settings: Settings, name: str) -> "LinkedAuditLog":
    """Return the fleet's audit log; it connects at the first call. `name` is what PostgreSQL knows this process by."""
    if settings.ledger.url:
        return here(functools.partial(_open_in_postgres, settings, name))
    from nexus_ray.runtime.ledger_actor import ledger_socket
    from nexus_ray.runtime.names import LEDGER
    from nexus_ray.runtime.peer import Peer

    peer = Peer(LEDGER, functools.partial(WireClient.connect, ledger_socket(settings)))

    async def close() -> None:
        peer.close()  # The log lives on for the others.

    return LinkedAuditLog(functools.partial(_asked_again, functools.partial(peer.call, "audit")), close)


async def _asked_again(call: Call, method: str, *arguments: Any) -> Any:
    """Wait for a process that died, since every call may be repeated."""
    for attempt in range(1, _TRIES + 1):
        try:
            return await call(method, *arguments)
        except UnavailableError as error:
            if attempt == _TRIES or not error.details.get("is_lost"):
                raise
            await asyncio.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


def here(open_log: Callable[[], Awaitable[DatabaseAuditLog]]) -> "LinkedAuditLog":
    """Return a log that this process has itself; it is opened at the first call."""
    opened: list[DatabaseAuditLog] = []
    opening = asyncio.Lock()

    async def call(method: str, *arguments: Any) -> Any:
        async with opening:
            if not opened:
                opened.append(await open_log())
        return await getattr(opened[0], method)(*arguments)

    async def close() -> None:
        for log in opened:
            await log.close()

    return LinkedAuditLog(call, close)


async def _open_in_postgres(settings: Settings, name: str) -> DatabaseAuditLog:
    from nexus_ray.audit.postgres import PostgresDatabase
    from nexus_ray.ledger.postgres_link import parameters

    given = parameters(settings.ledger, f"{name} audit")
    return await _open(settings, lambda: PostgresDatabase(given))


async def _open(settings: Settings, connect: Callable[[], Database]) -> DatabaseAuditLog:
    key = load_or_create_issuer_key(audit_folder(settings))
    log = await DatabaseAuditLog.open(connect, key.private, settings.audit)
    write_private(audit_folder(settings) / "verifier.key", await log.key())
    return log


def open_auditor(settings: Settings, name: str, clock: Clock) -> Auditor:
    """Return the auditor of a process that lets people in."""
    return Auditor(open_audit_log(settings, name), settings.audit, clock, load_salt(settings), name)


class LinkedAuditLog:
    """Implements `AuditLog` by calls of its methods by name."""

    def __init__(self, call: Call, close: Callable[[], Awaitable[None]]) -> None:
        self._call = call
        self._close = close

    async def append(self, entries: Sequence[Entry]) -> list[int]:
        """See `AuditLog.append`."""
        return list(await self._call("append", entries))

    async def records(self, query: RecordQuery) -> list[Record]:
        """See `AuditLog.records`."""
        return list(await self._call("records", query))

    async def key(self) -> str:
        """See `AuditLog.key`."""
        return str(await self._call("key"))

    async def checkpoint(self) -> str:
        """See `AuditLog.checkpoint`."""
        return str(await self._call("checkpoint"))

    async def checkpoints(self, after_size: int, limit: int) -> list[str]:
        """See `AuditLog.checkpoints`."""
        return list(await self._call("checkpoints", after_size, limit))

    async def prove(self, seq: int) -> Proof:
        """See `AuditLog.prove`."""
        proof: Proof = await self._call("prove", seq)
        return proof

    async def consistency(self, old_size: int) -> tuple[list[bytes], str]:
        """See `AuditLog.consistency`."""
        path, checkpoint = await self._call("consistency", old_size)
        return list(path), str(checkpoint)

    async def retain(self, now: float) -> int:
        """See `AuditLog.retain`."""
        return int(await self._call("retain", now))

    async def hold(self, hold: Hold, entry: Entry) -> None:
        """See `AuditLog.hold`."""
        await self._call("hold", hold, entry)

    async def release(self, name: str, entry: Entry) -> None:
        """See `AuditLog.release`."""
        await self._call("release", name, entry)

    async def holds(self) -> list[Hold]:
        """See `AuditLog.holds`."""
        return list(await self._call("holds"))

    async def close(self) -> None:
        """Let go."""
        await self._close()
