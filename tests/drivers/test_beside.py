"""Agents of one goal: beside it, elsewhere where that is better, and gone with it."""

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from pydantic import BaseModel

import nexus_ray as nexus
from nexus_ray.agents.runner import RunnerSettings
from nexus_ray.config import Settings
from nexus_ray.ledger.goal import GoalStatus
from nexus_ray.runtime.beside import Pulse
from tests.support.in_process import InProcessFleet, in_process_fleet
from tests.support.runners import until

HOSTS = 4
TASKS = 2000
UNEVEN_MAX = 1.25


class Share(BaseModel):
    tasks: int = TASKS
    rounds: int = 1


class Work:
    """An app whose tasks wait for a gate, and where they did."""

    def __init__(self, **options: Any) -> None:
        self.app = nexus.App("beside")
        self.gate = asyncio.Event()
        self.waiting = 0
        work = self

        @self.app.agent("worker", scope="goal", **options)
        class Worker(nexus.Agent):
            def __init__(self) -> None:
                self.count = 0

            async def handle(self, payload: int) -> int:
                self.count += 1
                work.waiting += 1
                await work.gate.wait()
                return self.count

        @self.app.goal
        async def share(request: Share, team: nexus.Team) -> list[int]:
            counts: list[int] = []
            for _ in range(request.rounds):
                keys = [n for n in range(request.tasks)]
                counts = await team.fan_out("worker", keys, key=str, concurrency=request.tasks)
            return counts


def settings(**limits: Any) -> Settings:
    return Settings(agents=RunnerSettings(**limits))


def agents_by_host(fleet: InProcessFleet) -> Counter[str]:
    return Counter({name: host.runner.counts().get("worker", 0) for name, host in fleet.hosts_by_name.items()})


async def begun(fleet: InProcessFleet, work: Work, **fields: int) -> tuple[Any, str]:
    """Start a goal, and return it and its host when all its tasks wait."""
    goal = fleet.goal("share", fields)
    await fleet.ledger.accept([goal])
    await fleet.poke([goal])
    await until(lambda: work.waiting == fields.get("tasks", TASKS))
    record = await fleet.ledger.goal(goal.id)
    assert record is not None
    return goal, record.host


async def ended(fleet: InProcessFleet, goal: Any) -> list[int]:
    outcome = await fleet.outcome(goal)
    assert outcome.status is GoalStatus.SUCCEEDED, outcome
    await until(lambda: agents_by_host(fleet).total() == 0)
    return [int(count) for count in outcome.result.strip(b"[]").split(b",")]


async def test_agents_of_a_goal_stand_beside_it_and_go_with_it() -> None:
    work = Work()
    async with in_process_fleet(work.app, hosts=HOSTS) as fleet:
        goal, host = await begun(fleet, work, tasks=100)

        assert +agents_by_host(fleet) == {host: 100}
        work.gate.set()
        await ended(fleet, goal)


@pytest.mark.parametrize(("options", "limits"), [({"spread": True}, {}), ({}, {"beside_tasks_max": 100})])
async def test_where_they_are_spread_or_spill_no_host_has_far_more_than_its_share(
    options: dict[str, Any], limits: dict[str, Any]
) -> None:
    work = Work(**options)
    async with in_process_fleet(work.app, hosts=HOSTS, settings=settings(**limits)) as fleet:
        goal, _ = await begun(fleet, work)

        spread = agents_by_host(fleet)
        assert spread.total() == TASKS and max(spread.values()) <= UNEVEN_MAX * TASKS / HOSTS, spread
        work.gate.set()
        await ended(fleet, goal)


@pytest.mark.parametrize("options", [{"spread": True}, {}])
async def test_an_agent_stays_where_it_was_placed_first(options: dict[str, Any]) -> None:
    work = Work(**options)
    work.gate.set()
    async with in_process_fleet(work.app, hosts=HOSTS, settings=settings(beside_tasks_max=20)) as fleet:
        goal = fleet.goal("share", {"tasks": 60, "rounds": 5})
        await fleet.ledger.accept([goal])
        await fleet.poke([goal])

        assert await ended(fleet, goal) == [5] * 60


async def test_a_goal_that_spilled_outlives_the_host_it_spilled_to(tmp_path: Any) -> None:
    work = Work(spread=True)
    async with in_process_fleet(work.app, hosts=HOSTS) as fleet:
        goal, home = await begun(fleet, work, tasks=100)
        lost = next(name for name in fleet.hosts_by_name if name != home)
        again = agents_by_host(fleet)[lost]

        await fleet.lose(lost)
        await until(lambda: work.waiting == 100 + again)
        work.gate.set()

        assert again > 0 and await ended(fleet, goal) == [1] * 100


async def test_when_the_goals_host_dies_its_agents_elsewhere_go(tmp_path: Any) -> None:
    work = Work(spread=True)
    async with in_process_fleet(work.app, hosts=HOSTS) as fleet:
        goal, home = await begun(fleet, work, tasks=100)

        await fleet.lose(home)
        await until(lambda: work.waiting == 200)
        work.gate.set()

        assert await ended(fleet, goal) == [1] * 100


async def test_a_lag_is_seen_while_it_lasts_and_forgotten_soon() -> None:
    pulse = Pulse()
    assert pulse.lag_s == 0.0
    pulse.start()

    busy_until = time.monotonic() + 0.5
    while time.monotonic() < busy_until:
        pass

    assert pulse.lag_s > 0.1
    async with asyncio.timeout(5):
        while pulse.lag_s > 0.05:
            await asyncio.sleep(0.05)
    pulse.stop()


def test_spread_is_for_agents_of_a_goal() -> None:
    with pytest.raises(ValueError, match="scope='goal'"):
        Work(spread=True).app.agent("other", spread=True)
