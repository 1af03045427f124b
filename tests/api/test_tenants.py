"""Tenants: what belongs to one is for the others as if it were not there."""

import time
from typing import Any

import httpx2
import pytest

from nexus_ray.core.identity import AgentId, Session
from nexus_ray.ledger.goal import GoalQuery
from nexus_ray.runtime.intake import SubmitRequest
from tests.api.conftest import Door, is_problem


def caller(tenant: str, *roles: str, name: str = "ada") -> Session:
    return Session(f"s-{tenant}-{name}", name, "test", roles or ("operator",), time.time() + 600, tenant=tenant)


async def run(door: Door, session: Session, type: str, payload: bytes, key: str = "", wait_s: float = 5.0) -> Any:
    acceptance, _ = await door.front.submit(session, SubmitRequest(type, payload, idempotency_key=key))
    return await door.front.wait(session, acceptance.goal_id, wait_s)


def client(door: Door, session: Session) -> httpx2.AsyncClient:
    """A client whom the authenticator knows as this session."""
    made = door.client(*session.roles, name=session.principal, tenant=session.tenant)
    return made


async def test_another_tenants_goal_is_as_if_it_were_not_there(door: Door) -> None:
    record = await run(door, caller("acme"), "asks", b'{"key":"q"}', wait_s=0.0)
    goal_id = record.goal.id
    paths = [f"/v1/goals/{goal_id}", f"/v1/goals/{goal_id}?wait=1", f"/v1/goals/{goal_id}/events",
             f"/v1/goals/{goal_id}/journal", f"/v1/goals/{goal_id}/trace"]  # fmt: skip

    async with client(door, caller("rival")) as rival, client(door, caller("acme")) as own:
        for path in paths:
            missing = is_problem(await rival.get(path.replace(goal_id, "goal-none")), 404, "not_found")
            hidden = is_problem(await rival.get(path), 404, "not_found")
            assert {**hidden, "detail": ""} == {**missing, "detail": ""}
        is_problem(await rival.post(f"/v1/goals/{goal_id}/cancel"), 404, "not_found")
        answer = {"approved": True}
        is_problem(await rival.post(f"/v1/goals/{goal_id}/questions/q", json=answer), 404, "not_found")
        assert (await rival.get("/v1/goals")).json()["goals"] == []
        assert (await rival.get("/v1/goals", params={"parent": goal_id})).json()["goals"] == []
        assert (await rival.get("/v1/questions")).json()["questions"] == []

        assert (await own.get(f"/v1/goals/{goal_id}")).status_code == 200
        assert [goal["id"] for goal in (await own.get("/v1/goals")).json()["goals"]] == [goal_id]
        assert (await own.post(f"/v1/goals/{goal_id}/cancel")).status_code == 202


async def test_an_idempotency_key_of_another_tenant_names_nothing(door: Door) -> None:
    first = await run(door, caller("acme"), "echo", b'"secret"', key="k")

    second = await run(door, caller("rival"), "echo", b'"other"', key="k")

    assert second.goal.id != first.goal.id
    assert (second.goal.tenant, second.outcome.result) == ("rival", b'"other"')


async def test_agents_of_one_name_are_another_for_each_tenant(door: Door) -> None:
    await door.fleet.ledger.agent_state(AgentId("tally", "main"))
    for tenant, amount in (("acme", b"5"), ("rival", b"7"), ("main", b"1")):
        record = await run(door, caller(tenant), "count", amount)
        assert record.outcome.result == amount

    for tenant, total in (("acme", 5), ("rival", 7), ("main", 1)):
        found = await door.front.agent(caller(tenant), AgentId("tally", "main"))
        assert (found["agent"], found["state"]["body"]) == ("tally/main", {"n": total})
        awake = await door.front.agents(caller(tenant), 100)
        assert await door.front.agents(caller(tenant), 1) == awake[:1]  # Others' do not take its places on a page.
        assert [agent["agent"] for agent in awake if agent["type"] == "tally"] == ["tally/main"]
    assert (await door.front.agent(caller("other"), AgentId("tally", "main")))["state"] is None


async def test_no_key_that_a_tenant_gives_reaches_anothers_agent(door: Door) -> None:
    async with client(door, caller("main")) as main:
        crafted = str(AgentId("tally", "main").of("acme").key)
        is_problem(await main.get("/v1/agents/tally", params={"key": crafted}), 422, "invalid_argument")


async def test_a_batch_is_the_tenants_own(door: Door) -> None:
    requests = [SubmitRequest("echo", b"1"), SubmitRequest("echo", b"2")]

    accepted = await door.front.submit_batch(caller("acme"), requests)

    ids = [verdict.goal_id for verdict in accepted]  # type: ignore[union-attr]
    seen = [record async for record in door.front.outcomes(caller("rival"), ids, 0.3)]
    own = [record.goal.id async for record in door.front.outcomes(caller("acme"), ids, 5.0)]
    assert seen == []
    assert sorted(own) == sorted(ids)


async def test_an_admin_of_all_tenants_sees_all_and_nobody_else_does(door: Door) -> None:
    await run(door, caller("acme"), "echo", b"1")
    await run(door, caller("rival"), "echo", b"2")

    async def seen(session: Session) -> set[str]:
        return {record.goal.tenant for record in await door.front.goals(session, GoalQuery())}

    assert await seen(caller("*", "admin", "operator")) == {"acme", "rival"}
    assert await seen(caller("*", "operator")) == set()
    assert await seen(caller("acme", "admin", "operator")) == {"acme"}


async def test_a_tenants_operator_does_not_drain_what_is_everybodys(door: Door) -> None:
    async with client(door, caller("acme")) as acme, client(door, caller("main")) as main:
        is_problem(await acme.post("/v1/hosts/host-0/drain"), 403, "permission_denied")
        assert (await main.post("/v1/hosts/host-0/drain")).status_code == 200


@pytest.mark.parametrize("tenant", ["acme", "main"])
async def test_a_goal_of_a_goal_belongs_to_the_same_tenant(door: Door, tenant: str) -> None:
    record = await run(door, caller(tenant), "nested", b'"x"')

    children = await door.front.goals(caller(tenant), GoalQuery(parent=record.goal.id))
    assert record.outcome.result == b'"x"'
    assert [child.goal.tenant for child in children] == [tenant]
