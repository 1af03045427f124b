"""The doors with an auditor: whoever is refused is noted, and goals are accepted and written down at one time.

Law: a goal is acknowledged after both, its acceptance and its intent, are on disk. Neither waits for the other, so that
a crash may leave a goal without its intent; but the goal's own record says all that the intent would, and whoever
opens a door next writes it down from there.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from nexus_ray.audit.auditor import Auditor
from nexus_ray.audit.record import Entry, Kind
from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import NexusError, PermissionDeniedError, UnauthenticatedError, UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.ledger.goal import Goal, GoalQuery
from nexus_ray.ledger.ports import Acceptance, Ledger
from nexus_ray.observe.logs import get_logger
from nexus_ray.observe.traces import trace_id_of
from nexus_ray.runtime.intake import Verdict
from nexus_ray.security.authz import Authorizer

log = get_logger("runtime.audited")

AcceptedT = TypeVar("AcceptedT")
_SUBMISSION = "submission"  # A header of a goal that came in by a door: its own id, the request, where from.
_MEND_PAGE = 1000
_MEND_PAGES_MAX = 100  # Two seconds of the audit log's thread; at the highest rates of one door some minutes of goals.
_MEND_S = 3600.0  # So far back: a door that died has been replaced long before.


@contextlib.contextmanager
def strangers_noted(auditor: Auditor) -> Iterator[None]:
    """Note whoever is not let in within the block."""
    try:
        yield
    except UnauthenticatedError as error:
        auditor.refused(None, "session:authenticate", "", error)
        raise


class AuditedAuthorizer:
    """An authorizer whose refusals are noted."""

    def __init__(self, authorizer: Authorizer, auditor: Auditor) -> None:
        self._authorizer = authorizer
        self.auditor = auditor

    def authorize(self, session: Session, action: str, resource: str = "") -> None:
        """See `Authorizer.authorize`."""
        try:
            self._authorizer.authorize(session, action, resource)
        except (PermissionDeniedError, UnavailableError) as error:
            self.auditor.refused(session, action, resource, error)
            raise


async def accept_audited(
    auditor: Auditor, session: Session, goals: Sequence[Goal],
    accept: Callable[[Sequence[Goal]], Awaitable[list[AcceptedT]]],
    verdict_of: Callable[[AcceptedT], Verdict],
) -> list[AcceptedT]:  # fmt: skip
    """Have goals accepted and their intents written, at one time; the outcomes follow with the next records.

    Raises:
        UnavailableError: They could not be written down. Goals may have been accepted: nobody knows.
        NexusError: What `accept` raises.
    """
    if not goals:
        return []
    intents = [_intent(auditor, session, goal) for goal in goals]
    # Told to the ledger with the goal, in one transaction: where it came from, and under which request.
    told = [
        replace(goal, headers={**goal.headers, _SUBMISSION: f"{goal.id} {intent.request} {intent.source}"})
        for goal, intent in zip(goals, intents, strict=True)
    ]
    writing: Awaitable[object] = auditor.append(intents)
    if not auditor.is_well:
        await writing  # What cannot be written down is not begun.
        writing = asyncio.sleep(0)
    written, accepted = await asyncio.gather(writing, accept(told), return_exceptions=True)
    if isinstance(accepted, BaseException):
        for intent in intents:
            auditor.note(auditor.outcome(intent, accepted.code if isinstance(accepted, NexusError) else "unknown"))
        raise accepted
    for intent, one in zip(intents, accepted, strict=True):
        verdict = verdict_of(one)
        if isinstance(verdict, Acceptance):
            facts = {**intent.facts, "is_new": verdict.is_new}
            auditor.note(auditor.outcome(intent, "ok", goal=verdict.goal_id, facts=facts))
        else:
            auditor.note(auditor.outcome(intent, verdict.code))
    if isinstance(written, BaseException):
        raise written
    return accepted


class Mending:
    """Writes the intents of goals whose door died before it had: once, soon after a door is first used."""

    def __init__(self, auditor: Auditor, ledger: Ledger, clock: Clock) -> None:
        self._auditor = auditor
        self._ledger = ledger
        self._clock = clock
        self._work: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin, if that was not done yet; nobody waits for it."""
        if self._work is None:
            self._work = asyncio.get_running_loop().create_task(self._until_done(), name="mend intents")

    async def close(self) -> None:
        """Leave off."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    async def _until_done(self) -> None:
        began_at = self._clock.now()
        while True:
            # Until then a door that lives has written what it accepted before now, or has said that it could not.
            await asyncio.sleep(self._auditor.answer_s_max)
            try:
                return await self._mend(began_at)
            except NexusError as error:
                log.warning("audit.intents_not_mended", error=error.message)

    async def _mend(self, until: float) -> None:
        before = ""
        for _ in range(_MEND_PAGES_MAX):
            page = [record.goal for record in await self._ledger.goals(GoalQuery(before=before, limit=_MEND_PAGE))]
            # Those that stand in the log already stand once: an entry is named by its operation, which is the goal.
            mended = [
                _mended(self._auditor, goal) for goal in page if _is_submitted(goal) and goal.accepted_at <= until
            ]
            await self._auditor.append(mended)
            if len(page) < _MEND_PAGE or page[-1].accepted_at < until - _MEND_S:
                return
            before = page[-1].id


def _is_submitted(goal: Goal) -> bool:
    return goal.headers.get(_SUBMISSION, "").startswith(f"{goal.id} ")  # A goal of a goal has its parent's.


def _mended(auditor: Auditor, goal: Goal) -> Entry:
    _, request, source = goal.headers[_SUBMISSION].split(" ", 2)
    return Entry(
        goal.id, Kind.INTENT, goal.accepted_at, "goal:submit", principal=auditor.principal(goal.principal),
        tenant=goal.headers.get("tenant", ""), session=goal.headers.get("session", ""), source=source,
        resource=goal.type, decision="allow", trace=trace_id_of(goal.headers.get("traceparent", "")), goal=goal.id,
        request=request, facts={"payload_sha256": hashlib.sha256(goal.payload).hexdigest(), "is_mended": True},
    )  # fmt: skip


def _intent(auditor: Auditor, session: Session, goal: Goal) -> Entry:
    facts = {"payload_sha256": hashlib.sha256(goal.payload).hexdigest()}
    trace = trace_id_of(goal.headers.get("traceparent", ""))
    return auditor.entry(
        session, "goal:submit", goal.type, kind=Kind.INTENT, operation=goal.id, goal=goal.id, trace=trace, facts=facts
    )
