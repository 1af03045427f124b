"""For whom a goal acts: its submitter, with what that one may do; and what becomes of one whose context is forged."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

import nexus_ray as nexus
from nexus_ray.config import Settings
from nexus_ray.core.clock import SystemClock
from nexus_ray.core.context import CallContext, ContextSeal
from nexus_ray.core.errors import PermissionDeniedError
from nexus_ray.core.identity import Session
from nexus_ray.goals.rights import Rights
from nexus_ray.goals.spec import Specs
from nexus_ray.ledger.goal import Goal, Outcome
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.runtime.intake import SubmitRequest, build_goal
from nexus_ray.security.authz import Authorizer
from tests.support.in_process import InProcessFleet

SEAL = ContextSeal(b"k" * 32)
ADA = Session("s", "ada", "idp", ("submitter",), 9e9, tenant="acme")


class _Only(Authorizer):
    """Lets a submitter have the goals that are named, and asks in whose name it was asked."""

    def __init__(self, *types: str) -> None:
        super().__init__({})
        self.types = types
        self.asked: list[tuple[str, str, str]] = []

    def authorize(self, session: Session, action: str, resource: str = "") -> None:
        self.asked.append((session.principal, session.tenant, f"{action} {resource}"))
        if resource not in self.types:
            raise PermissionDeniedError("not allowed", action=action, resource=resource)


def make_app() -> nexus.App:
    app = nexus.App("rights")

    @app.agent
    class Who(nexus.Agent):
        async def handle(self, payload: Any, task: nexus.Task) -> list[str]:
            session = task.context.session
            return [session.principal, session.tenant, *session.roles]

    @app.goal
    async def who(request: Any, team: nexus.Team) -> list[str]:
        return await team.ask("who")

    @app.goal
    async def nested(request: Any, team: nexus.Team) -> Any:
        return await team.goal("who")

    return app


async def run(authorizer: Authorizer, type: str, **forged: Any) -> Outcome:
    app, settings, ledger = make_app(), Settings(), MemoryLedger()
    fleet = InProcessFleet(app, ledger, settings, rights=Rights(SEAL, authorizer.authorize))
    fleet.add("host-0")
    fleet.publish()
    try:
        request = SubmitRequest(type, b"null", 10.0)
        specs = Specs(app.agents, app.goals)
        goal = build_goal(request, ADA, specs, settings.goals, SystemClock().now(), "", SEAL)
        goal = replace(goal, **{name: value(goal) if callable(value) else value for name, value in forged.items()})
        await ledger.accept([goal])
        await fleet.poke([goal])
        return await fleet.outcome(goal)
    finally:
        await fleet.hosts_by_name["host-0"].close()


async def test_agents_are_asked_in_the_name_of_who_submitted_the_goal() -> None:
    outcome = await run(_Only("who"), "who")

    assert orjson.loads(outcome.result) == ["ada", "acme", "submitter"]


async def test_a_goal_of_a_goal_is_asked_for_in_the_same_name_and_has_no_more() -> None:
    allowed, refused = _Only("who"), _Only("other")

    outcome, failed = await run(allowed, "nested"), await run(refused, "nested")

    assert orjson.loads(outcome.result) == ["ada", "acme", "submitter"]
    assert allowed.asked == [("ada", "acme", "goal:submit who"), ("ada", "acme", "agent:ask who")]
    assert refused.asked == [("ada", "acme", "goal:submit who")]
    assert failed.failure is not None and failed.failure.code == "permission_denied"


def _other_roles(goal: Goal) -> dict[str, str]:
    return {**goal.headers, "roles": "admin"}


def _own_seal(goal: Goal) -> dict[str, str]:
    context = replace(CallContext.from_headers(goal.headers), session=replace(ADA, roles=("admin",)))
    return ContextSeal(b"x" * 32).sealed(context.to_headers(), goal.id)


def _of_another_goal(goal: Goal) -> dict[str, str]:
    return SEAL.sealed(goal.headers, "goal-another")


def _none(goal: Goal) -> dict[str, str]:
    return CallContext.from_headers(goal.headers).to_headers()


@pytest.mark.parametrize(
    "forged",
    [
        {"headers": _other_roles}, {"headers": _own_seal}, {"headers": _of_another_goal}, {"headers": _none},
        {"principal": "eve"}, {"tenant": "main"}, {"deadline_at": lambda goal: goal.deadline_at + 9.0},
    ],
)  # fmt: skip
async def test_a_goal_whose_context_is_not_the_fleets_for_it_does_nothing(forged: dict[str, Any]) -> None:
    outcome = await run(_Only("who"), "who", **forged)

    assert outcome.failure is not None and outcome.failure.code == "permission_denied"
    assert outcome.result == b""
