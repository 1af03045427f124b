"""Many goals in one request: each line judged for itself, and all of them followed over one connection."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx2
import orjson
import pytest

from nexus_ray.api.schemas import GoalAnswer, Problem
from nexus_ray.config import RuntimeSettings
from nexus_ray.core.errors import PermissionDeniedError, UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.ledger.goal import Goal, GoalQuery
from nexus_ray.ledger.ports import Acceptance, Ledger
from nexus_ray.security.authz import Authorizer
from tests.api.conftest import Door, is_problem
from tests.support.in_process import InProcessFleet

PATH = "/v1/goals:batch"
NDJSON = {"Content-Type": "application/x-ndjson"}


class Counting:
    """The real ledger, and how many goals each call of `accept` brought it."""

    def __init__(self, ledger: Ledger, error: Exception | None = None) -> None:
        self._ledger = ledger
        self._error = error
        self.calls: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def accept(self, goals: Sequence[Goal], holder: str = "") -> list[Acceptance]:
        self.calls.append(len(goals))
        if self._error is not None:
            raise self._error
        return await self._ledger.accept(goals, holder)


class OnlySome(Authorizer):
    """Stands for a policy that looks at what is asked for: this one knows the goal types that may be submitted."""

    def authorize(self, session: Session, action: str, resource: str = "") -> None:
        if action == "goal:submit" and resource != "echo":
            raise PermissionDeniedError("not allowed", action=action)


def line(type: str = "echo", payload: Any = None, **fields: Any) -> bytes:
    return orjson.dumps({"type": type, "payload": payload, **fields})


async def batch(client: httpx2.AsyncClient, *lines: bytes, **headers: str) -> httpx2.Response:
    return await client.post(PATH, content=b"\n".join(lines) + b"\n", headers={**NDJSON, **headers})


def told(response: httpx2.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [orjson.loads(text) for text in response.content.splitlines()]


def refusals(lines: list[dict[str, Any]]) -> dict[int, int]:
    """Return the status of each line that was refused, by its number."""
    for one in lines:
        if "problem" in one:
            Problem.model_validate(one["problem"])
    return {one["line"]: one["problem"]["status"] for one in lines if "problem" in one}


async def stored(door: Door) -> int:
    return len(await door.fleet.ledger.goals(GoalQuery(limit=2000)))


async def test_a_batch_is_accepted_in_order_and_in_one_call_of_the_ledger(
    fleet: InProcessFleet, doors: Callable[..., Door]
) -> None:
    ledger: Any = Counting(fleet.ledger)
    door = doors(ledger=ledger)
    async with door.client("operator") as client:
        lines = told(await batch(client, *(line("echo", number) for number in range(50))))

        records = [(await client.get(f"/v1/goals/{one['id']}")).json() for one in lines]

    assert [one["line"] for one in lines] == list(range(1, 51))
    assert all(one["is_new"] for one in lines)
    assert [record["payload"] for record in records] == list(range(50))
    assert ledger.calls == [50]


async def test_each_line_is_refused_for_itself_and_the_others_are_accepted(
    door: Door, operator: httpx2.AsyncClient
) -> None:
    wrong = [
        b"{", b"", b"[]", b'{"payload":1}', line("nosuch"), line("double", {"n": "many"}), line(timeout_s=-1),
        line(extra=1), line(idempotency_key="x" * 201), line(idempotency_key=7), b"\xff",
        b'{"type":"echo","payload":NaN}',
    ]  # fmt: skip
    mixed = [one for pair in zip([line()] * len(wrong), wrong, strict=True) for one in pair]

    lines = told(await batch(operator, *mixed))

    statuses = refusals(lines)
    assert [statuses[2 * number + 2] for number in range(len(wrong))] == [
        400, 400, 422, 422, 404, 422, 422, 422, 422, 422, 400, 400,
    ]  # fmt: skip
    assert [one["line"] for one in lines if "id" in one] == list(range(1, 2 * len(wrong), 2))
    assert await stored(door) == len(wrong)


async def test_a_line_over_the_limit_of_a_body_is_refused_alone(doors: Callable[..., Door]) -> None:
    door = doors(runtime=RuntimeSettings(body_bytes_max=100))

    async with door.client("operator") as client:
        lines = told(await batch(client, line(), line("echo", "x" * 100), line()))

    assert refusals(lines) == {2: 413}
    assert await stored(door) == 2


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 100):
        yield body[at : at + 100]


async def test_too_many_lines_or_bytes_or_none_at_all_are_refused_as_a_whole(doors: Callable[..., Door]) -> None:
    door = doors(runtime=RuntimeSettings(batch_goals_max=3, batch_bytes_max=1000, body_bytes_max=1000))
    large = b"\n".join([line("echo", "x" * 450)] * 3)

    async with door.client("operator") as client:
        assert "3 lines" in is_problem(await batch(client, *[line()] * 4), 413, "invalid_argument")["detail"]
        for body in (large, in_pieces(large)):
            answer = await client.post(PATH, content=body, headers=NDJSON)
            assert "1000 bytes" in is_problem(answer, 413, "invalid_argument")["detail"]
        is_problem(await client.post(PATH, content=b"", headers=NDJSON), 400, "invalid_argument")
        text = await client.post(PATH, content=line(), headers={"Content-Type": "text/plain"})
        is_problem(text, 415, "invalid_argument")
        assert await stored(door) == 0

        assert len(told(await batch(client, *[line()] * 3))) == 3


async def test_of_two_lines_with_one_key_the_same_is_one_goal_and_another_is_refused(
    door: Door, operator: httpx2.AsyncClient
) -> None:
    lines = told(
        await batch(
            operator,
            line("echo", 1, idempotency_key="k"), line("echo", 1, idempotency_key="k"), line("echo", 2),
            line("echo", 3, idempotency_key="k"), line("echo", 4, idempotency_key="other"),
        )
    )  # fmt: skip

    assert refusals(lines) == {4: 409}
    assert lines[0]["id"] == lines[1]["id"]
    assert [one.get("is_new") for one in lines] == [True, False, True, None, True]
    assert await stored(door) == 3


async def test_a_batch_sent_again_is_the_same_goals_and_one_key_in_conflict_costs_only_its_own_line(
    door: Door, operator: httpx2.AsyncClient
) -> None:
    goals = [line("echo", number, idempotency_key=f"k{number}") for number in range(20)]
    first = told(await batch(operator, *goals))

    again = told(await batch(operator, *goals))
    goals[7] = line("echo", "another", idempotency_key="k7")
    changed = told(await batch(operator, *goals, line("echo", "new")))

    assert [one["id"] for one in again] == [one["id"] for one in first]
    assert not any(one["is_new"] for one in again)
    assert refusals(changed) == {8: 409}
    assert changed[20]["is_new"]
    assert await stored(door) == 21


async def test_a_stranger_is_refused_before_a_line_is_read(door: Door) -> None:
    async with door.client() as client:
        is_problem(await batch(client, line()), 401, "unauthenticated")

    assert await stored(door) == 0


async def test_where_no_line_is_allowed_the_batch_is_refused(door: Door, reader: httpx2.AsyncClient) -> None:
    is_problem(await batch(reader, line(), line("double", {"n": 1})), 403, "permission_denied")
    assert await stored(door) == 0


async def test_what_may_be_submitted_is_accepted_and_the_rest_of_the_batch_refused(doors: Callable[..., Door]) -> None:
    door = doors()
    door.front._authorizer = OnlySome({})

    async with door.client("operator") as client:
        lines = told(await batch(client, line(), line("double", {"n": 1}), line("nosuch"), line()))

    assert refusals(lines) == {2: 403, 3: 403}
    assert await stored(door) == 2


async def test_a_ledger_that_cannot_write_refuses_the_batch_and_nothing_is_accepted(
    fleet: InProcessFleet, doors: Callable[..., Door]
) -> None:
    ledger: Any = Counting(fleet.ledger, UnavailableError("the disk is full", retry_after_s=7))
    door = doors(ledger=ledger)

    async with door.client("operator") as client:
        response = await batch(client, line(), line("nosuch"), line())

    is_problem(response, 503, "unavailable")
    assert response.headers["retry-after"] == "7"
    assert await stored(door) == 0
    assert ledger.calls == [2]


async def test_more_batches_than_may_be_read_at_one_time_are_refused(doors: Callable[..., Door]) -> None:
    door = doors(runtime=RuntimeSettings(batches_in_flight_max=1))
    is_read, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        is_read.set()
        yield line()
        await go_on.wait()

    async with door.client("operator") as client:
        waiting = asyncio.create_task(client.post(PATH, content=slow(), headers=NDJSON))
        await is_read.wait()

        is_problem(await batch(client, line()), 503, "unavailable")

        go_on.set()
        assert len(told(await waiting)) == 1
        assert len(told(await batch(client, line()))) == 1


async def test_with_a_wait_the_ends_follow_on_the_same_connection(operator: httpx2.AsyncClient) -> None:
    response = await batch(
        operator, line("double", {"n": 4}), line("nosuch"), line("broken"), line("forever"), Prefer="wait=0.5"
    )

    lines = told(response)
    ends = {one["goal"]["type"]: one["goal"] for one in lines[4:]}
    assert response.headers["preference-applied"] == "wait=0.5"
    assert [one["line"] for one in lines[:4]] == [1, 2, 3, 4]
    assert (ends["double"]["result"], ends["broken"]["status"]) == (8, "failed")
    assert ends.keys() == {"double", "broken"}
    for end in ends.values():
        GoalAnswer.model_validate_json(orjson.dumps(end))


async def test_who_comes_again_with_the_same_keys_is_told_the_same_ends(operator: httpx2.AsyncClient) -> None:
    goals = [line("echo", number, idempotency_key=f"k{number}") for number in range(5)]
    await batch(operator, *goals)

    for _ in range(2):
        lines = told(await batch(operator, *goals, Prefer="wait=5"))

        assert {one["goal"]["id"]: one["goal"]["result"] for one in lines[5:]} == {
            one["id"]: number for number, one in enumerate(lines[:5])
        }


async def test_who_may_submit_and_not_read_is_told_of_acceptance_only(doors: Callable[..., Door]) -> None:
    door = doors(roles={"sender": frozenset({"goal:submit"})})

    async with door.client("sender") as client:
        lines = told(await batch(client, line(), line(), Prefer="wait=5"))

    assert [one["line"] for one in lines] == [1, 2]
    assert await stored(door) == 2


async def test_one_client_follows_a_thousand_goals_over_one_connection(operator: httpx2.AsyncClient) -> None:
    lines = told(await batch(operator, *(line("echo", number) for number in range(1000)), Prefer="wait=60"))

    ids = {one["id"]: one["line"] - 1 for one in lines[:1000]}
    assert len(ids) == 1000
    assert len(lines) == 2000
    assert {one["goal"]["id"]: one["goal"]["result"] for one in lines[1000:]} == ids


@pytest.mark.parametrize("prefer", ["wait=0", "wait=x", "wait=-1", "respond-async", ""])
async def test_without_a_wait_that_makes_sense_a_batch_is_answered_at_once(
    operator: httpx2.AsyncClient, prefer: str
) -> None:
    response = await batch(operator, line("forever"), Prefer=prefer)

    assert len(told(response)) == 1
    assert "preference-applied" not in response.headers
