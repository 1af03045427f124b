"""For whom a goal acts: the user who submitted it, with what that user may do, and never more.

Law: a goal runs only where its record carries the context that the fleet sealed for it: of this goal, this principal,
this tenant, until this deadline. What it asks for is asked in that name, and authorized anew where it runs.
"""

from collections.abc import Callable
from dataclasses import replace

from nexus_ray.core.context import CallContext, ContextSeal
from nexus_ray.core.errors import PermissionDeniedError
from nexus_ray.core.identity import Session
from nexus_ray.goals.goal import Goal
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger

log = get_logger("goals.rights")

Authorize = Callable[[Session, str, str], object]


class Rights:
    """Knows for whom goals act."""

    def __init__(self, seal: ContextSeal, authorize: Authorize) -> None:
        """`authorize(session, action, resource)` raises `PermissionDeniedError` where that is not allowed."""
        self._seal = seal
        self._authorize = authorize

    def check(self, goal: Goal) -> CallContext:
        """Return the context for which a goal acts.

        Raises:
            PermissionDeniedError: It is not one that the fleet sealed for this goal.
        """
        try:
            # As of its acceptance: that its time is over is for its machine to say, which may have to undo a saga.
            context = self._seal.opened(goal.headers, goal.id, goal.accepted_at)
            session = context.session
            told = (session.principal, session.home, context.deadline.at)
            if told != (goal.principal, goal.tenant, goal.deadline_at):
                raise PermissionDeniedError("not allowed: the context is another's", reason="forged_context")
        except PermissionDeniedError as error:
            metrics.count(
                "nexus_security_violations_total",
                violation_type=str(error.details.get("reason", "forged_context")), severity="high", source="host",
            )  # fmt: skip
            log.error("rights.refused", goal_id=goal.id, reason=error.details.get("reason"))
            raise
        return context

    def handed_on(self, parent: Goal, child: Goal) -> Goal:
        """Return a goal of a goal with the parent's context sealed for it, if its submitter may have that goal.

        Raises:
            PermissionDeniedError: The submitter may not.
        """
        context = self.check(parent)
        self._authorize(context.session, "goal:submit", child.type)
        headers = {**child.headers, "deadline": repr(child.deadline_at)}
        return replace(child, headers=self._seal.sealed(headers, child.id))
