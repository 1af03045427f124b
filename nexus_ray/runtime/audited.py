"""The doors with an auditor: whoever is refused is noted, and goals are accepted and written down at one time.

Law: a goal is acknowledged after both, its acceptance and its intent, are on disk.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from nexus_ray.audit.auditor import Auditor
from nexus_ray.audit.record import Entry, Kind
from nexus_ray.core.errors import NexusError, PermissionDeniedError, UnauthenticatedError, UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.goals.goal import Goal
from nexus_ray.goals.ledger import Acceptance
from nexus_ray.observe.traces import trace_id_of
from nexus_ray.runtime.intake import Verdict
from nexus_ray.security.authz import Authorizer

AcceptedT = TypeVar("AcceptedT")


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
    writing: Awaitable[object] = auditor.append(intents)
    if not auditor.is_well:
        await writing  # What cannot be written down is not begun.
        writing = asyncio.sleep(0)
    written, accepted = await asyncio.gather(writing, accept(goals), return_exceptions=True)
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


def _intent(auditor: Auditor, session: Session, goal: Goal) -> Entry:
    facts = {"payload_sha256": hashlib.sha256(goal.payload).hexdigest()}
    trace = trace_id_of(goal.headers.get("traceparent", ""))
    return auditor.entry(session, "goal:submit", goal.type, kind=Kind.INTENT, goal=goal.id, trace=trace, facts=facts)
