"""Records of what this machine's owner does with the fleet's keys, past its doors: tokens that are made, keys that go.

Law: written before it takes effect; what cannot be written down is not done. The record goes where the fleet's own go:
to the ledger's process where there is one, to PostgreSQL, or into the file, for as long as no fleet holds it.
"""

import asyncio
import contextlib
import getpass
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from nexus_ray.audit.auditor import Auditor, Scene, arrive
from nexus_ray.audit.record import Retention
from nexus_ray.config import Settings
from nexus_ray.core.clock import SystemClock
from nexus_ray.core.errors import AlreadyExistsError, UnavailableError
from nexus_ray.runtime.audit_link import LinkedAuditLog, here, load_salt, open_audit_file, open_audit_log
from nexus_ray.runtime.state import StateLock, socket_folder
from nexus_ray.runtime.wire import WireClient

_PAUSE_S = 0.25  # A ledger's process that died is back after some of these.


def write_down(
    settings: Settings, action: str, resource: str, facts: Mapping[str, Any], *, is_name: bool = False
) -> None:
    """Put it on record that this machine's user does something; it is on disk when this returns.

    `resource` may be somebody's name (`is_name`), which the settings may want to have hashed.

    Raises:
        UnavailableError: It cannot be written down.
    """
    asyncio.run(_write_down(settings, action, resource, facts, is_name))


async def _write_down(
    settings: Settings, action: str, resource: str, facts: Mapping[str, Any], is_name: bool
) -> None:
    arrive(Scene("local"))
    async with _opened(settings) as log:
        auditor = Auditor(log, settings.audit, SystemClock(), load_salt(settings), "local")
        name = auditor.principal(resource) if is_name else resource
        entry = auditor.entry(None, action, name, retention=Retention.ADMINISTRATION, outcome="ok", facts=facts)
        await auditor.append([replace(entry, principal=auditor.principal(f"os:{_user()}"))])


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[LinkedAuditLog]:
    lock: StateLock | None = None
    if settings.ledger.url:
        log = open_audit_log(settings, "nexus token")
    else:
        client, lock = await _writer(settings)
        log = here(partial(open_audit_file, settings)) if client is None else _over(client)
    try:
        yield log
    finally:
        await log.close()
        if lock is not None:
            lock.release()


def _over(client: WireClient) -> LinkedAuditLog:
    async def close() -> None:
        client.close()

    return LinkedAuditLog(partial(client.call, "audit"), close)


async def _writer(settings: Settings) -> tuple[WireClient | None, StateLock | None]:
    """Return a way to the process that owns the log, or what keeps others from owning it."""
    socket = socket_folder(settings.state_dir) / "ledger.sock"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.audit.answer_s_max):
            while True:
                with contextlib.suppress(UnavailableError):
                    return await WireClient.connect(socket), None
                with contextlib.suppress(AlreadyExistsError):
                    return None, StateLock(settings.state_dir)
                await asyncio.sleep(_PAUSE_S)
    raise UnavailableError("the fleet's audit log does not answer: what cannot be written down is not done")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # In a container the user often has no name.
        return str(os.getuid())
