"""A host drains: its goals and agents go on elsewhere, nothing is refused, and nothing is recorded twice."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson
import pytest

import nexus_ray as nexus
from nexus_ray.config import Settings
from nexus_ray.core.errors import UnavailableError
from nexus_ray.core.identity import AgentId
from nexus_ray.goals.limits import CoordinatorSettings
from nexus_ray.ledger.goal import EntryKind, Goal, GoalQuery, GoalStatus, Outcome
from nexus_ray.runtime.process import HostProcess
from tests.support.in_process import InProcessFleet, in_process_fleet

# Sweeps so rare that nobody finds a goal by them: what goes on at once was handed on.
NO_SWEEPS = Settings(goals=CoordinatorSettings(sweep_every_s=600.0))


class Work:
    """An app with agents that count, one that waits until it is let go, and what they were asked."""

    def __init__(self) -> None:
        self.app = nexus.App("work")
        self.let_go = asyncio.Event()
        self.asked: Counter[str] = Counter()
        work = self

        @self.app.agent
        class Adder(nexus.Agent):
            state: list[int]

            async def handle(self, payload: int, task: nexus.Task) -> int:
                work.asked[f"{task.agent}:{payload}"] += 1
                self.state.append(payload)
                return sum(self.state)

        @self.app.agent(concurrency=100)
        class Waiter(nexus.Agent):
            async def handle(self, payload: str, task: nexus.Task) -> str:
                work.asked[payload] += 1
                await work.let_go.wait()
                return payload

        @self.app.goal
        async def add_and_wait(request: str, team: nexus.Team) -> list[Any]:
            first = await team.ask("adder", 1, key=team.goal_id)
            waited = await team.fan_out("waiter", [f"{request} a", f"{request} b"], key=lambda payload: payload)
            return [first, *waited, await team.ask("adder", 2, key=team.goal_id)]

        @self.app.goal
        async def wait(request: str, team: nexus.Team) -> str:
            return await team.ask("waiter", request)

        @self.app.goal
        async def parent(request: str, team: nexus.Team) -> str:
            return await team.goal("wait", request)

        @self.app.goal
        async def add(request: str, team: nexus.Team) -> int:
            return sum([await team.ask("adder", n, key=f"{request}-{n}") for n in range(3)])

    async def until_waiting(self, *payloads: str) -> None:
        await until(lambda: all(self.asked[payload] for payload in payloads))


async def until(is_so: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.001)


async def submit(fleet: InProcessFleet, type_name: str, payload: Any, timeout_s: float = 20.0) -> Goal:
    goal = fleet.goal(type_name, payload, timeout_s=timeout_s)
    await fleet.ledger.accept([goal])
    await fleet.poke([goal])
    return goal


async def holder(fleet: InProcessFleet, goal: Goal) -> HostProcess:
    record = await fleet.ledger.goal(goal.id)
    assert record is not None and record.host
    return fleet.hosts_by_name[record.host]


async def kinds(fleet: InProcessFleet, goal: Goal) -> Counter[EntryKind]:
    return Counter(entry.kind for entry in await fleet.ledger.journal(goal.id, 0, 1000))


def value(outcome: Outcome) -> Any:
    assert outcome.status is GoalStatus.SUCCEEDED, outcome
    return orjson.loads(outcome.result)


async def test_a_goal_goes_on_elsewhere_at_once_when_the_tasks_that_it_asked_for_have_ended() -> None:
    work = Work()

    async with in_process_fleet(work.app, settings=NO_SWEEPS) as fleet:
        goals = [await submit(fleet, "add_and_wait", f"g{n}") for n in range(6)]
        await work.until_waiting(*(f"g{n} {part}" for n in range(6) for part in "ab"))
        drained = await holder(fleet, goals[0])
        held = drained.coordinator.held
        await fleet.drain(drained.host)
        await asyncio.sleep(0.02)
        assert drained.coordinator.held == held and drained.status()["state"] == "draining"
        work.let_go.set()
        outcomes = [value(await fleet.outcome(goal)) for goal in goals]
        await until(lambda: drained.status()["state"] == "drained")
        moved = [goal for goal in goals if (await kinds(fleet, goal))[EntryKind.RELEASED]]

        assert outcomes == [[1, f"g{n} a", f"g{n} b", 3] for n in range(6)]
        assert len(moved) == held and goals[0] in moved
        assert {(await holder(fleet, goal)).host for goal in goals} == set(fleet.hosts_by_name) - {drained.host}
        assert [(await kinds(fleet, goal))[EntryKind.STEP] for goal in goals] == [4] * 6
    assert set(work.asked.values()) == {1}


async def test_a_child_goal_is_not_cancelled_when_its_parent_or_itself_goes_on_elsewhere() -> None:
    work = Work()

    async with in_process_fleet(work.app, settings=NO_SWEEPS) as fleet:
        goal = await submit(fleet, "parent", "child")
        await work.until_waiting("child")
        await fleet.drain((await holder(fleet, goal)).host)
        work.let_go.set()

        assert value(await fleet.outcome(goal)) == "child"
        records = await fleet.ledger.goals(GoalQuery())
    assert [record.status for record in records] == [GoalStatus.SUCCEEDED] * 2
    assert not any(record.cancel_requested_by for record in records)


async def test_a_host_that_is_closed_leaves_the_children_of_its_goals_alone() -> None:
    work = Work()

    async with in_process_fleet(work.app) as fleet:
        goal = await submit(fleet, "parent", "child")
        await work.until_waiting("child")
        host = await holder(fleet, goal)
        await host.close()
        await fleet.lose(host.host)
        work.let_go.set()

        assert value(await fleet.outcome(goal)) == "child"


@pytest.mark.parametrize("ending", ["cancelled", "expired"])
async def test_a_goal_that_is_stopped_before_it_has_left_says_so(ending: str) -> None:
    work = Work()

    async with in_process_fleet(work.app) as fleet:
        goal = await submit(fleet, "wait", "w", timeout_s=0.1 if ending == "expired" else 20.0)
        await work.until_waiting("w")
        host = await holder(fleet, goal)
        await fleet.drain(host.host)
        if ending == "cancelled":
            assert host.coordinator.cancel(goal.id, "me")

        assert (await fleet.outcome(goal)).status == ending


async def test_a_drained_host_takes_no_goal_until_that_is_undone() -> None:
    work = Work()

    async with in_process_fleet(work.app) as fleet:
        host = fleet.hosts_by_name["host-0"]
        await fleet.drain("host-0")
        with pytest.raises(UnavailableError):
            await host.coordinator.accept_and_run([fleet.goal("add", "direct")])
        assert [value(await fleet.run("add", f"g{n}")) for n in range(8)] == [3] * 8
        assert host.coordinator.held == 0 and host.runner.counts() == {} and host.status()["state"] == "drained"
        await fleet.drain("host-0", is_undone=True)

        ((_, outcome),) = await host.coordinator.accept_and_run([fleet.goal("add", "direct")])
        assert outcome is not None and value(await outcome) == 3
        assert host.status()["state"] == "active"


async def test_a_goal_that_a_draining_host_holds_on_record_only_is_given_back() -> None:
    work = Work()

    async with in_process_fleet(work.app, settings=Settings(goals=CoordinatorSettings(sweep_every_s=0.01))) as fleet:
        await fleet.drain("host-0")
        goal = fleet.goal("add", "g")
        await fleet.ledger.accept([goal], "host-0")

        assert value(await fleet.outcome(goal)) == 3
        assert (await holder(fleet, goal)).host == "host-1"


async def test_under_load_nothing_is_refused_and_all_is_answered_while_hosts_drain_in_turn() -> None:
    work = Work()
    answers = 0

    async def client(fleet: InProcessFleet, name: str, stop: asyncio.Event) -> None:
        nonlocal answers
        number = 0
        while not stop.is_set():
            number += 1
            assert value(await fleet.run("add", f"{name}-{number}")) == 3
            answers += 1

    async with in_process_fleet(work.app, hosts=3) as fleet:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for n in range(8):
                group.create_task(client(fleet, f"c{n}", stop))
            for name in ("host-0", "host-1", "host-2"):
                await asyncio.sleep(0.1)
                await fleet.drain(name)
                await until(lambda name=name: fleet.hosts_by_name[name].status()["state"] == "drained")
                await asyncio.sleep(0.05)
                await fleet.drain(name, is_undone=True)
            stop.set()
        states = [await fleet.ledger.agent_state(AgentId("adder", f"c0-1-{n}")) for n in range(3)]

    assert answers > 50
    assert [orjson.loads(state.body) for state in states if state] == [[0], [1], [2]]
