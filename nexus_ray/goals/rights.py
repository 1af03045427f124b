"""For whom a goal acts: the user who submitted it, with what that user may do, and never more.

Law: a goal runs only where its record carries the context that the fleet sealed for it: of this goal, this principal,
this tenant, until this deadline. What it asks for is asked in that name, and authorized anew where it runs: which
agents it may ask, by the host that plans the step and by the one that runs the agent.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace

from nexus_ray.agents.task import TaskOrder
from nexus_ray.audit.auditor import Scene, arrive
from nexus_ray.core.clock import Clock, SystemClock
from nexus_ray.core.context import CallContext, ContextSeal, Headers, what_is_sealed
from nexus_ray.core.errors import PermissionDeniedError, UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.ledger.goal import Goal
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger

log = get_logger("goals.rights")

_REMEMBERED_S = 5.0  # As long as a decision is remembered anywhere: so late does a right that was taken away end.
_REMEMBERED_MAX = 10_000  # Goals, some 1 KiB each.

Authorize = Callable[[Session, str, str], object]


class _Known:
    """A goal whose context was opened here, and the agent types that it may ask."""

    __slots__ = ("allowed", "context", "headers", "told")

    def __init__(self, headers: Headers, context: CallContext) -> None:
        self.headers = headers
        self.told = what_is_sealed(headers)
        self.context = context
        self.allowed: set[str] = set()


class Rights:
    """Knows for whom goals act."""

    def __init__(self, seal: ContextSeal, authorize: Authorize, clock: Clock | None = None) -> None:
        """`authorize(session, action, resource)` raises `PermissionDeniedError` where that is not allowed."""
        self._seal = seal
        self._authorize = authorize
        self._monotonic = (clock or SystemClock()).monotonic
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._forget_at = 0.0

    def check(self, goal: Goal) -> CallContext:
        """Return the context for which a goal acts.

        Raises:
            PermissionDeniedError: It is not one that the fleet sealed for this goal.
        """
        # As of its acceptance: that its time is over is for its machine to say, which may have to undo a saga.
        context = self._opened(goal.headers, goal.id, goal.accepted_at)
        session = context.session
        told = (session.principal, session.home, context.deadline.at)
        if told != (goal.principal, goal.tenant, goal.deadline_at):
            error = PermissionDeniedError("not allowed: the context is another's", reason="forged_context")
            raise _noted(goal.id, error)
        self._remember(goal.id, goal.headers, context)  # Its first ask is next.
        return context

    def may_ask(self, goal: Goal, agent_type: str) -> None:
        """Refuse a goal an agent that its submitter may not ask.

        Raises:
            PermissionDeniedError: The submitter may not.
        """
        # Where nothing decides now, it is decided by the host that is to run the agent, which is asked until it does.
        with contextlib.suppress(UnavailableError):
            self._check_ask(goal.id, goal.headers, agent_type)

    def admit(self, order: TaskOrder) -> None:
        """Refuse an order of a goal for an agent that its submitter may not ask; by the seal, whoever brought it.

        Raises:
            PermissionDeniedError: The submitter may not, or the order's context is not one that the fleet sealed.
            UnavailableError: Nothing decides now.
        """
        self._check_ask(order.goal_id, order.headers, order.agent.type)

    def handed_on(self, parent: Goal, child: Goal) -> Goal:
        """Return a goal of a goal with the parent's context sealed for it, if its submitter may have that goal.

        Raises:
            PermissionDeniedError: The submitter may not.
        """
        context = self.check(parent)
        self._decide(context, "goal:submit", child.type)
        headers = {**child.headers, "deadline": repr(child.deadline_at)}
        return replace(child, headers=self._seal.sealed(headers, child.id))

    def _check_ask(self, goal_id: str, headers: Headers, agent_type: str) -> None:
        now = self._monotonic()
        if now >= self._forget_at:
            self._known.clear()
            self._forget_at = now + _REMEMBERED_S
        known = self._known.get(goal_id)
        # All orders of one parcel and one goal share their headers, so that nearly always it is the same object.
        if known is None or (headers is not known.headers and known.told != what_is_sealed(headers)):
            # Whether there is time left is for who runs it to say: what undoes a saga comes after the deadline.
            known = self._remember(goal_id, headers, self._opened(headers, goal_id, 0.0))
        known.headers = headers
        if agent_type in known.allowed:
            return
        try:
            self._decide(known.context, "agent:ask", agent_type)
        except PermissionDeniedError as error:
            who = known.context.session.principal
            raise PermissionDeniedError(
                f"permission denied: {who} may not do agent:ask on {agent_type}", **error.details
            ) from None
        known.allowed.add(agent_type)

    def _decide(self, context: CallContext, action: str, resource: str) -> None:
        # As from where the goal was submitted. In a context of its own: what an agent's task sees does not change.
        copy_context().run(self._decide_there, context, action, resource)

    def _decide_there(self, context: CallContext, action: str, resource: str) -> None:
        arrive(Scene(context.source))
        self._authorize(context.session, action, resource)

    def _remember(self, goal_id: str, headers: Headers, context: CallContext) -> _Known:
        known = self._known[goal_id] = _Known(headers, context)
        if len(self._known) > _REMEMBERED_MAX:
            self._known.popitem(last=False)
        return known

    def _opened(self, headers: Headers, goal_id: str, now: float) -> CallContext:
        try:
            return self._seal.opened(headers, goal_id, now)
        except PermissionDeniedError as error:
            raise _noted(goal_id, error) from None


def _noted(goal_id: str, error: PermissionDeniedError) -> PermissionDeniedError:
    reason = str(error.details.get("reason", "forged_context"))
    metrics.count("nexus_security_violations_total", violation_type=reason, severity="high", source="host")
    log.error("rights.refused", goal_id=goal_id, reason=reason)
    return error
