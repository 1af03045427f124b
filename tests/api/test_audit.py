"""What the front door writes down, before it says yes and whenever it says no; and who may read it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import orjson
import pytest

from nexus_ray.audit.limits import AuditSettings
from nexus_ray.audit.ports import RecordQuery
from nexus_ray.audit.record import Entry
from nexus_ray.audit.verify_export import read_key, verify_export, verify_receipt
from nexus_ray.core.errors import UnavailableError
from tests.api.conftest import Door, is_problem, submit


async def written(door: Door, *, log_ins: bool = False, **wanted: Any) -> list[dict[str, Any]]:
    await door.front._auditor.flush()
    query = RecordQuery(is_oldest_first=True, **wanted)
    found = [record.fields for record in await door.front._auditor.log.records(query)]
    return [one for one in found if (one["action"], one["decision"]) != ("session:authenticate", "allow") or log_ins]


async def test_a_goal_is_written_down_before_it_is_acknowledged_and_its_outcome_after(
    door: Door, operator: httpx2.AsyncClient
) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    response = await submit(operator, traceparent=traceparent)
    on_disk = await door.front._auditor.log.records(RecordQuery())
    intent, outcome = await written(door)

    assert [record.fields["action"] for record in on_disk] == ["goal:submit", "session:authenticate"]
    assert on_disk[0].fields == intent
    assert intent == {
        "v": 1, "seq": 1, "previous": intent["previous"], "operation": intent["operation"], "kind": "intent",
        "at": intent["at"], "retention": "change", "action": "goal:submit", "resource": "double", "principal": "ada",
        "tenant": "main", "session": intent["session"], "source": "127.0.0.1", "decision": "allow",
        "goal": response.json()["id"], "trace": traceparent[3:35], "request": intent["request"],
        "facts": {"payload_sha256": intent["facts"]["payload_sha256"]},
    }  # fmt: skip
    assert (outcome["operation"], outcome["kind"], outcome["outcome"]) == (intent["operation"], "outcome", "ok")
    assert outcome["facts"] == {**intent["facts"], "is_new": True}


async def test_a_batch_writes_a_pair_for_each_goal_and_one_request_joins_them(
    door: Door, operator: httpx2.AsyncClient
) -> None:
    lines = b"".join(orjson.dumps({"type": kind, "payload": {"n": 1}}) + b"\n" for kind in ("double", "no", "double"))

    await operator.post("/v1/goals:batch", content=lines, headers={"content-type": "application/x-ndjson"})

    found = await written(door)
    assert [record["kind"] for record in found] == ["intent", "intent", "outcome", "outcome"]
    assert len({record["request"] for record in found}) == 1 and len({record["goal"] for record in found}) == 2


async def test_the_same_key_twice_says_that_the_second_was_nothing_new(
    door: Door, operator: httpx2.AsyncClient
) -> None:
    first = await submit(operator, **{"idempotency-key": "k"})
    await submit(operator, **{"idempotency-key": "k"})

    outcomes = [record for record in await written(door, goal=first.json()["id"]) if record["kind"] == "outcome"]
    assert [record["facts"]["is_new"] for record in outcomes] == [True, False]


async def test_who_comes_in_is_written_down_once_a_session_with_how_and_from_where(door: Door) -> None:
    async with door.client("reader") as ada, door.client("reader", name="bob") as bob:
        for client in (ada, bob, ada):
            await client.get("/v1/goals")

    found = await written(door, log_ins=True, action="session:authenticate")
    assert [(one["principal"], one["outcome"], one["source"]) for one in found] == [
        ("ada", "ok", "127.0.0.1"), ("bob", "ok", "127.0.0.1"),
    ]  # fmt: skip
    assert len({one["session"] for one in found}) == 2 and {one["retention"] for one in found} == {"access"}
    assert found[0]["facts"] == {"issuer": "nexus-local", "method": "token"}


async def test_what_changes_something_is_a_pair_on_disk_when_it_is_acknowledged(
    door: Door, operator: httpx2.AsyncClient
) -> None:
    goal_id = (await submit(operator, "forever")).json()["id"]

    await operator.post(f"/v1/goals/{goal_id}/cancel")
    await operator.post("/v1/hosts/host-0/drain")
    await operator.post("/v1/hosts/host-9/drain")

    log = door.front._auditor.log
    for action, outcomes in (("goal:cancel", ["ok"]), ("host:drain", ["ok", "not_found"])):
        if action == "host:drain":
            await door.front._auditor.flush()
        found = [record.fields for record in await log.records(RecordQuery(action=action, is_oldest_first=True))]
        assert [record.get("outcome") for record in found if record["kind"] == "outcome"] == outcomes
        assert len(found) == 2 * len(outcomes)
    assert found[0]["retention"] == "administration"
    assert await log.records(RecordQuery(is_open=True)) == []


async def test_refusals_are_written_down_and_equal_ones_are_one_record_with_a_count(door: Door) -> None:
    async with door.client() as stranger, door.client("reader") as reader:
        for _ in range(5):
            assert (await stranger.get("/v1/goals")).status_code == 401
        for _ in range(3):
            assert (await submit(reader)).status_code == 403

    found = await written(door)
    assert [(one["action"], one["outcome"], one["reason"], one["facts"]) for one in found] == [
        ("session:authenticate", "unauthenticated", "missing", {"count": 5}),
        ("goal:submit", "permission_denied", found[1]["reason"], {"count": 3}),
    ]
    assert all(one["decision"] == "deny" and one["retention"] == "access" for one in found)
    assert "principal" not in found[0] and found[1]["principal"] == "ada"


async def test_a_flood_of_refusals_is_a_bounded_number_of_records(doors: Callable[..., Door]) -> None:
    door = doors(audit=AuditSettings(refusals_max=2))
    async with door.client("reader") as reader:
        for n in range(6):
            await reader.post(f"/v1/goals/goal-{n}/cancel")

    found = await written(door)
    assert [one["action"] for one in found] == ["goal:cancel", "goal:cancel", "audit:overflow"]
    assert found[2]["facts"] == {"count": 4}


async def test_nothing_is_acknowledged_that_cannot_be_written_down_and_then_nothing_more_is_begun(
    door: Door, operator: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = door.front._auditor.log

    async def fails(*_: Any) -> Any:
        raise UnavailableError("the disk is full")

    monkeypatch.setattr(log, "_call", fails)

    is_problem(await submit(operator), 503, "unavailable")
    before = len(await door.fleet.ledger.unfinished("", 100))
    is_problem(await submit(operator), 503, "unavailable")
    is_problem(await operator.post("/v1/hosts/host-0/drain"), 503, "unavailable")

    assert len(await door.fleet.ledger.unfinished("", 100)) <= before and door.fleet.drained == set()
    monkeypatch.undo()
    assert (await submit(operator)).status_code == 202


async def test_the_intent_of_a_goal_whose_door_died_is_written_from_its_record_by_the_next(
    doors: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    dying, auditor = doors(), doors().front._auditor
    auditor.answer_s_max = 0.02
    async with dying.client("operator") as client:
        whole = (await submit(client, "nested")).json()["id"]

        async def dies(entries: Sequence[Entry]) -> list[int]:
            raise UnavailableError("killed")

        monkeypatch.setattr(auditor, "append", dies)
        is_problem(await submit(client, "echo", traceparent=f"00-{'a' * 32}-{'b' * 16}-01"), 503, "unavailable")
        monkeypatch.undo()
    auditor._noted.clear()
    async with doors().client("reader", name="bob") as next_one:
        for _ in range(200):
            found = [one for one in await written(dying, action="goal:submit") if one["kind"] == "intent"]
            if len(found) > 1:
                break
            await next_one.get("/v1/goals")
            await asyncio.sleep(0.01)

    # One for each that came in by a door: none twice, and none for a goal of a goal.
    assert [one["goal"] for one in found] == [whole, found[1]["goal"]]
    assert found[0]["facts"].keys() == {"payload_sha256"}
    goal = await dying.fleet.ledger.goal(found[1]["goal"])
    assert goal is not None and found[1]["facts"] == {**found[1]["facts"], "is_mended": True}
    told = {"principal": "ada", "tenant": "main", "source": "127.0.0.1", "resource": "echo", "trace": "a" * 32,
            "session": found[0]["session"], "operation": goal.goal.id, "request": goal.goal.id}  # fmt: skip
    assert told.items() <= found[1].items()
    assert found[1]["at"] == pytest.approx(goal.goal.accepted_at, abs=1e-6)


async def test_names_and_addresses_are_not_in_clear_where_that_is_not_wanted(doors: Callable[..., Door]) -> None:
    door = doors(audit=AuditSettings(hash_sources=True, hash_principals=True))
    async with door.client("operator") as operator, door.client("operator", name="bob") as bob:
        await submit(operator)
        await submit(bob)
        found = await written(door)
        looked_for = (await operator.get("/v1/audit?principal=bob")).json()["records"]

    assert all(one["source"].startswith("hmac-") and one["principal"].startswith("hmac-") for one in found)
    assert len({one["source"] for one in found}) == 1 and len({one["principal"] for one in found}) == 2
    assert "'ada'" not in str(found) and "'bob'" not in str(found) and "127.0.0.1" not in str(found)
    assert {one["principal"] for one in looked_for} == {found[-1]["principal"]}


async def test_records_are_listed_by_what_they_say(door: Door, operator: httpx2.AsyncClient) -> None:
    goal_id = (await submit(operator)).json()["id"]
    await asyncio.gather(*(submit(operator) for _ in range(3)))

    page = (await operator.get("/v1/audit?limit=3")).json()
    rest = (await operator.get(f"/v1/audit?limit=200&before={page['next']}")).json()

    assert [one["seq"] for one in page["records"] + rest["records"]] == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert rest["next"] is None
    of_goal = (await operator.get(f"/v1/audit?goal={goal_id}")).json()["records"]
    assert [one["goal"] for one in of_goal] == [goal_id] * 2
    assert (await operator.get("/v1/audit?decision=deny")).json()["records"] == []
    assert (await operator.get("/v1/audit?open=true")).json()["records"] == []
    is_problem(await operator.get("/v1/audit?limit=0"), 422, "invalid_argument")


async def test_an_accepted_goal_has_a_receipt_that_stands_alone(door: Door, operator: httpx2.AsyncClient) -> None:
    goal_id = (await submit(operator)).json()["id"]

    given = (await operator.get(f"/v1/goals/{goal_id}/receipt")).json()
    key = read_key((await operator.get("/v1/audit/checkpoint")).json()["key"])

    assert verify_receipt(given, key) == []
    record = orjson.loads(given["record"])
    assert (record["goal"], record["outcome"], record["principal"]) == (goal_id, "ok", "ada")
    assert verify_receipt({**given, "record": given["record"].replace("ada", "eve")}, key) != []
    is_problem(await operator.get("/v1/goals/goal-none/receipt"), 404, "not_found")
    async with door.client("auditor") as auditor:
        shown = (await auditor.get(f"/v1/audit/{record['seq']}")).json()
        assert shown == {"record": record, "receipt": given}
        is_problem(await auditor.get("/v1/audit/99"), 404, "not_found")


async def test_an_export_is_the_whole_log_and_verifies(door: Door, operator: httpx2.AsyncClient) -> None:
    await submit(operator)
    async with door.client("auditor") as auditor:
        early = (await auditor.get("/v1/audit/checkpoint")).json()
        await submit(operator)
        response = await auditor.get("/v1/audit/export")
        proof = (await auditor.get("/v1/audit/consistency?size=1")).json()

    report = verify_export(response.content.splitlines(), read_key(early["key"]), [early["checkpoint"]])
    assert report.findings == [] and report.records >= 3
    assert proof["path"] and proof["checkpoint"].startswith(early["checkpoint"].partition("\n")[0])


async def test_what_is_held_is_kept_and_only_who_may_hold_does(door: Door, operator: httpx2.AsyncClient) -> None:
    wanted = {"field": "principal", "value": "ada", "reason": "a letter of the court"}
    async with door.client("auditor") as auditor:
        placed = await auditor.put("/v1/audit/holds/case-7", json=wanted)
        again = await auditor.put("/v1/audit/holds/case-7", json=wanted)
        listed = (await auditor.get("/v1/audit/holds")).json()
        wrong = await auditor.put("/v1/audit/holds/case-8", json={**wanted, "field": "seq"})
        released = await auditor.delete("/v1/audit/holds/case-7")
        gone = await auditor.delete("/v1/audit/holds/case-7")

    assert placed.status_code == 200 and listed["holds"] == [placed.json()] and released.status_code == 200
    is_problem(again, 409, "already_exists")
    is_problem(wrong, 422, "invalid_argument")
    is_problem(gone, 404, "not_found")
    assert [one["action"] for one in await written(door)] == ["audit:hold", "audit:release"]


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/v1/audit"), ("GET", "/v1/audit/0"), ("GET", "/v1/audit/export"), ("GET", "/v1/audit/checkpoint"),
    ("GET", "/v1/audit/consistency?size=1"), ("GET", "/v1/audit/holds"), ("PUT", "/v1/audit/holds/x"),
    ("DELETE", "/v1/audit/holds/x"),
])  # fmt: skip
async def test_who_may_not_read_the_log_is_refused(door: Door, method: str, path: str) -> None:
    body = {"field": "goal", "value": "goal-1", "reason": ""}
    async with door.client("approver") as client:
        response = await client.request(method, path, json=body if method == "PUT" else None)

    is_problem(response, 403, "permission_denied")


async def test_who_revokes_a_session_or_suspends_somebody_is_written_down(
    door: Door, operator: httpx2.AsyncClient
) -> None:
    session = await door.front.identify(door.token("operator"))

    await door.front.access.suspend(session, "bob")
    await door.front.access.restore(session, "bob")
    await door.front.access.revoke(session, "token-1")

    found = [one for one in await written(door) if one["kind"] == "outcome"]
    assert [(one["action"], one["resource"], one["outcome"]) for one in found] == [
        ("identity:suspend", "bob", "ok"), ("identity:restore", "bob", "ok"), ("session:revoke", "token-1", "ok"),
    ]  # fmt: skip
    assert {one["retention"] for one in found} == {"administration"}
