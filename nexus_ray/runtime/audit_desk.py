"""Where the audit log is read from outside: records, proofs, receipts, exports, and what is held.

Law: a caller sees the records of the tenants that he sees; the whole of the log, which an export is, only who may
see all that are in it. Placing and releasing a hold is itself a record.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

from nexus_ray.audit.auditor import Auditor
from nexus_ray.audit.export import export, receipt
from nexus_ray.audit.ports import Hold, RecordQuery
from nexus_ray.audit.record import Kind, Record, Retention
from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import NotFoundError, PermissionDeniedError
from nexus_ray.core.identity import MAIN_TENANT, Session
from nexus_ray.runtime.audited import AuditedAuthorizer


class AuditDesk:
    """Reads the log for those who may."""

    def __init__(
        self, auditor: Auditor, authorizer: AuditedAuthorizer, read_goal: Callable[[Session, str], Awaitable[Any]],
        clock: Clock,
    ) -> None:  # fmt: skip
        """`read_goal` refuses who may not read a goal, and whoever asks for one that is not there."""
        self._auditor = auditor
        self._authorizer = authorizer
        self._read_goal = read_goal
        self._clock = clock

    async def records(self, session: Session, query: RecordQuery) -> list[Record]:
        """Return a page of records; a principal is looked for by the name that he has in the log."""
        self._authorizer.authorize(session, "audit:read")
        if query.principal:
            query = replace(query, principal=self._auditor.principal(query.principal))
        await self._auditor.flush()
        return await self._auditor.log.records(replace(query, tenants=_of(session)))

    async def record(self, session: Session, seq: int) -> tuple[Record, dict[str, Any]]:
        """Return a record and its receipt.

        Raises:
            NotFoundError: There is none of this number that the caller sees.
        """
        self._authorizer.authorize(session, "audit:read")
        query = RecordQuery(after=seq - 1, before=seq + 1, tenants=_of(session))
        if not await self._auditor.log.records(query):
            raise NotFoundError(f"there is no audit record {seq}")
        proof = await self._auditor.log.prove(seq)
        return proof.record, receipt(proof)

    async def goal_receipt(self, session: Session, goal_id: str) -> dict[str, Any]:
        """Return the proof that a goal's acceptance is in the log.

        Raises:
            NotFoundError: There is no such goal, or what was written of it has been emptied.
        """
        await self._read_goal(session, goal_id)
        await self._auditor.flush()
        found = await self._auditor.log.records(RecordQuery(goal=goal_id, action="goal:submit", is_oldest_first=True))
        # Its outcome says that it was accepted. Another gateway may have that yet to write; its intent is on disk.
        for kind in (Kind.OUTCOME, Kind.INTENT):
            for record in found:
                if record.fields["kind"] == kind:
                    return receipt(await self._auditor.log.prove(record.seq))
        raise NotFoundError("there is no record of this goal in the audit log any more")

    async def checkpoint(self, session: Session) -> tuple[str, str]:
        """Return a signed checkpoint of the log as it is, and the key that verifies it."""
        self._authorizer.authorize(session, "audit:read")
        return await self._auditor.log.checkpoint(), await self._auditor.log.key()

    async def consistency(self, session: Session, old_size: int) -> tuple[list[bytes], str]:
        """Return the proof that the log still begins with its first `old_size` records."""
        self._authorizer.authorize(session, "audit:read")
        return await self._auditor.log.consistency(old_size)

    async def export(self, session: Session) -> AsyncIterator[bytes]:
        """Return the lines of an export, as they come."""
        self._authorizer.authorize(session, "audit:read")
        others = RecordQuery(tenants_not=_of(session), limit=1)
        if not session.sees_all and (session.tenant != MAIN_TENANT or await self._auditor.log.records(others)):
            error = PermissionDeniedError("not allowed", action="audit:read", reason="an_export_is_of_all_tenants")
            self._auditor.refused(session, "audit:read", "export", error)
            raise error
        async with self._auditor.change(session, "audit:export", retention=Retention.ADMINISTRATION):
            return export(self._auditor.log)

    async def holds(self, session: Session) -> list[Hold]:
        """Return what is held."""
        self._authorizer.authorize(session, "audit:read")
        return await self._auditor.log.holds()

    async def hold(self, session: Session, name: str, field: str, value: str, reason: str) -> Hold:
        """Keep records in clear, whatever their age."""
        self._authorizer.authorize(session, "audit:hold", name)
        wanted = Hold(name, field, self._auditor.principal(value) if field == "principal" else value, reason,
                      session.principal, self._clock.now())  # fmt: skip
        facts = {"field": field, "value": wanted.value, "reason": reason}
        entry = self._auditor.entry(
            session, "audit:hold", name, retention=Retention.FOREVER, outcome="ok", facts=facts
        )
        await self._auditor.log.hold(wanted, entry)
        return wanted

    async def release(self, session: Session, name: str) -> None:
        """Let go of a hold."""
        self._authorizer.authorize(session, "audit:hold", name)
        entry = self._auditor.entry(session, "audit:release", name, retention=Retention.FOREVER, outcome="ok")
        await self._auditor.log.release(name, entry)


def _of(session: Session) -> tuple[str, ...]:
    """Return the tenants whose records a caller sees; none named is all."""
    if session.sees_all:
        return ()
    # Strangers have no tenant: the main one looks after the house.
    return (MAIN_TENANT, "") if session.tenant == MAIN_TENANT else (session.tenant,)
