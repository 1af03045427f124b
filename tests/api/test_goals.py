import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from nexus_ray.api.schemas import GoalAnswer, GoalsAnswer, GoalTypesAnswer, JournalAnswer
from nexus_ray.config import RuntimeSettings
from nexus_ray.ledger.goal import GoalQuery
from nexus_ray.observe.traces import is_traceparent
from tests.api.conftest import Door, is_problem, submit

WAIT = {"Prefer": "wait=5"}


async def test_a_goal_is_accepted_with_its_place_and_then_followed_to_its_result(operator: httpx2.AsyncClient) -> None:
    accepted = await submit(operator)

    assert accepted.status_code == 202
    assert accepted.headers["location"] == f"/v1/goals/{accepted.json()['id']}"
    assert accepted.json()["status"] in ("accepted", "running")
    assert accepted.json()["principal"] == "ada"

    ended = await operator.get(accepted.headers["location"], params={"wait": 5})

    assert ended.status_code == 200
    GoalAnswer.model_validate_json(ended.content)
    assert (ended.json()["status"], ended.json()["result"]) == ("succeeded", 42)


async def test_the_same_key_gives_the_same_goal_and_another_body_is_refused(operator: httpx2.AsyncClient) -> None:
    first = await submit(operator, **{"Idempotency-Key": "k1"})

    again = await submit(operator, **{"Idempotency-Key": "k1"})
    other = await submit(operator, payload={"n": 1}, **{"Idempotency-Key": "k1"})
    free = await submit(operator, payload={"n": 1}, **{"Idempotency-Key": "k2"})

    assert (first.status_code, again.status_code, free.status_code) == (202, 200, 202)
    assert again.json()["id"] == first.json()["id"] != free.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    is_problem(other, 409, "already_exists")


async def test_a_key_looks_at_what_a_body_says_and_not_at_how_it_is_written(operator: httpx2.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    bodies = [
        b'{"type":"echo","payload":{"a":1,"b":[1,2]}}',
        b'{ "payload" : {"b":[1, 2], "a":1}, "type": "echo" }',
    ]

    first, again = [await operator.post("/v1/goals", content=body, headers=headers) for body in bodies]

    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]


@pytest.mark.parametrize(
    "traceparent",
    ["x", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "g" * 32 + "-" + "1" * 16 + "-01", "0" * 10_000, "00---"],
)
async def test_a_malformed_trace_context_is_replaced_and_not_passed_on(
    door: Door, operator: httpx2.AsyncClient, traceparent: str
) -> None:
    goal_id = (await submit(operator, traceparent=traceparent)).json()["id"]

    record = await door.fleet.ledger.goal(goal_id)

    assert record is not None
    assert is_traceparent(record.goal.headers["traceparent"])
    assert record.goal.headers["traceparent"] != traceparent


async def test_a_trace_context_is_taken_up(door: Door, operator: httpx2.AsyncClient) -> None:
    traceparent = "00-" + "a" * 32 + "-" + "b" * 16 + "-00"

    goal_id = (await submit(operator, traceparent=traceparent)).json()["id"]
    record = await door.fleet.ledger.goal(goal_id)

    assert record is not None
    assert record.goal.headers["traceparent"].startswith("00-" + "a" * 32)


@pytest.mark.parametrize("text", ["\x00", "\ufffd", "'; DROP TABLE goals; --", "%", "\u202e", "x" * 400])
@pytest.mark.parametrize("field", ["parent", "before"])
async def test_odd_text_in_a_query_is_looked_for_and_not_found(
    operator: httpx2.AsyncClient, field: str, text: str
) -> None:
    await submit(operator)

    response = await operator.get("/v1/goals", params={field: text})

    assert response.status_code == 200
    if field == "parent":
        assert response.json() == {"goals": [], "next": None}


async def test_a_journal_after_the_largest_number_is_empty(operator: httpx2.AsyncClient) -> None:
    place = (await submit(operator, **WAIT)).headers["location"]

    assert (await operator.get(f"{place}/journal", params={"after": 2**63 - 1})).json() == {"entries": []}
    assert (await operator.get(f"{place}/events", params={"after": 2**63 - 1})).text == ""
    is_problem(await operator.get(f"{place}/journal", params={"after": 2**63}), 422, "invalid_argument")


async def test_a_key_belongs_to_whoever_used_it(door: Door) -> None:
    async with door.client("operator") as ada, door.client("operator") as same, door.client("operator", name="b") as b:
        first, again, other = [await submit(client, **{"Idempotency-Key": "k"}) for client in (ada, same, b)]

    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    assert (first.status_code, again.status_code, other.status_code) == (202, 200, 202)


@pytest.mark.parametrize("key", ["x" * 201, "a\tb", "é" * 201])
async def test_a_malformed_key_is_refused(operator: httpx2.AsyncClient, key: str) -> None:
    response = await operator.post(
        "/v1/goals", json={"type": "double"}, headers=[(b"Idempotency-Key", key.encode("latin-1"))]
    )

    is_problem(response, 422, "invalid_argument")


async def test_a_key_cannot_add_headers_to_the_answer(operator: httpx2.AsyncClient) -> None:
    response = await operator.post(
        "/v1/goals", json={"type": "double"}, headers=[(b"Idempotency-Key", b"a\r\nSet-Cookie: x=1")]
    )

    is_problem(response, 422, "invalid_argument")
    assert "set-cookie" not in response.headers


async def test_prefer_wait_holds_the_answer_back_until_the_end(operator: httpx2.AsyncClient) -> None:
    response = await submit(operator, **WAIT)

    assert response.status_code == 200
    assert response.json()["result"] == 42
    assert response.headers["preference-applied"] == "wait=5"


async def test_a_wait_is_capped_and_says_so(doors: Callable[..., Door]) -> None:
    async with doors(runtime=RuntimeSettings(wait_s_max=0.05)).client("operator") as client:
        response = await submit(client, "forever", **{"Prefer": "respond-async, wait=86400; strict"})

        assert response.status_code == 202
        assert response.headers["preference-applied"] == "wait=0.05"
        is_problem(await client.get(response.headers["location"], params={"wait": 1}), 422, "invalid_argument")


@pytest.mark.parametrize("prefer", ["wait", "wait=", "wait=soon", "wait=nan", "wait=inf", "wait=-1", "return=minimal"])
async def test_a_preference_that_makes_no_sense_is_ignored(operator: httpx2.AsyncClient, prefer: str) -> None:
    response = await submit(operator, "forever", **{"Prefer": prefer})

    assert response.status_code == 202
    assert "preference-applied" not in response.headers


@pytest.mark.parametrize("wait", ["-1", "nan", "inf", "soon", "5.1"])
async def test_a_wait_out_of_range_is_refused(operator: httpx2.AsyncClient, wait: str) -> None:
    place = (await submit(operator)).headers["location"]

    problem = is_problem(await operator.get(place, params={"wait": wait}), 422, "invalid_argument")

    assert problem["errors"][0]["field"] == "query.wait"


async def test_a_failed_goal_tells_what_failed(operator: httpx2.AsyncClient) -> None:
    record = (await submit(operator, "broken", **WAIT)).json()

    GoalAnswer.model_validate(record)
    assert record["status"] == "failed"
    assert record["failure"]["error_type"] == "ValueError"
    assert "result" not in record


async def test_a_deadline_that_passes_expires_the_goal(operator: httpx2.AsyncClient) -> None:
    response = await operator.post("/v1/goals", json={"type": "forever", "timeout_s": 0.05}, headers=WAIT)

    assert response.json()["status"] == "expired"


@pytest.mark.parametrize("timeout_s", [0, -1, 1e12, "soon"])
async def test_a_deadline_that_has_passed_or_never_comes_is_refused_and_nothing_is_accepted(
    door: Door, operator: httpx2.AsyncClient, timeout_s: Any
) -> None:
    response = await operator.post("/v1/goals", json={"type": "double", "timeout_s": timeout_s})

    problem = is_problem(response, 422, "invalid_argument")
    assert problem["errors"][0]["field"] == "timeout_s"
    assert await door.fleet.ledger.goals(GoalQuery()) == []


async def test_goals_are_listed_newest_first_by_pages_and_filters(operator: httpx2.AsyncClient) -> None:
    ids = [(await submit(operator, **WAIT)).json()["id"] for _ in range(5)]
    running = (await submit(operator, "forever")).json()["id"]

    pages: list[list[str]] = []
    before: str | None = ""
    while before is not None and len(pages) < 9:
        page = (await operator.get("/v1/goals", params={"limit": 2, "before": before})).json()
        GoalsAnswer.model_validate(page)
        pages.append([goal["id"] for goal in page["goals"]])
        before = page["next"]

    assert [goal for page in pages for goal in page] == sorted([*ids, running], reverse=True)
    assert all(len(page) <= 2 for page in pages)

    async def listed(**query: str) -> set[str]:
        return {goal["id"] for goal in (await operator.get("/v1/goals", params=query)).json()["goals"]}

    assert await listed(status="succeeded") == set(ids)
    assert await listed(type="forever") == {running}
    assert await listed(type="forever", status="succeeded") == set()
    assert await listed(parent=running) == set()


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"status": "lost"}, "query.status"),
        ({"limit": "0"}, "query.limit"),
        ({"limit": "201"}, "query.limit"),
        ({"limit": "9" * 30}, "query.limit"),
        ({"before": "x" * 401}, "query.before"),
        ({"type": "x" * 64}, "query.type"),
    ],
)
async def test_a_query_that_does_not_fit_is_refused_by_name(
    operator: httpx2.AsyncClient, query: dict[str, str], field: str
) -> None:
    problem = is_problem(await operator.get("/v1/goals", params=query), 422, "invalid_argument")

    assert problem["errors"][0]["field"] == field


def events_of(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "data" in lines:
            body = json.loads(lines["data"])
            assert (lines["id"], lines["event"]) == (str(body["seq"]), body["kind"])
            found.append(body)
    return found


async def test_events_come_once_each_in_order_and_end_after_the_end(operator: httpx2.AsyncClient) -> None:
    place = (await submit(operator)).headers["location"]

    response = await operator.get(f"{place}/events")

    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    seqs = [event["seq"] for event in events]
    assert seqs == sorted(set(seqs))
    assert [events[0]["kind"], events[-1]["kind"]] == ["accepted", "finished"]
    assert {"claimed", "step"} <= {event["kind"] for event in events}


async def test_events_are_taken_up_again_where_they_broke(operator: httpx2.AsyncClient) -> None:
    place = (await submit(operator, **WAIT)).headers["location"]
    events = events_of((await operator.get(f"{place}/events")).text)

    for at in range(len(events)):
        seen = str(events[at]["seq"])
        rest = events_of((await operator.get(f"{place}/events", headers={"Last-Event-ID": seen})).text)
        by_query = events_of((await operator.get(f"{place}/events", params={"after": seen})).text)

        assert rest == by_query == events[at + 1 :]


async def test_events_of_a_goal_under_way_arrive_while_it_runs(door: Door, operator: httpx2.AsyncClient) -> None:
    place = (await submit(operator, "forever")).headers["location"]

    follower = asyncio.create_task(operator.get(f"{place}/events"))
    while (await operator.get(place)).json()["status"] != "running":
        await asyncio.sleep(0)
    await operator.post(f"{place}/cancel")
    kinds = [event["kind"] for event in events_of((await follower).text)]

    assert "cancel_requested" in kinds and kinds[-1] == "finished"


@pytest.mark.parametrize("last", ["-1", "x", "9" * 30])
async def test_a_malformed_last_event_is_refused(operator: httpx2.AsyncClient, last: str) -> None:
    place = (await submit(operator)).headers["location"]

    is_problem(await operator.get(f"{place}/events", headers={"Last-Event-ID": last}), 422, "invalid_argument")
    is_problem(await operator.get(f"{place}/journal", params={"after": last}), 422, "invalid_argument")


async def test_the_journal_tells_the_same_as_the_events_in_pages(operator: httpx2.AsyncClient) -> None:
    place = (await submit(operator, **WAIT)).headers["location"]
    events = events_of((await operator.get(f"{place}/events")).text)

    whole = (await operator.get(f"{place}/journal")).json()
    page = (await operator.get(f"{place}/journal", params={"after": events[0]["seq"], "limit": 1})).json()

    JournalAnswer.model_validate(whole)
    assert whole["entries"] == events
    assert page["entries"] == events[1:2]


async def test_a_cancel_is_accepted_once_the_goal_runs_and_refused_when_it_has_ended(
    operator: httpx2.AsyncClient,
) -> None:
    place = (await submit(operator, "forever")).headers["location"]

    asked = await operator.post(f"{place}/cancel")
    ended = await operator.get(place, params={"wait": 5})
    again = await operator.post(f"{place}/cancel")

    assert asked.status_code == 202
    assert ended.json()["status"] == "cancelled"
    assert "cancelled" in is_problem(again, 409, "failed_precondition")["detail"]


@pytest.mark.parametrize("path", ["", "/events", "/journal", "/trace"])
async def test_an_unknown_goal_is_not_found_wherever_it_is_asked_for(operator: httpx2.AsyncClient, path: str) -> None:
    is_problem(await operator.get(f"/v1/goals/goal-0{path}"), 404, "not_found")
    is_problem(await operator.post("/v1/goals/goal-0/cancel"), 404, "not_found")


@pytest.mark.parametrize("goal_id", ["%00", "%ff", "%F0%9F%8C%B5", "x" * 5000, "%0d%0aSet-Cookie:x"])
async def test_an_odd_id_is_just_an_unknown_one(operator: httpx2.AsyncClient, goal_id: str) -> None:
    response = await operator.get(f"/v1/goals/{goal_id}")

    is_problem(response, 404, "not_found")
    assert "set-cookie" not in response.headers


async def test_goal_types_tell_what_they_ask_for(reader: httpx2.AsyncClient) -> None:
    body = (await reader.get("/v1/goal-types")).json()

    GoalTypesAnswer.model_validate(body)
    by_type = {row["type"]: row for row in body["goal_types"]}
    assert {"double", "echo", "forever", "broken"} <= set(by_type)
    assert by_type["double"]["payload_schema"]["properties"]["n"]["type"] == "integer"
    assert by_type["double"]["summary"] == "Double a number."
    assert by_type["echo"]["payload_schema"] == {}


async def test_agents_and_hosts_tell_who_is_awake(operator: httpx2.AsyncClient) -> None:
    assert (await operator.get("/v1/agents")).json() == {"agents": []}
    await submit(operator, **WAIT)

    (agent,) = (await operator.get("/v1/agents")).json()["agents"]
    hosts = (await operator.get("/v1/hosts")).json()["hosts"]

    assert agent["type"] == "doubler" and agent["host"] in {host["host"] for host in hosts}
    assert sum(host["agents"].get("doubler", 0) for host in hosts) == 1
    is_problem(await operator.get("/v1/agents", params={"limit": 0}), 422, "invalid_argument")


async def test_the_spans_of_a_goal_are_a_list_even_where_nothing_was_kept(operator: httpx2.AsyncClient) -> None:
    place = (await submit(operator, **WAIT)).headers["location"]

    assert (await operator.get(f"{place}/trace")).json() == {"spans": []}
