"""The ledger as a Ray actor, and the ledger port as its clients see it.

Law: one writer process for the whole fleet; the actor only forwards, and every error is one that the port names.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from nexus_ray.agents.task import AgentState
from nexus_ray.audit.log import DatabaseAuditLog
from nexus_ray.config import Settings
from nexus_ray.core.errors import UnavailableError
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.goal import Entry, Goal, GoalQuery, GoalRecord, Write
from nexus_ray.ledger.marks import Mark
from nexus_ray.ledger.ports import Acceptance
from nexus_ray.ledger.sqlite import SqliteLedger
from nexus_ray.runtime.audit_link import open_audit_file
from nexus_ray.runtime.boot import configure_process, settle_down
from nexus_ray.runtime.names import LEDGER
from nexus_ray.runtime.peer import Peer
from nexus_ray.runtime.state import socket_folder
from nexus_ray.runtime.wire import WireClient, WireServer

_TRIES = 40  # With the pauses below some 10 s: longer than a killed ledger process takes to be back.
_PAUSE_S = 0.25


class LedgerActor:
    """Owns the embedded ledger, and the audit log beside it."""

    def __init__(self, settings: Settings) -> None:
        configure_process(settings, "ledger")
        self._settings = settings
        self._ledger: SqliteLedger | None = None
        self._audit: DatabaseAuditLog | None = None
        self._opening = asyncio.Lock()
        # Not the method itself: Ray wraps those of actors, and the wrapper costs as much as the call.
        self._wire = WireServer(ledger_socket(settings), {
            "call": lambda *call: _call(self._open, *call), "audit": lambda *call: _call(self._open_audit, *call),
        })  # fmt: skip

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call one method of the port."""
        return await _call(self._open, method, *arguments)

    async def audit(self, method: str, *arguments: Any) -> Any:
        """Call one method of the audit log."""
        return await _call(self._open_audit, method, *arguments)

    async def stop(self) -> None:
        """Close the ledger and the audit log."""
        await self._wire.close()
        if self._audit is not None:
            await self._audit.close()
        if self._ledger is not None:
            await self._ledger.close()

    async def _open(self) -> SqliteLedger:
        if self._ledger is not None:
            return self._ledger
        async with self._opening:
            if self._ledger is None:
                folder = Path(self._settings.state_dir) / "ledger"
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._ledger = await SqliteLedger.open(folder / "ledger.sqlite", self._settings.ledger)
                await self._wire.start()
                settle_down()
        return self._ledger

    async def _open_audit(self) -> DatabaseAuditLog:
        if self._audit is not None:
            return self._audit
        await self._open()  # Only who owns the ledger owns the audit log.
        async with self._opening:
            if self._audit is None:
                self._audit = await open_audit_file(self._settings)
        return self._audit


async def _call(open_log: Callable[[], Awaitable[Any]], method: str, *arguments: Any) -> Any:
    return await getattr(await open_log(), method)(*arguments)


def ledger_socket(settings: Settings) -> Path:
    """Return where the ledger listens on its machine."""
    return socket_folder(settings.state_dir) / "ledger.sock"


class RayLedger:
    """Implements `Ledger` over the actor; waits for a ledger process that died, since every call may be repeated."""

    def __init__(self, settings: Settings) -> None:
        self._peer = Peer(LEDGER, functools.partial(WireClient.connect, ledger_socket(settings)))

    async def _call(self, method: str, *arguments: Any, tries: int = _TRIES) -> Any:
        for attempt in range(1, tries + 1):
            try:
                return await self._peer.call("call", method, *arguments)
            except UnavailableError as error:
                if attempt == tries or not error.details.get("is_lost"):
                    raise
                await asyncio.sleep(_PAUSE_S)
        raise AssertionError("unreachable")

    async def accept(self, goals: Sequence[Goal], holder: str = "") -> list[Acceptance]:
        """See `Ledger.accept`."""
        return list(await self._call("accept", goals, holder))

    async def append(self, writer: str, writes: Sequence[Write]) -> list[bool]:
        """See `Ledger.append`."""
        return list(await self._call("append", writer, writes))

    async def goal(self, goal_id: str) -> GoalRecord | None:
        """See `Ledger.goal`."""
        record: GoalRecord | None = await self._call("goal", goal_id)
        return record

    async def goals(self, query: GoalQuery) -> list[GoalRecord]:
        """See `Ledger.goals`."""
        return list(await self._call("goals", query))

    async def unfinished(self, after: str, limit: int) -> list[GoalRecord]:
        """See `Ledger.unfinished`."""
        return list(await self._call("unfinished", after, limit))

    async def journal(self, goal_id: str, after_seq: int, limit: int) -> list[Entry]:
        """See `Ledger.journal`."""
        return list(await self._call("journal", goal_id, after_seq, limit))

    async def entry(self, goal_id: str, step_key: str) -> Entry | None:
        """See `Ledger.entry`."""
        entry: Entry | None = await self._call("entry", goal_id, step_key)
        return entry

    async def questions(self, after_seq: int, limit: int, tenant: str = "") -> list[Entry]:
        """See `Ledger.questions`."""
        return list(await self._call("questions", after_seq, limit, tenant))

    async def changes(self, after_seq: int, wait_s: float, limit: int) -> tuple[int, list[str]]:
        """See `Ledger.changes`."""
        seq, goals = await self._call("changes", after_seq, wait_s, limit)
        return int(seq), list(goals)

    async def agent_state(self, agent: AgentId) -> AgentState | None:
        """See `Ledger.agent_state`."""
        state: AgentState | None = await self._call("agent_state", agent)
        return state

    async def put_mark(self, mark: Mark, only_new: bool = False) -> bool:
        """See `Ledger.put_mark`."""
        return bool(await self._call("put_mark", mark, only_new))

    async def marks(self, kinds: Sequence[str], after_version: int, limit: int) -> list[Mark]:
        """See `Ledger.marks`."""
        return list(await self._call("marks", kinds, after_version, limit))

    async def fence(self, host: str) -> None:
        """See `Ledger.fence`."""
        await self._call("fence", host)

    async def next_epoch(self) -> int:
        """See `Ledger.next_epoch`."""
        return int(await self._call("next_epoch"))

    async def close(self) -> None:
        """Let go; the actor lives on for the others."""
        self._peer.close()
