"""Who may still come in: sessions that were seen and revoked, identities that are suspended and restored.

Law: a verb has happened when it is on record; every process learns of it within a second, and nobody from anywhere
else. A caller rules over his own tenant; an admin of all tenants names one.
"""

import asyncio
import contextlib
from collections import OrderedDict
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson

from nexus_ray.audit.record import Retention
from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NexusError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from nexus_ray.core.identity import Session
from nexus_ray.ledger.goal import GoalQuery, GoalStatus, RequestCancel
from nexus_ray.ledger.marks import Mark
from nexus_ray.ledger.ports import Ledger
from nexus_ray.observe.logs import get_logger
from nexus_ray.observe.operation import observe
from nexus_ray.runtime.audited import AuditedAuthorizer, Mending
from nexus_ray.security.revocation import IDENTITY, SESSION, Revocations, RevocationSettings, name_of

log = get_logger("runtime.access")

_SEEN = "seen"
_FOR_GOOD = 2.0**53  # Until somebody restores it; a larger number would lose seconds.
_UNSEEN_S = 366 * 86_400.0  # A session that was never seen here may live as long as any token is let to.
_LEEWAY_S_MAX = 180.0  # Whatever is allowed to the clock of any issuer; who is let in is asked more exactly.
_PAGE = 1000
_NAME_CHARACTERS_MAX = 400
_SIGHTINGS_MAX = 10_000  # Sessions that this process knows to be on record; one that falls out is written again.
_WRITTEN_AT_ONCE = 100


class Access:
    """Lists, revokes, suspends and restores; used from one event loop only."""

    def __init__(
        self, ledger: Ledger, authorizer: AuditedAuthorizer, clock: Clock, settings: RevocationSettings | None = None
    ) -> None:
        self._settings = settings or RevocationSettings()
        self._ledger = ledger
        self._authorizer = authorizer
        self._clock = clock
        self.revocations = Revocations(ledger, self._settings, clock)
        self._sighted: OrderedDict[str, None] = OrderedDict()
        self._unwritten: dict[str, Mark] = {}
        self._writing: asyncio.Task[None] | None = None
        self._mending = Mending(authorizer.auditor, ledger, clock)

    async def check(self, session: Session) -> None:
        """Refuse who was suspended, or whose session was revoked or has ended; see `Revocations.check`.

        Who is seen for the first time has come in: that is written down, and stands in the list of sessions.
        """
        if self._clock.now() >= session.expires_at + _LEEWAY_S_MAX:  # Who came in before that may still be here.
            raise UnauthenticatedError("authentication failed")
        await self.revocations.check(session)
        name = name_of(session.tenant, session.id)
        if name in self._sighted or len(self._unwritten) >= _SIGHTINGS_MAX:
            return
        self._sighted[name] = None
        self._mending.begin()
        auditor = self._authorizer.auditor
        facts = {"issuer": session.issuer, "method": session.method}
        auditor.note(auditor.entry(session, "session:authenticate", retention=Retention.ACCESS, outcome="ok",
                                   facts=facts))
        if len(self._sighted) > _SIGHTINGS_MAX:
            self._sighted.popitem(last=False)
        now = self._clock.now()
        told = {
            "id": session.id, "principal": session.principal, "issuer": session.issuer, "tenant": session.tenant,
            "roles": session.roles, "method": session.method, "seen_at": now, "expires_at": session.expires_at,
            "actor": session.actor,
        }  # fmt: skip
        self._unwritten[name] = Mark(_SEEN, name, now, session.expires_at, orjson.dumps(told))
        if self._writing is None or self._writing.done():
            # Nobody waits for this: a caller is let in whether or not the list of who was seen can be written.
            self._writing = asyncio.get_running_loop().create_task(self._write_sightings(), name="note sessions")

    async def sessions(self, session: Session) -> list[dict[str, Any]]:
        """Return the sessions that were seen and have not expired, and whether each is revoked."""
        self._authorizer.authorize(session, "session:read")
        now = self._clock.now()
        revoked = {mark.name for mark in await self._marks(SESSION) if mark.until > now}
        found = []
        for mark in await self._marks(_SEEN):
            told = orjson.loads(mark.body)
            if mark.until > now and session.sees(told["tenant"]):
                found.append({"actor": "", **told, "is_revoked": mark.name in revoked})
        return found

    async def revoke(self, session: Session, id: str, tenant: str = "") -> dict[str, Any]:
        """Let a session in no more, wherever; goals that it submitted go on."""
        self._authorizer.authorize(session, "session:revoke", id)
        name = name_of(self._tenant(session, tenant), _checked(id))
        with observe("session.revoke", log=True, attributes={"nexus.session": id}):
            now = self._clock.now()
            seen = next((mark for mark in await self._marks(_SEEN) if mark.name == name), None)
            until = now + _UNSEEN_S if seen is None else seen.until
            told = {"id": id, "tenant": self._tenant(session, tenant), "by": session.principal, "at": now}
            async with self._written_down(session, "session:revoke", id, self._tenant(session, tenant)):
                await self._put(Mark(SESSION, name, now, until, orjson.dumps(told)))
            return {**told, "until": until}

    async def identities(self, session: Session) -> list[dict[str, Any]]:
        """Return the identities that are suspended."""
        self._authorizer.authorize(session, "identity:read")
        told = [orjson.loads(mark.body) for mark in await self._marks(IDENTITY) if mark.until > self._clock.now()]
        return [one for one in told if session.sees(one["tenant"])]

    async def suspend(
        self, session: Session, principal: str, tenant: str = "", *, cancel_goals: bool = False
    ) -> dict[str, Any]:
        """Let an identity in no more until it is restored; its goals under way go on, or are cancelled.

        Raises:
            FailedPreconditionError: It is the caller's own: nobody locks himself out.
        """
        self._authorizer.authorize(session, "identity:suspend", principal)
        of = self._tenant(session, tenant)
        if (of, principal) == (session.tenant, session.principal):
            raise FailedPreconditionError("nobody suspends himself")
        with observe("identity.suspend", log=True, attributes={"nexus.principal": principal, "nexus.tenant": of}):
            now = self._clock.now()
            told = {"principal": _checked(principal), "tenant": of, "by": session.principal, "at": now}
            async with self._written_down(session, "identity:suspend", principal, of):
                await self._put(Mark(IDENTITY, name_of(of, principal), now, _FOR_GOOD, orjson.dumps(told)))
            cancelled = await self._cancel_goals(of, principal, session.principal) if cancel_goals else 0
            return {**told, "goals_cancelled": cancelled}

    async def restore(self, session: Session, principal: str, tenant: str = "") -> dict[str, Any]:
        """Let a suspended identity in again."""
        self._authorizer.authorize(session, "identity:restore", principal)
        of = self._tenant(session, tenant)
        with observe("identity.restore", log=True, attributes={"nexus.principal": principal, "nexus.tenant": of}):
            now = self._clock.now()
            told = {"principal": _checked(principal), "tenant": of, "by": session.principal, "at": now}
            async with self._written_down(session, "identity:restore", principal, of):
                await self._put(Mark(IDENTITY, name_of(of, principal), now, now, orjson.dumps(told)))
            return {**told, "goals_cancelled": 0}

    async def close(self) -> None:
        """Follow the list no more, and note nobody more."""
        await self.revocations.close()
        await self._mending.close()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])

    def _written_down(self, session: Session, action: str, who: str, of: str) -> AbstractAsyncContextManager[None]:
        auditor = self._authorizer.auditor
        name = auditor.principal(who) if action.startswith("identity:") else who
        return auditor.change(session, action, name, retention=Retention.ADMINISTRATION, facts={"of": of})

    def _tenant(self, session: Session, tenant: str) -> str:
        """Return the tenant that is meant; another's is not there for whoever does not see it."""
        if tenant and not session.sees(tenant):
            raise InvalidArgumentError("there is no such tenant here")
        return tenant or session.home

    async def _put(self, mark: Mark) -> None:
        if mark.until > mark.at and self.revocations.listed >= self._settings.listed_max:
            raise ResourceExhaustedError("as many are suspended and revoked as may be (revocation.listed_max)")
        await self._ledger.put_mark(mark)
        with contextlib.suppress(NexusError):  # Here at once; what cannot be read now is read with the next look.
            await self.revocations.look()

    async def _cancel_goals(self, tenant: str, principal: str, by: str) -> int:
        # First until every front door knows: what one of them still lets in comes before the list of goals.
        await asyncio.sleep(2 * self._settings.look_every_s)
        cancelled = 0
        for status in (GoalStatus.ACCEPTED, GoalStatus.RUNNING):
            before = ""
            while True:
                query = GoalQuery(status.value, principal=principal, before=before, limit=_PAGE, tenant=tenant)
                page = [record.goal for record in await self._ledger.goals(query)]
                asked = [RequestCancel(goal.id, self._clock.now(), by) for goal in page]
                cancelled += sum(await self._ledger.append("", asked)) if asked else 0
                if len(page) < _PAGE:
                    break
                before = page[-1].id
        return cancelled

    async def _marks(self, kind: str) -> list[Mark]:
        found: list[Mark] = []
        while True:
            page = await self._ledger.marks([kind], found[-1].version if found else 0, _PAGE)
            found += page
            if len(page) < _PAGE:
                return found

    async def _write_sightings(self) -> None:
        while self._unwritten:
            names = list(self._unwritten)[:_WRITTEN_AT_ONCE]
            marks = [self._unwritten.pop(name) for name in names]
            try:
                await asyncio.gather(*(self._ledger.put_mark(mark) for mark in marks))
            except NexusError as error:
                log.warning("access.sessions_not_noted", error=error.message, sessions=len(marks))
                return


def _checked(name: str) -> str:
    if not 0 < len(name) <= _NAME_CHARACTERS_MAX or not name.isprintable():
        raise InvalidArgumentError(f"a session's id or a principal is 1 to {_NAME_CHARACTERS_MAX} printable characters")
    return name
