"""Promises: what whoever is told may rely on."""

import asyncio
from typing import Any

import pytest

from nexus_ray.agents.crew import Crew
from nexus_ray.agents.promise import Promise
from nexus_ray.core.errors import UnavailableError


async def test_who_is_told_is_told_at_once_and_once() -> None:
    promise: Promise[int] = Promise()
    told: list[int] = []
    promise.tell(lambda done: told.append(done.result()))

    promise.resolve(3)

    assert told == [3]
    assert await promise == 3
    assert told == [3]


async def test_a_promise_that_is_done_tells_at_once_even_of_a_refusal() -> None:
    promise: Promise[int] = Promise()
    promise.resolve(None, UnavailableError("no"))
    told: list[Any] = []

    promise.tell(lambda done: told.append(done.exception().message))

    assert told == ["no"]


async def test_who_cannot_be_told_harms_nobody_else() -> None:
    crew = Crew()
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["exception"]))

    async def answers() -> int:
        return 1

    first, second = crew.start(answers(), 60), crew.start(answers(), 60)
    first.tell(lambda done: 1 // 0)

    assert await asyncio.wait_for(asyncio.gather(first, second), 10) == [1, 1]
    assert [type(error) for error in complaints] == [ZeroDivisionError]


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_job_that_is_cancelled_tells_when_its_coroutine_has_ended(has_begun: bool) -> None:
    crew = Crew()
    ended: list[bool] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    job = crew.start(waits(), 60)
    told: list[bool] = []
    job.tell(lambda done: told.append(done.cancelled()))
    if has_begun:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    job.cancel()
    await asyncio.wait([job], timeout=10)

    assert told == [True]
    assert ended == [True] * has_begun
