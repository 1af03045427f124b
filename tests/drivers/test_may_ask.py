"""Which agents a goal may ask: those that its submitter may, and whoever runs the agent looks for himself."""

from typing import Any

import orjson
import pytest

import nexus_ray as nexus
from nexus_ray.agents.task import TaskOrder
from nexus_ray.audit.auditor import Scene, arrive, source_of_request
from nexus_ray.config import Settings
from nexus_ray.core.clock import ManualClock, SystemClock
from nexus_ray.core.context import CallContext, ContextSeal
from nexus_ray.core.errors import NexusError, PermissionDeniedError, TaskFailedError
from nexus_ray.core.identity import AgentId, Session
from nexus_ray.goals.rights import Rights
from nexus_ray.goals.saga import SagaStep
from nexus_ray.goals.spec import Specs
from nexus_ray.goals.strategies import Call
from nexus_ray.ledger.goal import Goal, Outcome
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.runtime.intake import SubmitRequest, build_goal
from nexus_ray.security.authz import Authorizer
from nexus_ray.security.policy import parse_policy
from nexus_ray.security.rego_engine import RegoEngine
from tests.support.in_process import InProcessFleet

SEAL = ContextSeal(b"k" * 32)
ADA = Session("s", "ada", "idp", ("sender",), 9e9, tenant="acme")
HANDLED: list[str] = []


class _Counted(Authorizer):
    """Counts the decisions that it is asked for."""

    asked = 0

    def authorize(self, session: Session, action: str, resource: str = "") -> None:
        self.asked += 1
        super().authorize(session, action, resource)


def make_app() -> nexus.App:
    app = nexus.App("asks")

    @app.agent
    class Reader(nexus.Agent):
        async def handle(self, payload: Any) -> Any:
            HANDLED.append("reader")
            return payload

    @app.agent(retries=3)
    class Writer(nexus.Agent):
        async def handle(self, payload: Any) -> Any:
            HANDLED.append("writer")
            return payload

    @app.agent(scope="fleet", retries=3)
    class Clerk(nexus.Agent):
        async def handle(self, payload: Any) -> None:
            HANDLED.append("clerk")

    @app.goal
    async def tell_many(request: int, team: nexus.Team) -> Any:
        answers = await team.fan_out("clerk", list(range(request)), return_errors=True)
        return [one.details["failed_with"] if isinstance(one, TaskFailedError) else one for one in answers]

    @app.goal
    async def write(request: Any, team: nexus.Team) -> Any:
        return await team.ask("writer", request)

    @app.goal
    async def catch(request: Any, team: nexus.Team) -> Any:
        try:
            return await team.ask("writer", request)
        except PermissionDeniedError:
            return await team.ask("reader", "instead")

    @app.goal
    async def read_many(request: int, team: nexus.Team) -> Any:
        return sum(await team.fan_out("reader", list(range(request))))

    @app.goal
    async def more_than_allowed(request: str, team: nexus.Team) -> Any:
        if request == "race":
            return await team.race([Call("writer", 1), Call("reader", 2)])
        if request == "pipeline":
            return await team.pipeline(1, "reader", "writer")
        if request == "saga":
            return await team.saga([SagaStep(Call("reader", 1), Call("writer", -1))])
        if request == "concurrent":
            return await team.fan_out("writer", [1, 2, 3], concurrency=2)
        return [str(type(one).__name__) for one in await team.fan_out("writer", [1, 2], return_errors=True)]

    return app


async def run(grants: list[str], type: str, payload: Any = None) -> tuple[Outcome, _Counted]:
    HANDLED.clear()
    app, settings, ledger = make_app(), Settings(), MemoryLedger()
    authorizer = _Counted({"sender": grants})
    fleet = InProcessFleet(app, ledger, settings, rights=Rights(SEAL, authorizer.authorize))
    fleet.add("host-0")
    fleet.publish()
    try:
        goal = make_goal(app, type, payload)
        await ledger.accept([goal])
        await fleet.poke([goal])
        return await fleet.outcome(goal), authorizer
    finally:
        await fleet.hosts_by_name["host-0"].close()


def make_goal(app: nexus.App, type: str, payload: Any = None) -> Goal:
    request = SubmitRequest(type, orjson.dumps(payload), 10.0)
    return build_goal(request, ADA, Specs(app.agents, app.goals), Settings().goals, SystemClock().now(), "", SEAL)


async def test_a_goal_asks_what_its_submitter_may_ask() -> None:
    outcome, _ = await run(["agent:ask writer"], "write", 7)

    assert outcome.result == b"7" and HANDLED == ["writer"]


@pytest.mark.parametrize("grants", [["goal:submit"], ["agent:ask reader"], ["agent:ask writers"], ["agent:read"], []])
async def test_what_its_submitter_may_not_ask_fails_the_goal_and_is_not_tried_again(grants: list[str]) -> None:
    outcome, authorizer = await run(grants, "write", 7)

    assert outcome.failure is not None and outcome.failure.code == "permission_denied"
    assert outcome.failure.message == "permission denied: ada may not do agent:ask on writer"
    assert HANDLED == [] and authorizer.asked == 1


async def test_a_goal_can_catch_that_it_was_refused() -> None:
    outcome, _ = await run(["agent:ask reader"], "catch", 7)

    assert outcome.result == b'"instead"' and HANDLED == ["reader"]


async def test_a_fan_out_costs_one_decision() -> None:
    outcome, authorizer = await run(["agent:*"], "read_many", 32)

    assert outcome.result == b"496" and len(HANDLED) == 32
    assert authorizer.asked == 1


@pytest.mark.parametrize(
    ("strategy", "result", "handled"),
    [("race", b"2", ["reader"]), ("fan_out", b'["PermissionDeniedError","PermissionDeniedError"]', [])],
)
async def test_a_strategy_that_takes_failures_takes_a_refusal_as_one(
    strategy: str, result: bytes, handled: list[str]
) -> None:
    outcome, _ = await run(["agent:ask reader"], "more_than_allowed", strategy)

    assert outcome.result == result and handled == HANDLED


@pytest.mark.parametrize(("strategy", "handled"), [("pipeline", ["reader"]), ("concurrent", []), ("saga", [])])
async def test_a_strategy_that_asks_for_more_than_its_submitter_has_fails(strategy: str, handled: list[str]) -> None:
    outcome, _ = await run(["agent:ask reader"], "more_than_allowed", strategy)

    assert outcome.failure is not None and outcome.failure.code == "permission_denied"
    assert handled == HANDLED  # Of a saga nothing: an action that could not be undone is not begun.


# --- The host that runs the agent, whoever brought the order.


async def order_at_host(rights: Rights, order: TaskOrder) -> Any:
    HANDLED.clear()
    fleet = InProcessFleet(make_app(), MemoryLedger(), Settings(), rights=rights)
    host = fleet.add("host-0")
    fleet.publish()
    try:
        return await host.runner.run(order, is_local=False)
    finally:
        await host.close()


def make_order(goal: Goal, agent: str = "reader", **headers: str) -> TaskOrder:
    return TaskOrder(goal.id, "step-1", AgentId(agent, "a").of("acme"), b"1", {**goal.headers, **headers}, 9e9)


async def test_a_host_runs_an_agent_for_whom_the_sealed_context_names() -> None:
    goal = make_goal(make_app(), "write")
    rights = Rights(SEAL, Authorizer({"sender": ["agent:ask reader"]}).authorize)

    let, kept = await order_at_host(rights, make_order(goal)), list(HANDLED)
    refused = await order_at_host(rights, make_order(goal, "writer"))

    assert let.failure is None and kept == ["reader"]
    assert refused.failure.code == "permission_denied" and refused.attempts == 0 and HANDLED == []


@pytest.mark.parametrize(
    "forged",
    [{"roles": "admin"}, {"principal": "root"}, {"tenant": "main"}, {"seal": ""}, {"seal": "0" * 64},
     {"deadline": "9e9"}, {"session": "another"}],
)  # fmt: skip
@pytest.mark.parametrize("is_known", [False, True])
async def test_a_host_believes_no_header_that_is_not_sealed(forged: dict[str, str], is_known: bool) -> None:
    goal = make_goal(make_app(), "write")
    rights = Rights(SEAL, Authorizer({"sender": ["agent:ask"], "admin": ["agent:ask"]}).authorize)
    if is_known:  # Nor where the goal's own context was seen here a moment ago.
        rights.admit(make_order(goal))

    result = await order_at_host(rights, make_order(goal, **forged))

    assert result.failure is not None and result.failure.code == "permission_denied"
    assert HANDLED == []


async def test_what_one_host_plans_and_may_not_another_refuses_to_run() -> None:
    app, ledger = make_app(), MemoryLedger()
    fleet = InProcessFleet(app, ledger, Settings(), rights=Rights(SEAL, lambda *_: None))  # Plans whatever it is told.
    planning = fleet.add("host-0")
    authorizer = _Counted({"sender": ["goal:submit"]})
    fleet.rights = Rights(SEAL, authorizer.authorize)
    fleet.add("host-1")
    fleet.publish()
    HANDLED.clear()
    try:
        ((_, outcome),) = await planning.coordinator.accept_and_run([make_goal(app, "tell_many", 32)])
        assert outcome is not None
        told = orjson.loads((await outcome).result)
    finally:
        for host in fleet.hosts_by_name.values():
            await host.close()

    refused = [one for one in told if one is not None]
    assert set(refused) == {"permission_denied"} and 0 < len(refused) < 32
    assert len(HANDLED) == 32 - len(refused) and authorizer.asked == len(refused)  # None was tried a second time.


def test_a_context_of_another_goal_or_without_a_field_opens_nothing() -> None:
    goal, other = make_goal(make_app(), "write"), make_goal(make_app(), "write")
    rights = Rights(SEAL, Authorizer({"sender": ["agent:ask"]}).authorize)

    rights.admit(make_order(goal)._replace(headers={**goal.headers, "traceparent": "00-another"}))
    for order in (make_order(goal)._replace(goal_id=other.id), make_order(goal)._replace(headers={})):
        with pytest.raises(PermissionDeniedError):
            rights.admit(order)


async def test_a_role_that_holds_somewhere_only_holds_for_goals_that_were_submitted_there() -> None:
    office = {"grants": ["goal:submit", "agent:ask"], "sources": ["10.0.0.0/8"]}
    authorizer = Authorizer({}, engine=RegoEngine(parse_policy({"roles": {"sender": office}})))
    rights = Rights(SEAL, authorizer.authorize)
    arrive(Scene("10.1.2.3"))
    inside = make_goal(make_app(), "write")
    arrive(Scene("192.0.2.1"))
    outside = make_goal(make_app(), "write")

    rights.admit(make_order(inside))
    assert source_of_request() == "192.0.2.1"  # What is decided in the goal's place changes nothing around it.
    for order in (make_order(outside), make_order(outside, source="10.1.2.3"), make_order(inside, source="10.9.9.9")):
        with pytest.raises(PermissionDeniedError):
            rights.admit(order)
    bare = {name: value for name, value in inside.headers.items() if name != "source"}
    with pytest.raises(PermissionDeniedError, match="not the fleet's"):
        rights.admit(make_order(inside)._replace(headers=bare))


def test_a_right_that_was_taken_away_is_gone_within_seconds() -> None:
    clock = ManualClock()
    grants: list[str] = ["agent:ask reader"]

    def authorize(session: Session, action: str, resource: str) -> None:
        if f"{action} {resource}" not in grants:
            raise PermissionDeniedError("not allowed", action=action, resource=resource)

    goal = make_goal(make_app(), "write")
    rights = Rights(SEAL, authorize, clock)
    rights.admit(make_order(goal))
    grants.clear()

    rights.admit(make_order(goal))
    clock.advance(5.1)

    with pytest.raises(NexusError, match="agent:ask on reader"):
        rights.admit(make_order(goal))


def test_a_goal_acts_on_after_its_deadline_for_what_undoes_a_saga_comes_then() -> None:
    goal = make_goal(make_app(), "write")
    late = CallContext.from_headers({**goal.headers, "deadline": "1.0"})
    headers = SEAL.sealed(late.to_headers(), goal.id)
    rights = Rights(SEAL, Authorizer({"sender": ["agent:ask"]}).authorize)

    rights.admit(make_order(goal)._replace(headers=headers))
    with pytest.raises(PermissionDeniedError):
        rights.admit(make_order(goal)._replace(headers={**headers, "deadline": "2.0"}))
