import asyncio
import threading
from collections.abc import Callable
from typing import Any

import orjson
import pytest

import nexus_ray as nexus
from nexus_ray.agents.effects import _VALUE_BYTES_MAX
from nexus_ray.core.errors import EffectUnknownError, FencedError, NotDoneError, UnavailableError
from nexus_ray.goals.effects import effects_from_afar
from nexus_ray.ledger.goal import EntryKind, GoalStatus, Step, Write
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.ledger.ports import answer_key
from tests.support.in_process import in_process_fleet
from tests.support.records import a_finish
from tests.support.runners import bench, until


class World:
    """What is outside: it counts, and does what a test asks of it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.then: Callable[[], Any] = lambda: None

    def charge(self, key: str) -> dict[str, Any]:
        self.done.append(key)
        self.then()
        return {"receipt": len(self.done)}


def make_app(world: World) -> nexus.App:
    app = nexus.App("shop")

    @app.agent(retries=3)
    class Payer(nexus.Agent):
        async def handle(self, payload: Any, task: nexus.Task) -> Any:
            return await task.effect("charge", world.charge, idempotent=payload == "idempotent")

    @app.agent(retries=3)
    class Threaded(nexus.Agent):
        def handle(self, payload: Any, task: nexus.Task) -> Any:
            return task.run_effect("charge", world.charge)

    return app


def kinds(ledger: MemoryLedger, goal_id: str = "goal-1") -> list[str]:
    effects = (EntryKind.EFFECT_BEGUN, EntryKind.EFFECT_ENDED)
    return [entry.kind.value for entry in ledger._entries if entry.goal_id == goal_id and entry.kind in effects]


@pytest.mark.parametrize("agent", ["payer", "threaded"])
async def test_an_effect_has_its_intent_on_disk_before_it_is_done_and_its_result_after(agent: str) -> None:
    world = World()
    async with bench(make_app(world)) as at:
        seen: list[list[str]] = []
        world.then = lambda: seen.append(kinds(at.ledger))

        value = await at.value(f"{agent}/a")

        assert value == {"receipt": 1}
        assert seen == [["effect_begun"]]
        assert kinds(at.ledger) == ["effect_begun", "effect_ended"]
        assert world.done == ["goal-1/s-1!charge"]
        entry = await at.ledger.entry("goal-1", "s-1!charge")
        assert entry is not None
        assert orjson.loads(entry.body) == {
            "effect": "charge", "agent": f"{agent}/a", "host": "host-a", "attempt": 1, "idempotent": False,
        }  # fmt: skip


@pytest.mark.parametrize("agent", ["payer", "threaded"])
async def test_a_task_that_runs_again_gets_the_recorded_result_and_does_nothing(agent: str) -> None:
    world = World()
    async with bench(make_app(world)) as at:
        order = at.order(f"{agent}/a")
        first = await at.runner.run(order, is_local=False)

        again = await at.runner.run(order, is_local=False)

        assert first.value == again.value == b'{"receipt":1}'
        assert len(world.done) == 1


@pytest.mark.parametrize("agent", ["payer", "threaded"])
async def test_what_was_begun_and_never_seen_to_end_is_unknown_and_is_not_tried_again(agent: str) -> None:
    world = World()
    async with bench(make_app(world)) as at:
        await at.ledger.append("host-a", [Step("goal-1", "s-1!charge", 1.0, b"{}", kind=EntryKind.EFFECT_BEGUN)])

        result = await at.ask(f"{agent}/a")

        assert result.failure is not None
        assert (result.failure.code, result.failure.error_type) == ("aborted", "EffectUnknownError")
        assert "unknown" in result.failure.message
        assert result.attempts == 1
        assert world.done == []


async def test_an_idempotent_effect_is_done_again_under_the_same_key() -> None:
    world = World()
    async with bench(make_app(world)) as at:
        world.then = lambda: world.done[1:] or 1 / 0

        value = await at.value("payer/a", "idempotent")

        assert value == {"receipt": 2}
        assert world.done == ["goal-1/s-1!charge"] * 2
        assert kinds(at.ledger) == ["effect_begun", "effect_ended"]


@pytest.mark.parametrize("agent", ["payer", "threaded"])
async def test_an_effect_that_raised_may_have_been_done_so_a_retry_says_unknown(agent: str) -> None:
    world = World()
    async with bench(make_app(world)) as at:
        world.then = lambda: 1 / 0

        result = await at.ask(f"{agent}/a")

        assert result.failure is not None and result.failure.error_type == "EffectUnknownError"
        assert result.attempts == 2
        assert len(world.done) == 1


@pytest.mark.parametrize("agent", ["payer", "threaded"])
async def test_an_effect_that_says_that_nothing_was_done_is_tried_again(agent: str) -> None:
    world = World()
    async with bench(make_app(world)) as at:

        def refuse_twice() -> None:
            if len(world.done) < 3:
                raise NotDoneError("the desk is closed")

        world.then = refuse_twice

        value = await at.value(f"{agent}/a")

        assert value == {"receipt": 3}
        assert kinds(at.ledger) == ["effect_begun", "effect_ended"] * 3
        assert len(set(world.done)) == 1


async def test_a_fenced_host_does_nothing_outside_and_leaves_the_task_to_another() -> None:
    world = World()
    async with bench(make_app(world)) as at:
        await at.ledger.fence("host-a")

        with pytest.raises(UnavailableError):
            await at.ask("payer/a")

        assert world.done == []


async def test_nothing_is_done_outside_for_a_goal_that_has_ended() -> None:
    world = World()
    async with bench(make_app(world)) as at:
        await at.ledger.append("host-a", [a_finish()])

        result = await at.ask("payer/a")

        assert result.failure is not None and "has ended" in result.failure.message
        assert world.done == []


async def test_a_task_that_is_let_go_before_its_effect_was_done_leaves_it_known_as_not_done() -> None:
    world = World()

    class Slow(MemoryLedger):
        gate: asyncio.Event | None = None

        async def append(self, writer: str, writes: Any) -> list[bool]:
            if self.gate is not None:
                await self.gate.wait()
            return await super().append(writer, writes)

    ledger = Slow()
    async with bench(make_app(world), ledger=ledger) as at:
        ledger.gate = asyncio.Event()
        asked = at.runner.run(at.order("payer/a"), is_local=False)
        await until(lambda: at.runner.active(1) and at.runner.active(1)[0][1])
        for _ in range(5):
            await asyncio.sleep(0)

        asked.cancel()
        await asyncio.wait([asked])
        ledger.gate.set()
        await until(lambda: kinds(ledger) == ["effect_begun", "effect_ended"])
        at.asked = 0
        value = await at.value("payer/a")

    assert asked.cancelled()
    assert value == {"receipt": 1}


@pytest.mark.parametrize("result", [object(), "x" * (_VALUE_BYTES_MAX + 1)])
async def test_an_effect_whose_result_cannot_be_kept_was_done_all_the_same(result: Any) -> None:
    done: list[int] = []
    app = nexus.App("shop")

    @app.agent(retries=2)
    class Payer(nexus.Agent):
        async def handle(self, payload: Any, task: nexus.Task) -> Any:
            return await task.effect("charge", lambda: done.append(1) or result)

    async with bench(app) as at:
        answer = await at.ask("payer/a")

        assert answer.failure is not None and "the effect itself was done" in answer.failure.message
        assert len(done) == 1


async def test_a_function_gets_the_key_only_if_it_asks_for_it_and_may_be_async() -> None:
    app = nexus.App("shop")

    @app.agent
    class Payer(nexus.Agent):
        async def handle(self, payload: Any, task: nexus.Task) -> Any:
            async def later(key: str) -> str:
                await asyncio.sleep(0)
                return key

            return [
                await task.effect("a", later),
                await task.effect("b", lambda key: later(key)),
                await task.effect("c", lambda n=payload: n),
                await task.effect("d", threading.get_ident) != threading.get_ident(),
            ]

    async with bench(app) as at:
        assert await at.value("payer/a", 7) == ["goal-1/s-1!a", "goal-1/s-1!b", 7, True]


@pytest.mark.parametrize("name", ["", "a b", "a#2", "a=", "x" * 101])
async def test_a_name_that_could_be_taken_for_another_key_is_refused(name: str) -> None:
    app = nexus.App("shop")

    @app.agent
    class Payer(nexus.Agent):
        async def handle(self, payload: Any, task: nexus.Task) -> Any:
            return await task.effect(name, lambda: 1)

    async with bench(app) as at:
        result = await at.ask("payer/a")

        assert result.failure is not None and "not an effect's name" in result.failure.message
        assert kinds(at.ledger) == []


async def test_an_async_agent_that_would_block_its_host_is_told_what_to_write() -> None:
    app = nexus.App("shop")

    @app.agent
    class Payer(nexus.Agent):
        async def handle(self, payload: Any, task: nexus.Task) -> Any:
            return task.run_effect("charge", lambda: 1)

    async with bench(app) as at:
        result = await at.ask("payer/a")

        assert result.failure is not None and "await task.effect" in result.failure.message


async def test_an_agent_in_a_process_of_its_own_writes_in_the_name_of_its_host() -> None:
    ledger = MemoryLedger()
    async with bench(make_app(World()), ledger=ledger) as at:
        effects = effects_from_afar("host-a", ledger, at.clock)

        assert await effects.begin("goal-1", "s-1!x", b"{}")
        assert not await effects.begin("goal-1", "s-1!x", b"{}")
        assert await effects.end("goal-1", "s-1!x", b"1")
        assert await effects.recorded("goal-1", "s-1!x") == (b"{}", b"1")
        assert await ledger.entry("goal-1", answer_key("s-1!x")) is not None
        await ledger.fence("host-a")
        with pytest.raises(FencedError):
            await effects.begin("goal-1", "s-2!x", b"{}")


async def test_a_host_killed_between_intent_and_end_leaves_an_outcome_that_says_unknown() -> None:
    world = World()
    app = make_app(world)
    asked: list[str] = []

    @app.goal
    async def buy(request: Any, team: nexus.Team) -> Any:
        try:
            return await team.ask("payer", request)
        except EffectUnknownError as error:
            asked.append(error.details["error_type"])
            raise

    class Dying(MemoryLedger):
        """A ledger that a host can begin effects in, and never end one."""

        async def append(self, writer: str, writes: Any) -> list[bool]:
            if writer == "host-0" and any(_is_end(write) for write in writes):
                died.set()
                await asyncio.Event().wait()
            return await super().append(writer, writes)

    def _is_end(write: Write) -> bool:
        return isinstance(write, Step) and write.kind is EntryKind.EFFECT_ENDED

    died = asyncio.Event()
    async with in_process_fleet(app, hosts=1, ledger=Dying()) as fleet:
        goal = fleet.goal("buy")
        await fleet.ledger.accept([goal])
        await fleet.poke([goal])
        await died.wait()
        fleet.add("host-1")

        fleet.hosts_by_name["host-0"].stream._task.cancel()  # type: ignore[union-attr]
        await fleet.lose("host-0")
        outcome = await fleet.outcome(goal)

    assert outcome.status is GoalStatus.FAILED
    assert outcome.failure is not None and outcome.failure.error_type == "EffectUnknownError"
    assert len(world.done) == 1
    assert asked == ["EffectUnknownError"]
