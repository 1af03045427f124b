"""Many coroutines with few tasks: what each of them may rely on."""

import asyncio
import contextvars
from typing import Any

import pytest

from nexus_ray.agents.crew import Crew, Job

LONG_S = 60.0


async def results(jobs: list[Job]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 10)


async def test_jobs_that_never_wait_share_a_task_and_those_that_do_have_their_own() -> None:
    crew = Crew()
    gate = asyncio.Event()

    async def quick() -> Any:
        return asyncio.current_task()

    async def slow() -> Any:
        before = asyncio.current_task()
        await gate.wait()
        assert asyncio.current_task() is before
        return before

    quick_ones = [crew.start(quick(), LONG_S) for _ in range(10)]
    slow_ones = [crew.start(slow(), LONG_S) for _ in range(10)]
    late_ones = [crew.start(quick(), LONG_S) for _ in range(10)]
    assert len(set(await results(quick_ones))) == 1
    await results(late_ones)
    gate.set()

    assert len(set(await results(slow_ones))) == 10


async def test_a_job_that_waits_holds_up_nobody() -> None:
    crew = Crew()
    never = asyncio.Event()

    async def waits() -> None:
        await never.wait()

    async def answers(value: int) -> int:
        return value

    waiting = [crew.start(waits(), LONG_S) for _ in range(3)]
    answering = [crew.start(answers(n), LONG_S) for n in range(200)]

    assert await results(answering) == list(range(200))
    for job in waiting:
        job.cancel()
    assert all(isinstance(error, asyncio.CancelledError) for error in await results(waiting))


async def test_others_on_the_loop_have_their_turn_between_many_jobs() -> None:
    crew = Crew()
    turns = 0

    async def counts() -> int:
        return turns

    jobs = [crew.start(counts(), LONG_S) for _ in range(500)]
    while not jobs[-1].done():
        turns += 1
        await asyncio.sleep(0)

    assert jobs[-1].result() > 3


async def test_what_a_job_raises_is_its_own_and_the_next_one_runs() -> None:
    crew = Crew()

    async def raises() -> None:
        raise ValueError("mine")

    async def answers() -> str:
        return "fine"

    first, second = await results([crew.start(raises(), LONG_S), crew.start(answers(), LONG_S)])

    assert isinstance(first, ValueError) and second == "fine"


async def test_context_variables_do_not_leak_from_one_job_to_the_next() -> None:
    crew = Crew()
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")

    async def sets() -> str:
        before = tenant.get()
        tenant.set("somebody")
        return before

    assert await results([crew.start(sets(), LONG_S) for _ in range(5)]) == ["nobody"] * 5
    assert tenant.get() == "nobody"


async def test_a_job_is_cut_off_when_its_time_is_over_and_may_still_tell() -> None:
    crew = Crew()

    async def told() -> str:
        job = crew.current
        assert job is not None
        try:
            await asyncio.sleep(LONG_S)
        except asyncio.CancelledError:
            assert job.has_expired() and not job.has_expired()
            await asyncio.sleep(0)
            return "expired"
        return "never"

    assert await results([crew.start(told(), 0.01), crew.start(told(), -1.0)]) == ["expired", "expired"]


async def test_somebody_who_cancels_is_not_taken_for_the_clock() -> None:
    crew = Crew()
    seen: list[bool] = []

    async def asks() -> None:
        job = crew.current
        assert job is not None
        try:
            await asyncio.sleep(LONG_S)
        except asyncio.CancelledError:
            seen.append(job.has_expired())
            raise

    job = crew.start(asks(), LONG_S)
    await asyncio.sleep(0.001)
    job.cancel()

    with pytest.raises(asyncio.CancelledError):
        await job
    assert seen == [False]


async def test_a_job_cancelled_before_it_began_never_begins() -> None:
    crew = Crew()
    begun: list[int] = []

    async def begins(number: int) -> int:
        begun.append(number)
        return number

    jobs = [crew.start(begins(n), LONG_S) for n in range(3)]
    jobs[1].cancel()

    await results(jobs)
    assert begun == [0, 2]


async def test_closing_cancels_what_runs_and_what_waits() -> None:
    crew = Crew()
    cleaned: list[str] = []

    async def runs() -> None:
        try:
            await asyncio.sleep(LONG_S)
        finally:
            cleaned.append("runs")

    running = crew.start(runs(), LONG_S)
    await asyncio.sleep(0.001)
    waiting = crew.start(runs(), LONG_S)

    await crew.close()

    assert running.cancelled() and waiting.cancelled()
    assert cleaned == ["runs"]
