"""The doors with an auditor: whoever is refused is noted, and goals are accepted and written down at one time.

Law: a goal is acknowledged after both, its acceptance and its intent, are on disk.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence

from nexus_ray.audit.auditor import Auditor
from nexus_ray.audit.record import Entry, Kind
from nexus_ray.core.errors import PermissionDeniedError, UnauthenticatedError
from nexus_ray.core.identity import Session
from nexus_ray.goals.goal import Goal
from nexus_ray.goals.ledger import Acceptance
from nexus_ray.observe.traces import trace_id_of
from nexus_ray.runtime.intake import Verdict
from nexus_ray.security.authz import Authorizer


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
        self._auditor = auditor

    def authorize(self, session: Session, action: str, resource: str = "") -> None:
        """See `Authorizer.authorize`."""
        try:
            self._authorizer.authorize(session, action, resource)
        except PermissionDeniedError as error:
            self._auditor.refused(session, action, resource, error)
            raise


async def accept_audited(
    auditor: Auditor, session: Session, goals: Sequence[Goal],
    accept: Callable[[Sequence[Goal]], Awaitable[list[Verdict]]],
) -> list[Verdict]:  # fmt: skip
    """Have goals accepted and their intents written, at one time; the outcomes follow with the next records.

    Raises:
        UnavailableError: They could not be written down. Goals may have been accepted: nobody knows.
    """
    if not goals:
        return []
    intents = [_intent(auditor, session, goal) for goal in goals]
    if auditor.is_well:
        written, accepted = await asyncio.gather(auditor.append(intents), accept(goals), return_exceptions=True)
        for failed in (written, accepted):
            if isinstance(failed, BaseException):
                raise failed
        verdicts: list[Verdict] = accepted  # type: ignore[assignment]
    else:
        # What cannot be written down is not begun.
        await auditor.append(intents)
        verdicts = await accept(goals)
    for intent, verdict in zip(intents, verdicts, strict=True):
        if isinstance(verdict, Acceptance):
            facts = {**intent.facts, "is_new": verdict.is_new}
            auditor.note(auditor.outcome(intent, "ok", goal=verdict.goal_id, facts=facts))
        else:
            auditor.note(auditor.outcome(intent, verdict.code))
    return verdicts


def _intent(auditor: Auditor, session: Session, goal: Goal) -> Entry:
    facts = {"payload_sha256": hashlib.sha256(goal.payload).hexdigest()}
    trace = trace_id_of(goal.headers.get("traceparent", ""))
    return auditor.entry(session, "goal:submit", goal.type, kind=Kind.INTENT, goal=goal.id, trace=trace, facts=facts)
