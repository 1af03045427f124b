"""One agent on record: its state, its quarantine, and who may see it."""

import httpx2
import pytest

from nexus_ray.agents.task import AgentState
from nexus_ray.api.agents import AgentRecordAnswer
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.goal import Step
from tests.api.conftest import Door, is_problem
from tests.support.records import a_goal


async def with_state(door: Door, key: str, body: bytes, schema: int = 1) -> None:
    ledger = door.fleet.ledger
    await ledger.accept([a_goal(f"goal-{key}")], "host-x")
    state = AgentState(AgentId("tally", key), 1, body, schema)
    assert await ledger.append("host-x", [Step(f"goal-{key}", "s", 1.0, b"{}", state)]) == [True]


async def test_an_agent_is_shown_with_its_state(door: Door, reader: httpx2.AsyncClient) -> None:
    await with_state(door, "a/b", b'{"n":3}')

    body = (await reader.get("/v1/agents/tally", params={"key": "a/b"})).json()

    AgentRecordAnswer.model_validate(body)
    assert (body["agent"], body["key"], body["quarantine"]) == ("tally/a/b", "a/b", None)
    assert body["state"] == {"version": 1, "schema_version": 1, "bytes": 7, "body": {"n": 3}}


@pytest.mark.parametrize(
    ("body", "schema", "shown"), [(b"\xffnot json", 1, "\ufffdnot json"), (b'{"n":"x"}', 1, {"n": "x"}), (b"{}", 9, {})]
)
async def test_a_state_that_cannot_be_read_is_shown_with_the_reason(
    door: Door, reader: httpx2.AsyncClient, body: bytes, schema: int, shown: object
) -> None:
    await with_state(door, "k", body, schema)

    answer = await reader.get("/v1/agents/tally?key=k")

    assert answer.status_code == 200 and answer.json()["state"]["body"] == shown
    assert "quarantined" in answer.json()["quarantine"]


async def test_every_key_of_a_type_exists_and_no_other_type_does(reader: httpx2.AsyncClient) -> None:
    fresh = (await reader.get("/v1/agents/tally?key=never-asked")).json()
    stateless = (await reader.get("/v1/agents/doubler")).json()

    assert (fresh["is_durable"], fresh["state"]) == (True, None)
    assert (stateless["is_durable"], stateless["state"]) == (False, None)
    is_problem(await reader.get("/v1/agents/nosuch"), 404, "not_found")
    is_problem(await reader.get("/v1/agents/No Such"), 422, "invalid_argument")
    is_problem(await reader.get("/v1/agents/tally?key=%07"), 422, "invalid_argument")


async def test_who_may_not_read_agents_does_not_see_one(door: Door) -> None:
    async with door.client("nobody") as client:
        is_problem(await client.get("/v1/agents/tally?key=k"), 403, "permission_denied")
    async with door.client() as client:
        is_problem(await client.get("/v1/agents/tally?key=k"), 401, "unauthenticated")
