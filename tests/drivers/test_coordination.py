"""What becomes of goals when hosts drain, die or hang, answers are lost, and coordinations change."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

import nexus_ray as nexus
from nexus_ray.config import Settings
from nexus_ray.core.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError
from nexus_ray.core.identity import AgentId
from nexus_ray.goals.limits import CoordinatorSettings
from nexus_ray.ledger.goal import Claim, EntryKind, Finish, GoalRecord, GoalStatus, RequestCancel, Step, Write
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.ledger.ports import Acceptance
from tests.support.in_process import InProcessFleet, in_process_fleet


class Flow:
    """An app with a counter that keeps state, and a gate that holds a task until it is opened."""

    def __init__(self) -> None:
        self.app = nexus.App("test")
        self.open = asyncio.Event()
        self.waiting = 0
        self.handled: Counter[str] = Counter()
        flow = self

        @self.app.agent
        class Adder(nexus.Agent):
            state: list[int]

            async def handle(self, payload: int, task: nexus.Task) -> int:
                flow.handled[f"{task.agent}:{payload}"] += 1
                self.state.append(payload)
                return sum(self.state)

        @self.app.agent(concurrency=100)
        class Gate(nexus.Agent):
            async def handle(self, payload: Any) -> Any:
                flow.waiting += 1
                await flow.open.wait()
                return payload

    async def until_waiting(self, count: int = 1) -> None:
        await until(lambda: self.waiting >= count)


async def until(is_so: Any) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0)


async def submit(fleet: InProcessFleet, type_name: str = "goal", payload: Any = None, timeout_s: float = 20.0) -> Any:
    goal = fleet.goal(type_name, payload, timeout_s=timeout_s)
    await fleet.ledger.accept([goal])
    await fleet.poke([goal])
    return goal


def value(outcome: Any) -> Any:
    assert outcome.status is GoalStatus.SUCCEEDED, outcome
    return orjson.loads(outcome.result)


async def test_steps_and_state_are_committed_once_though_the_goal_runs_again() -> None:
    flow = Flow()

    @flow.app.goal
    async def goal(request: Any, team: nexus.Team) -> list[int]:
        sums = [await team.ask("adder", n, key="a") for n in (1, 2, 3)]
        await team.ask("gate", key="g")
        return [*sums, await team.ask("adder", 4, key="a")]

    async with in_process_fleet(flow.app, hosts=4) as fleet:
        accepted = await submit(fleet)
        for killed in range(1, 3):
            await flow.until_waiting(killed)
            record = await fleet.ledger.goal(accepted.id)
            await fleet.lose(record.host)
        await flow.until_waiting(3)
        flow.open.set()
        outcome = await fleet.outcome(accepted)
        state = await fleet.ledger.agent_state(AgentId("adder", "a"))
        entries = await fleet.ledger.journal(accepted.id, 0, 1000)

    assert value(outcome) == [1, 3, 6, 10]
    assert (state.version, state.body) == (4, b"[1,2,3,4]")
    assert set(flow.handled.values()) == {1}
    kinds = Counter(entry.kind for entry in entries)
    assert (kinds[EntryKind.CLAIMED], kinds[EntryKind.STEP], kinds[EntryKind.FINISHED]) == (3, 5, 1)


async def test_a_goal_that_two_hosts_claim_has_one_runner_and_one_outcome() -> None:
    flow = Flow()
    runs = []

    @flow.app.goal
    async def goal(request: Any, team: nexus.Team) -> int:
        runs.append(team.goal_id)
        return await team.ask("adder", 1)

    async with in_process_fleet(flow.app, hosts=3) as fleet:
        accepted = fleet.goal("goal")
        await fleet.ledger.accept([accepted])
        for host in fleet.hosts_by_name.values():
            host.coordinator.launch(accepted)
            host.coordinator.launch(accepted)
        outcome = await fleet.outcome(accepted)
        await until(lambda: not any(host.coordinator.held for host in fleet.hosts_by_name.values()))
        entries = await fleet.ledger.journal(accepted.id, 0, 100)

    assert value(outcome) == 1 and len(runs) == 1
    assert [entry.kind for entry in entries].count(EntryKind.FINISHED) == 1


async def test_a_coordination_that_changed_between_two_runs_asks_for_what_is_not_there_yet() -> None:
    flow = Flow()
    versions = iter(([1, 2, 3], [3, 1, 5]))

    @flow.app.goal
    async def goal(request: Any, team: nexus.Team) -> list[int]:
        plan = next(versions)
        sums = [await team.ask("adder", n, key=str(n)) for n in plan]
        await team.ask("gate")
        return sums

    async with in_process_fleet(flow.app, hosts=2) as fleet:
        accepted = await submit(fleet)
        await flow.until_waiting()
        record = await fleet.ledger.goal(accepted.id)
        await fleet.lose(record.host)
        flow.open.set()
        outcome = await fleet.outcome(accepted)

    assert value(outcome) == [3, 1, 5]
    assert flow.handled == {f"adder/{n}:{n}": 1 for n in (1, 2, 3, 5)}


class LosesAnswers(MemoryLedger):
    """Keeps what it is told and, where `loses` says so, answers as if nobody knew: `UnavailableError`."""

    def __init__(self, loses: Any) -> None:
        super().__init__()
        self.loses = loses
        self.lost = 0

    async def accept(self, goals: Sequence[Any], holder: str = "") -> list[Acceptance]:
        answers = await super().accept(goals, holder)
        await self._lose("accept", [goal.type for goal in goals])
        return answers

    async def append(self, writer: str, writes: Sequence[Write]) -> list[bool]:
        answers = await super().append(writer, writes)
        await self._lose("append", writes)
        return answers

    async def _lose(self, call: str, what: Sequence[Any]) -> None:
        await asyncio.sleep(0)
        if self.lost < 1 and self.loses(call, what):
            self.lost += 1
            raise UnavailableError("the answer was lost")


@pytest.mark.parametrize("kind", [Claim, Step, Finish])
async def test_a_lost_answer_of_the_ledger_changes_no_outcome(kind: type) -> None:
    flow = Flow()

    @flow.app.goal
    async def goal(request: Any, team: nexus.Team) -> int:
        return sum([await team.ask("adder", n, key="a") for n in (1, 2)])

    ledger = LosesAnswers(lambda call, what: call == "append" and any(isinstance(write, kind) for write in what))
    async with in_process_fleet(flow.app, ledger=ledger) as fleet:
        if kind is Finish:
            host = fleet.hosts_by_name["host-0"]
            ((_, future),) = await host.coordinator.accept_and_run([fleet.goal("goal")])
            outcome = await future
        else:
            outcome = await fleet.run("goal")

    assert ledger.lost == 1 and value(outcome) == 4
    assert set(flow.handled.values()) == {1}


async def test_a_sub_goal_whose_acceptance_was_lost_is_run_all_the_same() -> None:
    flow = Flow()

    @flow.app.goal
    async def child(request: int, team: nexus.Team) -> int:
        return await team.ask("adder", request)

    @flow.app.goal
    async def goal(request: Any, team: nexus.Team) -> int:
        return await team.goal(child, 7)

    settings = Settings(goals=CoordinatorSettings(sweep_every_s=0.01))
    for count in range(4):  # Several ids, so that some belong to the other host by the membership.
        ledger = LosesAnswers(lambda call, what: call == "accept" and what == ["child"])
        async with in_process_fleet(flow.app, ledger=ledger, settings=settings) as fleet:
            assert value(await fleet.run("goal")) == 7
        assert (ledger.lost, flow.handled["adder/main:7"]) == (1, count + 1)


async def test_a_sub_goal_that_fails_fails_its_parent_with_what_where_and_why() -> None:
    flow = Flow()

    @flow.app.goal
    async def child(request: Any, team: nexus.Team) -> int:
        raise ValueError("no such package")

    @flow.app.goal
    async def goal(request: Any, team: nexus.Team) -> Any:
        return await team.goal(child)

    async with in_process_fleet(flow.app) as fleet:
        outcome = await fleet.run("goal")

    assert outcome.status is GoalStatus.FAILED
    assert outcome.failure.error_type == "failed" and outcome.failure.agent == "goal:child"
    assert "child" in outcome.failure.message and "no such package" in outcome.failure.message


async def test_a_sub_goal_that_is_cancelled_tells_its_parent_who_may_go_on() -> None:
    flow = Flow()

    @flow.app.goal
    async def child(request: Any, team: nexus.Team) -> Any:
        await team.ask("gate")

    @flow.app.goal
    async def goal(request: Any, team: nexus.Team) -> str:
        try:
            await team.goal(child)
        except nexus.TaskFailedError as error:
            return str(error.details["error_type"])
        return ""

    async with in_process_fleet(flow.app) as fleet:
        accepted = await submit(fleet)
        await flow.until_waiting()
        (record,) = [record for record in await fleet.ledger.unfinished("", 9) if record.goal.parent]
        await fleet.ledger.append("", [RequestCancel(record.goal.id, 0.0, "me")])
        await fleet.poke_cancel(record, "me")

        assert value(await fleet.outcome(accepted)) == "cancelled"


@pytest.mark.parametrize("call", ["ask", "goal"])
async def test_asking_for_what_the_app_does_not_have_names_it(call: str) -> None:
    flow = Flow()

    @flow.app.goal
    async def goal(request: Any, team: nexus.Team) -> Any:
        return await (team.ask("nobody") if call == "ask" else team.goal("nothing"))

    async with in_process_fleet(flow.app) as fleet:
        outcome = await fleet.run("goal")

    assert outcome.failure.code == "not_found"
    assert ("'nobody'" if call == "ask" else "'nothing'") in outcome.failure.message


async def test_a_goal_type_that_is_gone_and_a_payload_that_does_not_fit_fail_the_goal() -> None:
    flow = Flow()

    @flow.app.goal
    async def goal(request: int, team: nexus.Team) -> int:
        return request

    async with in_process_fleet(flow.app) as fleet:
        unknown = await fleet.run("gone")
        misfit = await fleet.run("goal", "x")
        fits = await fleet.run("goal", 3)

    assert unknown.failure.code == "not_found" and "'gone'" in unknown.failure.message
    assert misfit.failure.code == "invalid_argument" and "goal's payload" in misfit.failure.message
    assert value(fits) == 3


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), MemoryError("x")])
async def test_whatever_a_goal_raises_its_host_lives_on(raised: BaseException) -> None:
    flow = Flow()

    @flow.app.goal
    async def goal(request: Any, team: nexus.Team) -> int:
        if request:
            raise raised
        return await team.ask("adder", 1)

    async with in_process_fleet(flow.app, hosts=1) as fleet:
        failed = await fleet.run("goal", True)
        after = await fleet.run("goal", False)

    assert failed.status is GoalStatus.FAILED and value(after) == 1


async def test_a_full_host_refuses_goals_and_takes_them_again_when_some_have_ended() -> None:
    flow = Flow()

    @flow.app.goal
    async def goal(request: Any, team: nexus.Team) -> Any:
        return await team.ask("gate", request)

    settings = Settings(goals=CoordinatorSettings(goals_max=2))
    async with in_process_fleet(flow.app, hosts=1, settings=settings) as fleet:
        coordinator = fleet.hosts_by_name["host-0"].coordinator
        with pytest.raises(ResourceExhaustedError) as caught:
            await coordinator.accept_and_run([fleet.goal("goal") for _ in range(3)])
        assert caught.value.details["retry_after_s"] > 0 and await fleet.ledger.unfinished("", 9) == []
        started = await coordinator.accept_and_run([fleet.goal("goal") for _ in range(2)])
        with pytest.raises(ResourceExhaustedError):
            await coordinator.accept_and_run([fleet.goal("goal")])
        flow.open.set()
        await asyncio.gather(*(future for _, future in started if future is not None))
        await until(lambda: not coordinator.held)

        ((acceptance, future),) = await coordinator.accept_and_run([fleet.goal("goal", 5)])
        assert acceptance.is_new and value(await future) == 5


async def test_a_goal_waits_in_the_ledger_while_its_host_is_full() -> None:
    flow = Flow()

    @flow.app.goal
    async def goal(request: Any, team: nexus.Team) -> Any:
        return await team.ask("gate", request)

    settings = Settings(goals=CoordinatorSettings(goals_max=1, sweep_every_s=0.005))
    async with in_process_fleet(flow.app, hosts=1, settings=settings) as fleet:
        accepted = [await submit(fleet, payload=n) for n in range(3)]
        await flow.until_waiting()
        flow.open.set()

        assert [value(await fleet.outcome(goal)) for goal in accepted] == [0, 1, 2]


async def test_an_outcome_that_is_too_large_is_a_failure_and_not_a_goal_without_end() -> None:
    app = nexus.App("test")

    @app.goal
    async def goal(request: int, team: nexus.Team) -> str:
        return "x" * request

    ledger = MemoryLedger(LedgerSettings(body_bytes_max=100))
    async with in_process_fleet(app, ledger=ledger) as fleet:
        large, small = await fleet.run("goal", 200), await fleet.run("goal", 50)

    assert large.status is GoalStatus.FAILED and large.failure.code == InvalidArgumentError.code
    assert len(value(small)) == 50


async def test_a_closed_host_says_nothing_about_goals_that_others_go_on_with() -> None:
    flow = Flow()

    @flow.app.goal
    async def goal(request: Any, team: nexus.Team) -> Any:
        return await team.ask("gate", 1)

    async with in_process_fleet(flow.app, hosts=2) as fleet:
        accepted = await submit(fleet)
        await flow.until_waiting()
        record: GoalRecord = await fleet.ledger.goal(accepted.id)
        host = fleet.hosts_by_name.pop(record.host)
        await host.close()
        assert (await fleet.ledger.goal(accepted.id)).status is GoalStatus.RUNNING
        await fleet.ledger.fence(record.host)
        fleet.publish()
        flow.open.set()

        assert value(await fleet.outcome(accepted)) == 1


async def test_a_goal_that_is_cancelled_before_its_first_step_is_cancelled() -> None:
    flow = Flow()

    @flow.app.goal
    async def goal(request: Any, team: nexus.Team) -> Any:
        return await team.ask("gate")

    async with in_process_fleet(flow.app, hosts=1) as fleet:
        (host,) = fleet.hosts_by_name.values()
        ((acceptance, outcome),) = await host.coordinator.accept_and_run([fleet.goal("goal")])
        assert outcome is not None and host.coordinator.cancel(acceptance.goal_id, "me")

        async with asyncio.timeout(10):
            assert (await outcome).status is GoalStatus.CANCELLED
