"""What goals ask of people, over HTTP: who sees it, who answers it, and whose answer stands."""

import asyncio
from typing import Any

import httpx2
import pytest

from tests.api.conftest import Door, is_problem, submit


async def ask(client: httpx2.AsyncClient, **question: Any) -> str:
    """Submit a goal that asks, and return its id when its question is open."""
    goal_id: str = (await submit(client, "asks", question)).json()["id"]
    async with asyncio.timeout(10):
        while goal_id not in [one["goal_id"] for one in await open_questions(client)]:
            await asyncio.sleep(0.002)
    return goal_id


async def open_questions(client: httpx2.AsyncClient) -> list[dict[str, Any]]:
    answer = await client.get("/v1/questions")
    assert answer.status_code == 200, answer.text
    return list(answer.json()["questions"])


async def answer(client: httpx2.AsyncClient, goal_id: str, key: str = "main", **body: Any) -> httpx2.Response:
    return await client.post(f"/v1/goals/{goal_id}/questions/{key}", json={"approved": True, **body})


async def result(client: httpx2.AsyncClient, goal_id: str) -> Any:
    return (await client.get(f"/v1/goals/{goal_id}", params={"wait": 5})).json()["result"]


async def test_a_person_answers_and_the_goal_goes_on(door: Door) -> None:
    async with door.client("operator") as operator, door.client("approver", name="bob") as approver:
        goal_id = await ask(operator, key="ship.1", to="approver")
        (question,) = await open_questions(approver)
        assert {name: question[name] for name in ("goal_id", "goal_type", "key", "question", "to")} == {
            "goal_id": goal_id, "goal_type": "asks", "key": "ship.1", "question": "Ship it?", "to": "approver",
        }  # fmt: skip
        assert question["since"] < question["until"]

        given = await answer(approver, goal_id, "ship.1", comment="fine")

        assert given.status_code == 200
        assert {**given.json(), "at": ""} == {
            "goal_id": goal_id, "key": "ship.1", "question": "Ship it?", "approved": True, "by": "bob",
            "comment": "fine", "at": "",
        }  # fmt: skip
        assert await result(operator, goal_id) == [True, "bob", "fine"]
        assert await open_questions(operator) == []


async def test_who_follows_the_goal_sees_the_question_and_the_answer(operator: httpx2.AsyncClient) -> None:
    goal_id = await ask(operator)
    await answer(operator, goal_id, approved=False)
    await result(operator, goal_id)

    text = (await operator.get(f"/v1/goals/{goal_id}/events")).text

    assert "event: asked" in text and "Ship it?" in text
    assert "event: answered" in text and '"approved":false' in text


async def test_the_first_answer_stands_and_a_second_hears_whose(door: Door) -> None:
    async with door.client("operator", name="ada") as ada, door.client("operator", name="bob") as bob:
        goal_id = await ask(ada)
        first = await answer(ada, goal_id)

        again = await answer(ada, goal_id)
        other = await answer(bob, goal_id, approved=False)

        assert again.json() == first.json()
        assert "answered by ada: approved" in is_problem(other, 409, "already_exists")["detail"]
        assert await result(ada, goal_id) == [True, "ada", ""]


async def test_who_may_read_or_submit_may_not_answer(door: Door, reader: httpx2.AsyncClient) -> None:
    async with door.client("operator") as operator:
        goal_id = await ask(operator)

        is_problem(await answer(reader, goal_id), 403, "permission_denied")

        assert len(await open_questions(reader)) == 1
        assert (await answer(operator, goal_id)).status_code == 200


async def test_only_the_role_or_the_person_that_was_asked_may_answer(door: Door) -> None:
    async with door.client("operator", name="ada") as ada, door.client("approver", name="bob") as bob:
        for_bob, for_approvers = await ask(ada, to="bob"), await ask(ada, to="approver")

        is_problem(await answer(ada, for_bob), 403, "permission_denied")
        is_problem(await answer(ada, for_approvers), 403, "permission_denied")

        assert (await answer(bob, for_bob)).status_code == 200
        assert (await answer(bob, for_approvers)).status_code == 200


async def test_a_question_that_is_not_asked_or_is_over_is_refused(operator: httpx2.AsyncClient) -> None:
    goal_id = await ask(operator)
    is_problem(await answer(operator, "goal-0"), 404, "not_found")
    is_problem(await answer(operator, goal_id, "other"), 404, "not_found")

    await operator.post(f"/v1/goals/{goal_id}/cancel")
    await operator.get(f"/v1/goals/{goal_id}", params={"wait": 5})

    assert "has ended" in is_problem(await answer(operator, goal_id), 409, "failed_precondition")["detail"]


@pytest.mark.parametrize(
    "body", [{}, {"approved": "yes"}, {"approved": 1}, {"approved": None}, {"approved": True, "by": "eve"},
             {"approved": True, "comment": "x" * 4001}, [], "yes"],
)  # fmt: skip
async def test_an_answer_that_is_none_is_refused_and_the_question_stays_open(
    operator: httpx2.AsyncClient, body: Any
) -> None:
    goal_id = await ask(operator)

    is_problem(await operator.post(f"/v1/goals/{goal_id}/questions/main", json=body), 422, "invalid_argument")

    assert len(await open_questions(operator)) == 1


async def test_questions_come_in_pages(operator: httpx2.AsyncClient) -> None:
    asked = [await ask(operator) for _ in range(3)]

    first = (await operator.get("/v1/questions", params={"limit": 2})).json()
    second = (await operator.get("/v1/questions", params={"limit": 2, "after": first["next"]})).json()

    assert [one["goal_id"] for page in (first, second) for one in page["questions"]] == asked
    assert second["next"] is None
