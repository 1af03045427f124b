"""What a goal's function leaves running ends with the goal."""

import asyncio
from typing import Any

import pytest

import nexus_ray as nexus
from nexus_ray.core.errors import FailedPreconditionError
from nexus_ray.ledger.goal import GoalStatus
from tests.support.in_process import in_process_fleet

WITHIN_S = 5.0


def make_app() -> tuple[nexus.App, dict[str, int]]:
    app = nexus.App("test")
    seen = {"running": 0, "begun": 0}

    @app.agent
    class Slow(nexus.Agent):
        async def handle(self, payload: Any) -> None:
            seen["running"] += 1
            seen["begun"] += 1
            try:
                await asyncio.sleep(60)
            finally:
                seen["running"] -= 1

    @app.agent
    class Raiser(nexus.Agent):
        async def handle(self, payload: Any) -> None:
            raise ValueError("no")

    return app, seen


async def becomes(what: Any) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not what():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("slow", ["agent", "sub-goal"])
async def test_the_rest_of_a_gather_is_cancelled_when_one_failure_ends_the_goal(slow: str) -> None:
    app, seen = make_app()

    @app.goal
    async def child(request: Any, team: nexus.Team) -> None:
        await team.ask("slow", key="child")

    @app.goal
    async def goal(request: Any, team: nexus.Team) -> None:
        async def late_failure() -> None:
            await becomes(lambda: seen["running"] == 3)
            await team.ask("raiser")

        others = [team.ask("slow", key="0"), team.ask("slow", key="1")]
        third = team.goal(child) if slow == "sub-goal" else team.ask("slow", key="2")
        await asyncio.gather(late_failure(), *others, third)

    async with in_process_fleet(app) as fleet:
        outcome = await fleet.run("goal")
        await becomes(lambda: seen["running"] == 0)

    assert outcome.status is GoalStatus.FAILED
    assert seen["begun"] == 3


async def test_who_asks_after_the_end_is_refused_and_who_asks_before_is_answered() -> None:
    app, seen = make_app()
    ended = asyncio.Event()
    left: list[asyncio.Task[None]] = []

    @app.agent
    class Echo(nexus.Agent):
        async def handle(self, payload: str) -> str:
            return payload

    @app.goal
    async def goal(request: Any, team: nexus.Team) -> str:
        async def later() -> None:
            await ended.wait()
            await team.ask("slow")

        left.append(asyncio.create_task(later()))
        return str(await team.ask("echo", "before"))

    async with in_process_fleet(app) as fleet:
        outcome = await fleet.run("goal")
        ended.set()
        with pytest.raises(FailedPreconditionError, match="has ended"):
            await left[0]

    assert outcome.result == b'"before"'
    assert seen["begun"] == 0
