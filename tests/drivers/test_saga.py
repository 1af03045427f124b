"""Sagas: what was done is undone, once, in reverse order, whatever happens meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest

import nexus_ray as nexus
from nexus_ray.config import Settings
from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import SagaFailedError
from nexus_ray.goals import saga as module
from nexus_ray.goals.limits import CoordinatorSettings
from nexus_ray.ledger.goal import EntryKind, Goal, GoalStatus, Outcome, RequestCancel, Step
from tests.support.in_process import InProcessFleet, in_process_fleet

SETTINGS = Settings(goals=CoordinatorSettings(sweep_every_s=0.01, clock_look_s=0.002))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_FIRST_S", 0.002)
    monkeypatch.setattr(module, "_PAUSE_CEILING_S", 0.005)


class Shop:
    """An app of a desk that does and undoes, and what it did. A test says what is to break, and what is to hang."""

    def __init__(self) -> None:
        self.app = nexus.App("shop")
        self.done: list[str] = []
        self.keys: list[str] = []
        self.breaks: dict[str, Exception] = {}
        self.breaks_once: dict[str, Exception] = {}
        self.hangs: set[str] = set()
        self.let_go = asyncio.Event()
        shop = self

        @self.app.agent(concurrency=100)
        class Desk(nexus.Agent):
            async def handle(self, payload: str, task: nexus.Task) -> str:
                if payload in shop.hangs:
                    shop.done.append(f"{payload}…")
                    await shop.let_go.wait()
                if payload in shop.breaks_once:
                    raise shop.breaks_once.pop(payload)
                if payload in shop.breaks:
                    raise shop.breaks[payload]
                shop.keys.append(task.idempotency_key)
                shop.done.append(payload)
                return payload.upper()

        @self.app.goal
        async def order(request: list[str], team: nexus.Team) -> list[str]:
            return await team.saga(steps(*request))

        @self.app.goal
        async def order_and_tell(request: list[str], team: nexus.Team) -> Any:
            try:
                return await team.saga(steps(*request))
            except SagaFailedError as error:
                return error.details

        @self.app.goal
        async def hurried(request: list[str], team: nexus.Team) -> str:
            try:
                async with asyncio.timeout(0.02):
                    await team.saga(steps(*request))
            except TimeoutError:
                return "too slow"
            return "done"

        @self.app.goal
        async def stubborn(request: Any, team: nexus.Team) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                shop.done.append("no")
                await asyncio.Event().wait()


def steps(*names: str) -> list[nexus.SagaStep]:
    def undo(name: str) -> nexus.Call | None:
        return None if name == "look" else nexus.Call("desk", f"un{name}", name)

    return [nexus.SagaStep(nexus.Call("desk", name, name), undo(name)) for name in names]


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
async def fleet(shop: Shop, clock: ManualClock) -> AsyncIterator[InProcessFleet]:
    async with in_process_fleet(shop.app, hosts=1, settings=SETTINGS, clock=clock) as fleet:
        yield fleet


async def until(is_so: Callable[[], Any]) -> Any:
    async with asyncio.timeout(10):
        while True:
            found = is_so()
            found = await found if isinstance(found, Awaitable) else found
            if found:
                return found
            await asyncio.sleep(0.001)


async def submit(fleet: InProcessFleet, type_name: str, *names: str, timeout_s: float = 600.0) -> Goal:
    goal = fleet.goal(type_name, names, timeout_s=timeout_s)
    await fleet.ledger.accept([goal])
    await fleet.poke([goal])
    return goal


async def ended(fleet: InProcessFleet, goal: Goal) -> Outcome:
    async def outcome() -> Outcome | None:
        record = await fleet.ledger.goal(goal.id)
        return record.outcome if record else None

    found: Outcome = await until(outcome)
    return found


async def cancel(fleet: InProcessFleet, goal: Goal) -> None:
    await fleet.ledger.append("", [RequestCancel(goal.id, 0.0, "ada")])
    for host in fleet.hosts_by_name.values():
        host.coordinator.cancel(goal.id, "ada")


async def restart(fleet: InProcessFleet) -> None:
    """The only host dies, and another one takes its place."""
    (name,) = fleet.hosts_by_name
    fleet.add(f"{name}'")
    await fleet.lose(name)


async def has_step(fleet: InProcessFleet, goal: Goal, end: str) -> bool:
    return any(entry.step_key.endswith(end) for entry in await fleet.ledger.journal(goal.id, 0, 1000))


async def notes(fleet: InProcessFleet, goal: Goal) -> list[Any]:
    entries = await fleet.ledger.journal(goal.id, 0, 1000)
    return [orjson.loads(entry.body) for entry in entries if entry.kind is EntryKind.NOTE]


async def test_a_saga_that_succeeds_answers_in_order_and_undoes_nothing(shop: Shop, fleet: InProcessFleet) -> None:
    outcome = await ended(fleet, await submit(fleet, "order", "book", "look", "pay"))

    assert orjson.loads(outcome.result) == ["BOOK", "LOOK", "PAY"]
    assert shop.done == ["book", "look", "pay"]


async def test_what_was_done_before_a_failure_is_undone_last_first(shop: Shop, fleet: InProcessFleet) -> None:
    shop.breaks["ship"] = ValueError("no truck")

    outcome = await ended(fleet, await submit(fleet, "order", "book", "look", "pay", "ship", "thank"))

    assert shop.done == ["book", "look", "pay", "unpay", "unbook"]
    assert outcome.status is GoalStatus.FAILED and outcome.failure is not None
    assert outcome.failure.error_type == "SagaFailedError"
    assert "failed at desk/ship" in outcome.failure.message and "no truck" in outcome.failure.message
    assert "compensated: desk/pay, desk/book" in outcome.failure.message


async def test_what_cannot_be_undone_is_named_and_keeps_no_other_from_it(
    shop: Shop, fleet: InProcessFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TRIES_MAX", 3)
    shop.breaks = {"ship": ValueError("no truck"), "unpay": ValueError("the bank is closed")}

    details = orjson.loads((await ended(fleet, await submit(fleet, "order_and_tell", "book", "pay", "ship"))).result)

    assert shop.done == ["book", "pay", "unbook"]
    assert details == {
        "failed": "desk/ship", "failed_with": "unknown", "compensated": ["desk/book"], "not_compensated": ["desk/pay"],
    }  # fmt: skip


async def test_a_compensation_is_tried_again_under_the_same_key(shop: Shop, fleet: InProcessFleet) -> None:
    shop.breaks["ship"] = ValueError("no truck")
    shop.breaks_once["unpay"] = ValueError("the bank is closed")
    goal = await submit(fleet, "order_and_tell", "book", "pay", "ship")

    details = orjson.loads((await ended(fleet, goal)).result)

    assert details["compensated"] == ["desk/pay", "desk/book"]
    tries = [entry for entry in await fleet.ledger.journal(goal.id, 0, 99) if ".undo1" in entry.step_key]
    assert [entry.step_key.rpartition(".")[2] for entry in tries] == ["undo1", "undo1#2"]
    assert "#" not in shop.keys[-2] and shop.keys[-2].endswith(".undo1")


async def test_an_action_whose_effect_is_unknown_is_undone_too(shop: Shop, fleet: InProcessFleet) -> None:
    shop.breaks["pay"] = nexus.EffectUnknownError("nobody saw it end")

    await ended(fleet, await submit(fleet, "order", "book", "pay"))

    assert shop.done == ["book", "unpay", "unbook"]


async def test_a_saga_with_a_malformed_step_begins_nothing(shop: Shop, fleet: InProcessFleet) -> None:
    @shop.app.goal
    async def odd(request: Any, team: nexus.Team) -> Any:
        good = nexus.SagaStep(nexus.Call("desk", "book"))
        return await team.saga([good, nexus.SagaStep(nexus.Call("desk", "pay"), nexus.Call("nobody", "unpay"))])

    @shop.app.goal
    async def empty(request: Any, team: nexus.Team) -> Any:
        return await team.saga([])

    await restart(fleet)
    outcome = await ended(fleet, await submit(fleet, "odd"))
    none = await ended(fleet, await submit(fleet, "empty"))

    assert outcome.failure is not None and outcome.failure.code == "not_found"
    assert none.failure is not None and none.failure.code == "invalid_argument"
    assert shop.done == []


async def test_a_goal_that_is_cancelled_undoes_what_it_did(shop: Shop, fleet: InProcessFleet) -> None:
    shop.hangs.add("ship")
    goal = await submit(fleet, "order", "book", "pay", "ship")
    await until(lambda: "ship…" in shop.done)

    await cancel(fleet, goal)
    outcome = await ended(fleet, goal)

    assert outcome.status is GoalStatus.CANCELLED
    # Nobody knows how far shipping came, so it is undone as well.
    assert shop.done == ["book", "pay", "ship…", "unship", "unpay", "unbook"]
    (note,) = await notes(fleet, goal)
    assert note["compensated"] == ["desk/ship", "desk/pay", "desk/book"] and note["not_compensated"] == []


async def test_a_goal_that_expires_undoes_what_it_did(shop: Shop, fleet: InProcessFleet, clock: ManualClock) -> None:
    shop.hangs.add("ship")
    goal = await submit(fleet, "order", "book", "pay", "ship", timeout_s=60)
    await until(lambda: "ship…" in shop.done)

    clock.advance(60)
    outcome = await ended(fleet, goal)

    assert outcome.status is GoalStatus.EXPIRED
    assert shop.done[-3:] == ["unship", "unpay", "unbook"]


async def test_a_goal_that_expires_while_it_undoes_goes_on_undoing(
    shop: Shop, fleet: InProcessFleet, clock: ManualClock
) -> None:
    shop.breaks["ship"] = ValueError("no truck")
    shop.hangs.add("unpay")
    goal = await submit(fleet, "order", "book", "pay", "ship", timeout_s=60)
    await until(lambda: "unpay…" in shop.done)

    clock.advance(60)
    await asyncio.sleep(0.02)
    await cancel(fleet, goal)
    shop.let_go.set()
    outcome = await ended(fleet, goal)

    assert outcome.status is GoalStatus.EXPIRED
    assert shop.done == ["book", "pay", "unpay…", "unpay", "unbook"]


@pytest.mark.parametrize("stop", ["failure", "cancelled", "expired"])
async def test_a_host_killed_while_it_undoes_is_followed_by_one_that_goes_on(
    shop: Shop, fleet: InProcessFleet, clock: ManualClock, stop: str
) -> None:
    if stop == "failure":
        shop.breaks["ship"] = ValueError("no truck")
    else:
        shop.hangs.add("ship")
    shop.hangs.add("unpay")
    goal = await submit(fleet, "order", "book", "pay", "ship", "thank", timeout_s=60)
    if stop != "failure":
        await until(lambda: "ship…" in shop.done)
        if stop == "cancelled":
            await cancel(fleet, goal)
        else:
            clock.advance(60)
    await until(lambda: "unpay…" in shop.done)
    # A result lingers for a moment; what dies with a host before it is on record is done again.
    await until(lambda: has_step(fleet, goal, ".back" if stop == "failure" else ".undo2"))
    shop.breaks.clear()  # Were it asked for again, it would succeed now; a saga that turned never goes forward again.
    shop.hangs.clear()

    await restart(fleet)
    outcome = await ended(fleet, goal)

    undone = [name for name in shop.done if name.startswith("un") and name != "unpay…"]
    assert undone == (["unship"] if stop != "failure" else []) + ["unpay", "unbook"]
    assert shop.done.count("book") == shop.done.count("pay") == 1
    assert "thank" not in shop.done and "ship" not in shop.done
    expected = {"failure": GoalStatus.FAILED, "cancelled": GoalStatus.CANCELLED, "expired": GoalStatus.EXPIRED}
    assert outcome.status is expected[stop]


async def test_a_goal_stopped_while_nobody_ran_it_undoes_what_it_did_and_asks_for_nothing_new(
    shop: Shop, fleet: InProcessFleet
) -> None:
    shop.hangs.add("pay")
    goal = await submit(fleet, "order", "book", "pay", "ship")
    await until(lambda: "pay…" in shop.done)
    await fleet.lose("host-0")
    shop.hangs.clear()

    await fleet.ledger.append("", [RequestCancel(goal.id, 0.0, "ada")])
    fleet.add("host-1")
    fleet.publish()
    outcome = await ended(fleet, goal)

    assert outcome.status is GoalStatus.CANCELLED
    assert shop.done == ["book", "pay…", "unpay", "unbook"]


async def test_a_goal_stopped_while_nobody_ran_it_runs_again_only_if_it_has_something_to_undo(
    shop: Shop, fleet: InProcessFleet
) -> None:
    runs: list[int] = []

    @shop.app.goal
    async def plain(request: Any, team: nexus.Team) -> Any:
        runs.append(1)
        return await team.ask("desk", "pay")

    await restart(fleet)
    shop.hangs.add("pay")
    goal = await submit(fleet, "plain")
    await until(lambda: "pay…" in shop.done)
    (name,) = fleet.hosts_by_name
    await fleet.lose(name)
    await fleet.ledger.append("", [RequestCancel(goal.id, 0.0, "ada")])
    fleet.add("host-2")
    fleet.publish()

    assert (await ended(fleet, goal)).status is GoalStatus.CANCELLED
    assert runs == [1] and shop.done == ["pay…"]


async def test_a_saga_that_never_began_is_not_undone(shop: Shop, fleet: InProcessFleet) -> None:
    @shop.app.goal
    async def two(request: Any, team: nexus.Team) -> None:
        await team.saga(steps("book"))
        await team.approval("go on?")
        await team.saga(steps("pay"))

    await restart(fleet)
    goal = await submit(fleet, "two")
    await until(lambda: fleet.ledger.questions(0, 1))
    (name,) = fleet.hosts_by_name
    await fleet.lose(name)
    await fleet.ledger.append("", [RequestCancel(goal.id, 0.0, "ada")])
    body = orjson.dumps({"approved": True, "by": "bob", "comment": ""})
    await fleet.ledger.append("", [Step(goal.id, "question:main=", 1.0, body, kind=EntryKind.ANSWERED)])
    fleet.add("host-2")
    fleet.publish()

    assert (await ended(fleet, goal)).status is GoalStatus.CANCELLED
    assert shop.done == ["book"]


async def test_a_saga_that_is_cut_off_by_its_own_goal_is_undone_before_the_goal_goes_on(
    shop: Shop, fleet: InProcessFleet
) -> None:
    shop.hangs.add("pay")

    outcome = await ended(fleet, await submit(fleet, "hurried", "book", "pay"))

    assert orjson.loads(outcome.result) == "too slow"
    assert shop.done == ["book", "pay…", "unpay", "unbook"]


async def test_a_host_that_drains_leaves_the_undoing_to_the_next(shop: Shop, clock: ManualClock) -> None:
    shop.breaks["ship"] = ValueError("no truck")
    shop.hangs.add("unpay")
    async with in_process_fleet(shop.app, hosts=2, settings=SETTINGS, clock=clock) as fleet:
        goal = await submit(fleet, "order", "book", "pay", "ship")
        await until(lambda: "unpay…" in shop.done)
        record = await fleet.ledger.goal(goal.id)
        assert record is not None
        first = record.host
        await fleet.drain(first)
        shop.hangs.clear()
        shop.let_go.set()

        outcome = await ended(fleet, goal)
        record = await fleet.ledger.goal(goal.id)

    assert record is not None and record.host != first
    assert outcome.failure is not None and outcome.failure.error_type == "SagaFailedError"
    assert shop.done == ["book", "pay", "unpay…", "unpay", "unbook"]


async def test_a_function_that_does_not_stop_holds_its_goal_up_for_the_grace_and_no_longer(clock: ManualClock) -> None:
    shop = Shop()
    settings = Settings(goals=CoordinatorSettings(sweep_every_s=0.01, stop_grace_s=0.03))
    async with in_process_fleet(shop.app, hosts=1, settings=settings, clock=clock) as fleet:
        goal = await submit(fleet, "stubborn")
        await asyncio.sleep(0.01)
        await cancel(fleet, goal)

        outcome = await ended(fleet, goal)
        (host,) = fleet.hosts_by_name.values()
        await until(lambda: host.coordinator.held == 0)

    assert shop.done == ["no"]
    assert outcome.status is GoalStatus.CANCELLED


async def test_what_takes_longer_than_the_grace_is_not_undone_and_said_so(clock: ManualClock) -> None:
    shop = Shop()
    shop.hangs |= {"pay", "unpay"}
    settings = Settings(goals=CoordinatorSettings(sweep_every_s=0.01, stop_grace_s=0.05))
    async with in_process_fleet(shop.app, hosts=1, settings=settings, clock=clock) as fleet:
        goal = await submit(fleet, "order", "book", "pay")
        await until(lambda: "pay…" in shop.done)
        await cancel(fleet, goal)

        outcome = await ended(fleet, goal)

    assert outcome.status is GoalStatus.CANCELLED
    assert "unpay" not in shop.done
