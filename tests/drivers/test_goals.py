import asyncio
import time
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

import nexus_ray as nexus
from nexus_ray.config import Settings
from nexus_ray.core.errors import InvalidArgumentError, QuorumNotReachedError, TaskFailedError
from nexus_ray.goals.limits import CoordinatorSettings
from nexus_ray.goals.strategies import Call
from nexus_ray.ledger.goal import EntryKind, GoalStatus, RequestCancel
from tests.support.in_process import in_process_fleet


class Number(BaseModel):
    n: int = 0


def make_app() -> tuple[nexus.App, dict[str, Any]]:
    app = nexus.App("test")
    seen: dict[str, Any] = {"calls": [], "cancelled": 0, "running": 0, "running_max": 0, "stopped": 0}

    @app.agent
    class Doubler(nexus.Agent):
        async def handle(self, payload: Number, task: nexus.Task) -> Number:
            seen["calls"].append((str(task.agent), payload.n))
            return Number(n=payload.n * 2)

    @app.agent
    class Counter(nexus.Agent):
        state: Number

        async def handle(self, payload: Number) -> Number:
            self.state.n += payload.n
            if payload.n == 13:
                raise ValueError("unlucky")
            return self.state

    @app.agent(retries=2)
    class Flaky(nexus.Agent):
        async def handle(self, payload: Number, task: nexus.Task) -> int:
            if task.attempt <= payload.n:
                raise RuntimeError(f"attempt {task.attempt}")
            return task.attempt

    @app.agent(concurrency=3)
    class Sleeper(nexus.Agent):
        async def handle(self, payload: Number) -> int:
            seen["running"] += 1
            seen["running_max"] = max(seen["running_max"], seen["running"])
            try:
                await asyncio.sleep(payload.n / 1000)
                return payload.n
            except asyncio.CancelledError:
                seen["cancelled"] += 1
                raise
            finally:
                seen["running"] -= 1

    @app.agent
    class Threaded(nexus.Agent):
        def handle(self, payload: Number) -> int:
            time.sleep(0.001)
            return payload.n + 1

        async def stop(self) -> None:
            seen["stopped"] += 1

    @app.agent
    class Odd(nexus.Agent):
        async def handle(self, payload: Any) -> Any:
            return {1, object()}

    @app.agent
    class Adder(nexus.Agent):
        async def handle(self, payload: list[Number]) -> Number:
            return Number(n=sum(item.n for item in payload))

    return app, seen


async def run(app: nexus.App, function: Any, payload: Any = None, **options: Any) -> Any:
    app.goal(function)
    async with in_process_fleet(app, **options) as fleet:
        return await fleet.run(function.__name__, payload, timeout_s=10)


def value(outcome: Any) -> Any:
    assert outcome.status is GoalStatus.SUCCEEDED, outcome
    return orjson.loads(outcome.result)


async def test_a_fan_out_answers_in_the_order_of_the_payloads_over_all_hosts() -> None:
    app, _ = make_app()

    async def goal(request: Number, team: nexus.Team) -> list[int]:
        return [answer.n for answer in await team.fan_out("doubler", [Number(n=n) for n in range(request.n)])]

    assert value(await run(app, goal, {"n": 40})) == [n * 2 for n in range(40)]


async def test_a_failure_fails_the_goal_and_says_what_where_and_how_often() -> None:
    app, _ = make_app()

    async def goal(request: Any, team: nexus.Team) -> Any:
        return await team.ask("flaky", Number(n=9), key="k")

    outcome = await run(app, goal)

    assert outcome.status is GoalStatus.FAILED
    assert outcome.failure.agent == "flaky/k"
    assert outcome.failure.attempts == 3
    assert outcome.failure.error_type == "RuntimeError"
    assert outcome.failure.host.startswith("host-")


async def test_a_task_that_raises_is_tried_again_as_often_as_its_type_says() -> None:
    app, _ = make_app()

    async def goal(request: Any, team: nexus.Team) -> int:
        return await team.ask("flaky", Number(n=2))

    assert value(await run(app, goal)) == 3


async def test_errors_can_stand_in_the_places_of_answers() -> None:
    app, _ = make_app()

    async def goal(request: Any, team: nexus.Team) -> list[str]:
        answers = await team.fan_out("flaky", [Number(n=0), Number(n=9)], return_errors=True)
        return [type(answer).__name__ for answer in answers]

    assert value(await run(app, goal)) == ["int", "TaskFailedError"]


async def test_a_quorum_returns_early_and_cancels_the_rest() -> None:
    app, seen = make_app()

    async def goal(request: Any, team: nexus.Team) -> list[int]:
        return await team.fan_out("sleeper", [Number(n=1), Number(n=2), Number(n=60_000)], quorum=2)

    assert value(await run(app, goal)) == [1, 2]
    assert seen["cancelled"] == 1


async def test_a_quorum_that_cannot_be_reached_fails_at_once() -> None:
    app, _ = make_app()

    async def goal(request: Any, team: nexus.Team) -> str:
        try:
            await team.fan_out("flaky", [Number(n=9), Number(n=9), Number(n=0)], quorum=2)
        except QuorumNotReachedError as error:
            return f"{error.details['answered']} of {error.details['needed']}"
        return "reached"

    assert value(await run(app, goal)) == "1 of 2"


async def test_what_has_come_by_the_timeout_is_returned() -> None:
    app, _ = make_app()

    async def goal(request: Any, team: nexus.Team) -> list[Any]:
        answers = await team.fan_out(
            "sleeper", [Number(n=1), Number(n=60_000)], key=lambda p: str(p.n), timeout_s=0.1, return_errors=True
        )
        return [answer if isinstance(answer, int) else answer.details["failed_with"] for answer in answers]

    assert value(await run(app, goal)) == [1, "deadline_exceeded"]


async def test_strategies_agree_with_what_they_promise() -> None:
    app, seen = make_app()

    async def goal(request: Any, team: nexus.Team) -> list[Any]:
        numbers = [Number(n=n) for n in range(1, 6)]
        return [
            (await team.map_reduce("doubler", numbers, "adder", arity=2)).n,
            await team.race([Call("sleeper", Number(n=60_000), "slow"), Call("sleeper", Number(n=1), "fast")]),
            await team.hedge("sleeper", Number(n=20), keys=["a", "b"], after_s=0.001),
            (await team.vote("doubler", Number(n=4), voters=3, agree=2)).n,
            (await team.pipeline(Number(n=1), "doubler", "doubler", "doubler")).n,
        ]

    assert value(await run(app, goal)) == [30, 1, 20, 8, 8]
    assert seen["cancelled"] >= 1


async def test_a_sub_goal_is_a_goal_of_its_own_and_answers_its_parent() -> None:
    app, _ = make_app()

    @app.goal
    async def inner(request: Number, team: nexus.Team) -> Number:
        return await team.ask("doubler", request)

    async def goal(request: Number, team: nexus.Team) -> int:
        return (await team.goal(inner, request)).n + (await team.goal("inner", Number(n=1))).n

    assert value(await run(app, goal, {"n": 5})) == 12


async def test_cancelling_a_goal_cancels_what_it_started() -> None:
    app, seen = make_app()

    @app.goal
    async def child(request: Any, team: nexus.Team) -> Any:
        await team.fan_out("sleeper", [Number(n=60_000)] * 4)

    @app.goal
    async def goal(request: Any, team: nexus.Team) -> Any:
        await team.goal(child)

    async with in_process_fleet(app) as fleet:
        accepted = fleet.goal("goal")
        await fleet.ledger.accept([accepted])
        await fleet.poke([accepted])
        while seen["running"] < 4:
            await asyncio.sleep(0)
        await fleet.ledger.append("", [RequestCancel(accepted.id, 0.0, "me")])
        record = await fleet.ledger.goal(accepted.id)
        await fleet.poke_cancel(record, "me")

        outcome = await fleet.outcome(accepted)
        while seen["cancelled"] < 4:
            await asyncio.sleep(0)
        children = [r for r in await fleet.ledger.unfinished("", 10)]

    assert outcome.status is GoalStatus.CANCELLED
    assert outcome.failure.message == "cancelled by me"
    assert all(r.cancel_requested_by or r.status.is_terminal for r in children)


async def test_a_goal_past_its_deadline_expires_and_its_agents_are_stopped() -> None:
    app, seen = make_app()

    @app.goal
    async def goal(request: Any, team: nexus.Team) -> Any:
        await team.ask("sleeper", Number(n=60_000))

    async with in_process_fleet(app) as fleet:
        outcome = await fleet.run("goal", timeout_s=0.1)

    assert outcome.status is GoalStatus.EXPIRED
    assert seen["cancelled"] == 1


async def test_state_is_kept_with_the_task_that_changed_it_and_a_failure_changes_nothing() -> None:
    app, _ = make_app()

    @app.goal
    async def goal(request: Number, team: nexus.Team) -> Number:
        return await team.ask("counter", request)

    async with in_process_fleet(app) as fleet:
        for n, ending in ((1, "succeeded"), (13, "failed"), (2, "succeeded")):
            assert (await fleet.run("goal", {"n": n})).status == ending
        for host in fleet.hosts_by_name.values():
            await host.runner.passivate(idle_only=False)
        outcome = await fleet.run("goal", {"n": 4})

    assert value(outcome) == {"n": 7}


async def test_one_task_at_a_time_in_order_unless_the_type_says_more() -> None:
    app, seen = make_app()

    async def goal(request: Any, team: nexus.Team) -> Any:
        await team.fan_out("sleeper", [Number(n=n) for n in range(1, 10)], key=lambda _: "one")
        await team.fan_out("doubler", [Number(n=n) for n in range(20)], key=lambda _: "one")

    value(await run(app, goal))

    assert seen["running_max"] == 3
    assert [n for agent, n in seen["calls"] if agent == "doubler/one"] == list(range(20))


async def test_a_full_mailbox_refuses_and_names_the_agent_type() -> None:
    app = nexus.App("test")

    @app.agent(mailbox_max=1, timeout_s=5)
    class Busy(nexus.Agent):
        async def handle(self, payload: Any) -> Any:
            await asyncio.sleep(60)

    @app.goal
    async def goal(request: Any, team: nexus.Team) -> Any:
        await team.fan_out(Busy, [1, 2, 3], key=lambda _: "one", timeout_s=0.3)

    async with in_process_fleet(app) as fleet:
        outcome = await fleet.run("goal", timeout_s=5)

    assert outcome.status is GoalStatus.FAILED


async def test_a_plain_def_runs_in_a_thread_and_an_idle_agent_is_stopped() -> None:
    app, seen = make_app()

    @app.goal
    async def goal(request: Any, team: nexus.Team) -> int:
        return await team.ask("threaded", Number(n=1))

    async with in_process_fleet(app, hosts=1) as fleet:
        assert value(await fleet.run("goal")) == 2
        (host,) = fleet.hosts_by_name.values()
        assert await host.runner.passivate() == 0
        assert await host.runner.passivate(idle_only=False) == 1

    assert seen["stopped"] == 1


async def test_a_result_that_is_not_json_fails_the_task() -> None:
    app, _ = make_app()

    async def goal(request: Any, team: nexus.Team) -> Any:
        return await team.ask("odd")

    outcome = await run(app, goal)

    assert outcome.status is GoalStatus.FAILED
    assert "cannot be written as JSON" in outcome.failure.message


async def test_a_payload_that_does_not_fit_the_agent_names_the_field() -> None:
    app, _ = make_app()

    async def goal(request: Any, team: nexus.Team) -> str:
        try:
            await team.ask("doubler", {"n": "x"})
        except InvalidArgumentError as error:
            return error.details["problems"][0]["field"]
        return ""

    assert value(await run(app, goal)) == "n"


async def test_a_goal_whose_function_raises_fails_with_its_error() -> None:
    app, _ = make_app()

    async def goal(request: Any, team: nexus.Team) -> Any:
        raise KeyError("lost")

    outcome = await run(app, goal)

    assert outcome.status is GoalStatus.FAILED
    assert outcome.failure.error_type == "KeyError"


async def steps(ledger: Any, goal_id: str) -> list[Any]:
    return [entry for entry in await ledger.journal(goal_id, 0, 1000) if entry.kind is EntryKind.STEP]


async def test_after_a_host_is_lost_the_goal_goes_on_and_finished_steps_are_not_run_again() -> None:
    app, seen = make_app()

    @app.goal
    async def goal(request: Any, team: nexus.Team) -> list[int]:
        first = await team.fan_out("doubler", [Number(n=n) for n in range(8)])
        second = await team.ask("sleeper", Number(n=150))
        return [answer.n for answer in first] + [second]

    async with in_process_fleet(app, hosts=3) as fleet:
        accepted = fleet.goal("goal")
        await fleet.ledger.accept([accepted])
        await fleet.poke([accepted])
        while seen["running"] < 1 or len(await steps(fleet.ledger, accepted.id)) < 8:
            await asyncio.sleep(0)
        record = await fleet.ledger.goal(accepted.id)
        await fleet.lose(record.host)

        outcome = await fleet.outcome(accepted)
        journal = await fleet.ledger.journal(accepted.id, 0, 1000)

    assert value(outcome) == [n * 2 for n in range(8)] + [150]
    assert len([call for call in seen["calls"] if call[0].startswith("doubler/")]) == 8
    assert [entry.kind for entry in journal].count(EntryKind.FINISHED) == 1


async def test_an_agents_failure_is_an_error_that_can_be_caught() -> None:
    app, _ = make_app()

    async def goal(request: Any, team: nexus.Team) -> str:
        with pytest.raises(TaskFailedError) as caught:
            await team.ask("flaky", Number(n=9), key="k")
        return caught.value.details["agent"]

    assert value(await run(app, goal)) == "flaky/k"


async def test_private_agents_live_and_end_with_their_goal() -> None:
    app = nexus.App("test")

    @app.agent(scope="goal")
    class Scratch(nexus.Agent):
        async def handle(self, payload: int) -> int:
            self.total = getattr(self, "total", 0) + payload
            return self.total

    @app.goal
    async def goal(request: Any, team: nexus.Team) -> int:
        await team.ask(Scratch, 2)
        return await team.ask(Scratch, 3)

    async with in_process_fleet(app, settings=Settings()) as fleet:
        assert value(await fleet.run("goal")) == 5
        assert value(await fleet.run("goal")) == 5
        while await fleet.agents(10):
            await asyncio.sleep(0)


async def test_a_goal_that_submits_itself_ends_at_the_depth_that_is_set() -> None:
    app, _ = make_app()
    depths: list[int] = []

    @app.goal
    async def again(request: Any, team: nexus.Team) -> Any:
        depths.append(team.goal_id.count("."))
        return await team.goal("again")

    async with in_process_fleet(app, settings=Settings(goals=CoordinatorSettings(depth_max=5))) as fleet:
        outcome = await fleet.run("again", timeout_s=10)

    assert outcome.status is GoalStatus.FAILED and outcome.failure is not None
    assert "5 deep (goals.depth_max)" in outcome.failure.message
    assert outcome.failure.message.count("goal again") == 1
    assert depths == [0, 1, 2, 3, 4, 5]
