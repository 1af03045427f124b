"""Who may do what to Ray itself: look at its dashboard, submit and stop its jobs.

Law: deny by default. Ray knows no tenants, and whoever submits a job runs code beside the fleet's own: this is for the
main tenant and for an admin of all. What changes something is written down before it is done.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nexus_ray.audit.auditor import Auditor
from nexus_ray.audit.record import Kind
from nexus_ray.core.errors import NexusError, NotFoundError, PermissionDeniedError, UnavailableError
from nexus_ray.core.identity import MAIN_TENANT, Session
from nexus_ray.observe.operation import observe
from nexus_ray.runtime.audited import AuditedAuthorizer

AnswerT = TypeVar("AnswerT")


class RayDesk:
    """Decides, and writes down."""

    def __init__(self, auditor: Auditor, authorizer: AuditedAuthorizer) -> None:
        self._auditor = auditor
        self._authorizer = authorizer

    def permit(self, session: Session, action: str, resource: str) -> None:
        """Refuse who may not.

        Raises:
            PermissionDeniedError: No role grants it, or the caller is another tenant's.
        """
        self._authorizer.authorize(session, action, resource)
        if not session.sees(MAIN_TENANT):
            error = PermissionDeniedError("not allowed", action=action, resource=resource, reason="other_tenant")
            self._auditor.refused(session, action, resource, error)
            raise error

    async def change(
        self, session: Session, action: str, resource: str, facts: Mapping[str, Any],
        do: Callable[[], Awaitable[AnswerT]], outcome_of: Callable[[AnswerT], str],
    ) -> AnswerT:  # fmt: skip
        """Have something done whose intent is on disk before it begins, and its outcome before it is acknowledged.

        Raises:
            UnavailableError: It could not be written down.
            NexusError: What `do` raises.
        """
        with observe("ray.change", log=True, attributes={"nexus.action": action}):
            intent = self._auditor.entry(session, action, resource, kind=Kind.INTENT, facts=facts)
            await self._auditor.append([intent])
            try:
                answer = await do()
            except BaseException as error:
                told = error.code if isinstance(error, NexusError) else "unknown"
                self._auditor.note(self._auditor.outcome(intent, told))
                raise
            await self._auditor.append([self._auditor.outcome(intent, outcome_of(answer))])
            return answer


async def read_ray_token(path: Path | None) -> str:
    """Return Ray's token from its file; None is a fleet without a dashboard.

    Raises:
        NotFoundError: There is no dashboard.
        UnavailableError: The file cannot be read here.
    """
    if path is None:
        raise NotFoundError("this fleet has no dashboard; with NEXUS_RUNTIME__DASHBOARD=true it starts one")
    try:
        return (await asyncio.to_thread(path.read_text)).strip()
    except OSError:
        raise UnavailableError("Ray's token cannot be read here") from None
