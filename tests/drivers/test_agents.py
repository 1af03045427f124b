"""One host's agents: hooks, payloads, state, limits, turns and what user code may do to them."""

import asyncio
import dataclasses
import threading
from typing import Any

import pytest
from pydantic import BaseModel

import nexus_ray as nexus
from nexus_ray.agents.task import TaskOrder
from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import FencedError, ResourceExhaustedError, UnavailableError
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.memory import MemoryLedger
from tests.support.runners import bench, until

MIB = 1024 * 1024


@dataclasses.dataclass
class Point:
    x: int
    tags: list[str] = dataclasses.field(default_factory=list)


class Total(BaseModel):
    n: int = 0


@pytest.fixture
def app() -> nexus.App:
    return nexus.App("test")


# --- start and stop


async def test_start_comes_before_the_first_task_and_stop_after_the_last(app: nexus.App) -> None:
    story: list[str] = []

    @app.agent
    class Reader(nexus.Agent):
        async def start(self) -> None:
            await asyncio.sleep(0)
            story.append(f"start {self.id}")

        async def handle(self, payload: int) -> int:
            story.append(f"handle {payload}")
            return payload

        async def stop(self) -> None:
            story.append("stop")

    async with bench(app) as host:
        await asyncio.gather(host.ask("reader/a", 1), host.ask("reader/a", 2))
        await host.runner.passivate(idle_only=False)
        await host.ask("reader/a", 3)

    begin = "start reader/a"
    assert story == [begin, "handle 1", "handle 2", "stop", begin, "handle 3", "stop"]


@pytest.mark.parametrize("error", [RuntimeError("no licence"), SystemExit(1), KeyboardInterrupt()])
async def test_a_start_that_raises_fails_its_task_and_the_next_task_starts_again(
    app: nexus.App, error: BaseException
) -> None:
    starts = []

    @app.agent
    class Reader(nexus.Agent):
        async def start(self) -> None:
            starts.append(1)
            if len(starts) == 1:
                raise error

        async def handle(self, payload: Any) -> int:
            return 1

    async with bench(app) as host:
        failed = await host.ask("reader/a")
        assert failed.failure is not None and failed.failure.error_type == type(error).__name__
        assert await host.value("reader/a") == 1


@pytest.mark.parametrize("error", [RuntimeError("x"), SystemExit(1), KeyboardInterrupt()])
async def test_a_stop_that_raises_is_nobodys_trouble(app: nexus.App, error: BaseException) -> None:
    @app.agent
    class Reader(nexus.Agent):
        async def handle(self, payload: Any) -> int:
            return 1

        async def stop(self) -> None:
            raise error

    async with bench(app) as host:
        await host.ask("reader/a")
        assert await host.runner.passivate(idle_only=False) == 1
        assert await host.value("reader/a") == 1


async def test_a_stop_that_hangs_is_given_up_and_holds_up_no_other(app: nexus.App) -> None:
    stopped = []

    @app.agent
    class Reader(nexus.Agent):
        async def handle(self, payload: Any) -> int:
            return 1

        async def stop(self) -> None:
            if self.id.key == "hangs":
                await asyncio.sleep(3600)
            stopped.append(self.id.key)

    async with bench(app, stop_s_max=0.02) as host:
        for key in ("hangs", "a", "b"):
            await host.ask(f"reader/{key}")
        assert await host.runner.passivate(idle_only=False) == 3

    assert sorted(stopped) == ["a", "b"]


# --- what goes in and comes out


async def test_models_dataclasses_and_plain_json_are_taken_and_given(app: nexus.App) -> None:
    @app.agent
    class Model(nexus.Agent):
        async def handle(self, payload: Total) -> Total:
            return Total(n=payload.n + 1)

    @app.agent
    class Data(nexus.Agent):
        async def handle(self, payload: Point) -> Point:
            return Point(payload.x + 1, [*payload.tags, "b"])

    @app.agent
    class Plain(nexus.Agent):
        async def handle(self, payload: Any) -> Any:
            return {"was": payload, "point": Point(1), "total": Total(), "set": {2, 1}}

    async with bench(app) as host:
        assert await host.value("model/k", {"n": 1}) == {"n": 2}
        assert await host.value("data/k", {"x": 1, "tags": ["a"]}) == {"x": 2, "tags": ["a", "b"]}
        assert await host.value("plain/k", [None, 1.5]) == {
            "was": [None, 1.5], "point": {"x": 1, "tags": []}, "total": {"n": 0}, "set": [1, 2],
        }  # fmt: skip
        misfit = await host.ask("data/k", {"x": "one"})

    assert misfit.failure is not None and misfit.failure.code == "invalid_argument" and "x:" in misfit.failure.message


@pytest.mark.parametrize("answer", [object(), {1: {2}}, {"a": lambda: 1}, 2**70, "\ud800", b"bytes"])
async def test_a_result_that_is_not_json_fails_its_task_and_the_agent_lives_on(app: nexus.App, answer: Any) -> None:
    @app.agent
    class Odd(nexus.Agent):
        async def handle(self, payload: bool) -> Any:
            return answer if payload else "fine"

    async with bench(app) as host:
        failed = await host.ask("odd/k", True)
        assert failed.failure is not None and "cannot be written as JSON" in failed.failure.message
        assert await host.value("odd/k", False) == "fine"


@pytest.mark.parametrize("is_local", [True, False])
async def test_a_result_or_state_over_the_limit_fails_its_task(app: nexus.App, is_local: bool) -> None:
    @app.agent
    class Long(nexus.Agent):
        state: list[str]

        async def handle(self, payload: int) -> str:
            self.state.append("x" * payload)
            return "x" * payload

    async with bench(app, body_bytes_max=100) as host:
        for length, is_fine in ((30, True), (150, False), (80, False), (30, True)):
            result = await host.ask("long/k", length, is_local=is_local)
            assert (result.failure is None) is is_fine, length
        state = await host.state("long/k")

    assert state is not None and (state.version, len(state.body)) == (2, 67)


@pytest.mark.parametrize("is_local", [True, False])
async def test_a_result_that_the_ledger_will_never_take_is_a_failure_and_not_asked_for_again(
    app: nexus.App, is_local: bool
) -> None:
    @app.agent
    class Long(nexus.Agent):
        state: list[str]

        async def handle(self, payload: int) -> str:
            self.state.append("x")
            return "x" * payload

    async with bench(app, ledger=MemoryLedger(LedgerSettings(body_bytes_max=500))) as host:
        failed = await host.ask("long/k", 600, is_local=is_local)
        assert failed.failure is not None and failed.failure.code == "invalid_argument"
        assert await host.value("long/k", 1, is_local=is_local) == "x"
        state = await host.state("long/k")

    assert state is not None and state.version == 1


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), MemoryError("x")])
@pytest.mark.parametrize("is_async", [True, False])
async def test_whatever_an_agent_raises_its_host_lives_on(
    app: nexus.App, raised: BaseException, is_async: bool
) -> None:
    def fail(payload: bool) -> int:
        if payload:
            raise raised
        return 1

    if is_async:

        @app.agent("odd")
        class AsyncOdd(nexus.Agent):
            async def handle(self, payload: bool) -> int:
                return fail(payload)
    else:

        @app.agent("odd")
        class ThreadOdd(nexus.Agent):
            def handle(self, payload: bool) -> int:
                return fail(payload)

    async with bench(app) as host:
        failed = await host.ask("odd/k", True)
        assert failed.failure is not None and failed.failure.error_type == type(raised).__name__
        assert (failed.failure.agent, failed.failure.host, failed.failure.attempts) == ("odd/k", "host-a", 1)
        assert await host.value("odd/k", False) == 1


# --- time, turns and state


async def test_a_handle_that_hangs_past_its_deadline_fails_and_lets_the_next_one_in(app: nexus.App) -> None:
    @app.agent(timeout_s=0.02)
    class Slow(nexus.Agent):
        async def handle(self, payload: float) -> str:
            await asyncio.sleep(payload)
            return "done"

    async with bench(app) as host:
        hung, after = await asyncio.gather(host.ask("slow/k", 3600), host.ask("slow/k", 0))
        late = await host.ask("slow/k", 3600, timeout_s=0.01)

    assert hung.failure is not None and hung.failure.code == "deadline_exceeded" and "slow/k" in hung.failure.message
    assert after.value == b'"done"' and late.failure is not None and late.failure.code == "deadline_exceeded"


async def test_a_task_whose_deadline_passes_while_it_waits_never_runs(app: nexus.App) -> None:
    handled = []

    @app.agent
    class Slow(nexus.Agent):
        async def handle(self, payload: int) -> int:
            handled.append(payload)
            await asyncio.sleep(0.05)
            return payload

    async with bench(app) as host:
        first, second = await asyncio.gather(host.ask("slow/k", 1), host.ask("slow/k", 2, timeout_s=0.01))

    assert first.failure is None and handled == [1]
    assert second.failure is not None and (second.failure.code, second.attempts) == ("deadline_exceeded", 0)


@pytest.mark.parametrize("ending", ["raises", "cancelled", "hangs"])
async def test_state_that_an_unfinished_task_changed_is_put_back(app: nexus.App, ending: str) -> None:
    changed = asyncio.Event()

    @app.agent(timeout_s=0.05)
    class Counter(nexus.Agent):
        state: Total

        async def handle(self, payload: int) -> int:
            self.state.n += payload
            if payload == 100:
                changed.set()
                if ending == "raises":
                    raise ValueError("unlucky")
                await asyncio.sleep(3600)
            return self.state.n

    async with bench(app) as host:
        assert await host.value("counter/k", 1) == 1
        unfinished = asyncio.ensure_future(host.ask("counter/k", 100))
        await changed.wait()
        if ending == "cancelled":
            unfinished.cancel()
        await asyncio.wait([unfinished])
        assert await host.value("counter/k", 2) == 3
        state = await host.state("counter/k")

    assert state is not None and (state.version, state.body) == (2, b'{"n":3}')


async def test_a_thread_that_goes_on_after_its_deadline_keeps_its_turn_and_changes_nothing(app: nexus.App) -> None:
    release = threading.Event()
    running: list[int] = []
    overlaps: list[int] = []

    @app.agent(timeout_s=0.03)
    class Counter(nexus.Agent):
        state: Total

        def handle(self, payload: int) -> int:
            running.append(payload)
            overlaps.append(len(running))
            if payload == 100:
                release.wait(10)
                self.state.n += payload
            running.pop()
            self.state.n += 1
            return self.state.n

    async with bench(app) as host:
        late = await host.ask("counter/k", 100)
        assert late.failure is not None and late.failure.code == "deadline_exceeded"
        following = asyncio.ensure_future(host.ask("counter/k", 1))
        await asyncio.sleep(0)
        assert await host.runner.passivate(idle_only=False) == 0
        release.set()
        assert (await following).value == b"1"
        await until(lambda: host.runner.active(1)[0][1] == 0)

    assert overlaps == [1, 1]


async def test_a_late_thread_takes_one_turn_of_several_and_no_more(app: nexus.App) -> None:
    release = threading.Event()

    @app.agent(concurrency=2, timeout_s=0.3)
    class Worker(nexus.Agent):
        def handle(self, payload: bool) -> int:
            if payload:
                release.wait(10)
            return 1

    async with bench(app) as host:
        stuck = await host.ask("worker/k", True)
        assert stuck.failure is not None
        for _ in range(3):  # Each of these came and went by the other turn.
            assert (await host.ask("worker/k", False)).failure is None
        release.set()
        await until(lambda: host.runner.active(1)[0][1] == 0)
        results = await asyncio.gather(*(host.ask("worker/k", False) for _ in range(4)))

        assert all(result.failure is None for result in results) and host.runner.active(1)[0][1:] == (0, 0)


def test_durable_state_and_several_tasks_at_once_are_refused_together(app: nexus.App) -> None:
    class Counter(nexus.Agent):
        state: Total

        async def handle(self, payload: int) -> int:
            return payload

    with pytest.raises(TypeError, match="one task at a time"):
        app.agent(concurrency=2)(Counter)
    app.agent(Counter)


# --- limits and idleness


async def test_a_full_mailbox_names_its_agent_and_says_when_to_come_back(app: nexus.App) -> None:
    gate = asyncio.Event()

    @app.agent(mailbox_max=2)
    class Busy(nexus.Agent):
        async def handle(self, payload: Any) -> int:
            await gate.wait()
            return 1

    async with bench(app) as host:
        waiting = [asyncio.ensure_future(host.ask("busy/k")) for _ in range(3)]
        await until(lambda: host.runner.active(1) and host.runner.active(1)[0][1:] == (1, 2))
        with pytest.raises(ResourceExhaustedError) as caught:
            await host.ask("busy/k")
        gate.set()

        assert "busy/k" in str(caught.value) and caught.value.details["retry_after_s"] > 0
        assert [result.value for result in await asyncio.gather(*waiting, host.ask("busy/other"))] == [b"1"] * 4


async def test_memory_is_made_by_the_agents_that_were_idle_longest(app: nexus.App) -> None:
    gate = asyncio.Event()
    clock = ManualClock()

    @app.agent
    class Reader(nexus.Agent):
        async def handle(self, payload: Any) -> int:
            if payload:
                await gate.wait()
            return 1

    async with bench(app, clock=clock, memory_bytes_max=64 * MIB) as host:
        busy = asyncio.ensure_future(host.ask("reader/busy", True, timeout_s=600.0))
        for number in range(39):
            clock.advance(1.0)
            await host.ask(f"reader/{number}")
        assert await host.runner.make_room(64 * MIB) == 0
        assert await host.runner.make_room(64 * MIB + 1) == 4
        awake = {agent.key for agent, _, _ in host.runner.active(100)}
        while await host.runner.make_room(65 * MIB):
            pass
        assert host.runner.counts() == {"reader": 1}  # The one at work stays, however little room there is.
        gate.set()
        await busy

    assert awake == {"busy", *(str(number) for number in range(4, 39))}


async def test_a_host_full_of_agents_refuses_another_and_takes_it_when_one_has_gone(app: nexus.App) -> None:
    @app.agent
    class Reader(nexus.Agent):
        async def handle(self, payload: Any) -> int:
            return 1

    async with bench(app, agents_max=2) as host:
        await host.ask("reader/a")
        await host.ask("reader/b")
        with pytest.raises(ResourceExhaustedError):
            await host.ask("reader/c")
        assert await host.value("reader/a") == 1
        assert host.runner.counts() == {"reader": 2}
        await host.runner.passivate(idle_only=False)

        assert await host.value("reader/c") == 1 and host.runner.counts() == {"reader": 1}


async def test_an_agent_is_passivated_when_it_was_idle_as_long_as_its_type_says(app: nexus.App) -> None:
    clock = ManualClock()

    @app.agent(idle_s=10)
    class Reader(nexus.Agent):
        async def handle(self, payload: Any) -> int:
            return 1

    async with bench(app, clock=clock) as host:
        await host.ask("reader/a")
        clock.advance(9)
        await host.ask("reader/b")
        assert await host.runner.passivate() == 0
        clock.advance(1)
        assert await host.runner.passivate() == 1
        assert [str(agent) for agent, _, _ in host.runner.active(9)] == ["reader/b"]
        assert await host.runner.passivate(keep=lambda agent: False) == 1


async def test_private_agents_go_with_their_goal_and_others_stay(app: nexus.App) -> None:
    @app.agent
    class Reader(nexus.Agent):
        async def handle(self, payload: Any) -> int:
            return 1

    async with bench(app) as host:
        await host.ask("reader/goal-1:a", private=True)
        await host.ask("reader/shared")
        await host.runner.forget_goal("goal-2")
        assert host.runner.counts() == {"reader": 2}
        await host.runner.forget_goal("goal-1")

        assert [str(agent) for agent, _, _ in host.runner.active(9)] == ["reader/shared"]


async def test_a_draining_host_takes_no_tasks_and_a_fenced_one_commits_none(app: nexus.App) -> None:
    @app.agent
    class Counter(nexus.Agent):
        state: Total

        async def handle(self, payload: int) -> int:
            self.state.n += payload
            return self.state.n

    async with bench(app) as host:
        assert await host.value("counter/k", 1) == 1
        await host.ledger.fence("host-a")
        with pytest.raises(FencedError):
            await host.ask("counter/k", 1)
        await host.runner.drain()
        with pytest.raises(UnavailableError):
            await host.ask("counter/k", 1)
        state = await host.state("counter/k")

    assert state is not None and state.version == 1


async def test_an_agent_that_moved_on_elsewhere_is_loaded_anew(app: nexus.App) -> None:
    @app.agent
    class Counter(nexus.Agent):
        state: Total

        async def handle(self, payload: int) -> int:
            self.state.n += payload
            return self.state.n

    async with bench(app) as here, bench(app, ledger=here.ledger) as there:
        there.asked = 100
        assert await here.value("counter/k", 1) == 1
        assert await there.value("counter/k", 10) == 11
        with pytest.raises(UnavailableError):
            await here.ask("counter/k", 100)

        assert await here.value("counter/k", 100) == 111


class OneProcess:
    """Implements `Isolation` and `IsolatedAgent`: a process that may hang or die, and can be ended."""

    def __init__(self) -> None:
        self.started = self.stopped = 0

    async def start(self, agent: Any, spec: Any) -> "OneProcess":
        self.started += 1
        return self

    async def handle(self, order: TaskOrder, attempt: int, state: bytes) -> tuple[bytes, bytes]:
        if order.payload == b'"hang"':
            await asyncio.sleep(3600)
        if order.payload == b'"die"':
            raise UnavailableError("its process died")
        return b'"fine"', b""

    async def stop(self) -> None:
        self.stopped += 1


@pytest.mark.parametrize("ending", ["hang", "die", "cancel"])
async def test_a_process_that_hangs_dies_or_is_told_to_stop_is_ended_and_made_anew(
    app: nexus.App, ending: str
) -> None:
    process = OneProcess()

    @app.agent(isolation="process", timeout_s=0.03)
    class Alone(nexus.Agent):
        async def handle(self, payload: str) -> str:
            return payload

    async with bench(app, isolation=process) as host:
        assert await host.value("alone/k", "x") == "fine"
        asked = asyncio.ensure_future(host.ask("alone/k", "die" if ending == "die" else "hang"))
        if ending == "cancel":
            while not any(running for _, running, _ in host.runner.active(10)):
                await asyncio.sleep(0)
            asked.cancel()
        await asyncio.wait([asked])
        if ending != "cancel":
            failure = asked.result().failure
            assert failure is not None
            assert failure.code == ("unavailable" if ending == "die" else "deadline_exceeded")
        assert (process.started, process.stopped) == (1, 1)
        assert await host.value("alone/k", "x") == "fine"

    assert (process.started, process.stopped) == (2, 2)


async def test_without_processes_an_isolated_agent_is_refused_plainly(app: nexus.App) -> None:
    @app.agent(isolation="process")
    class Alone(nexus.Agent):
        async def handle(self, payload: str) -> str:
            return payload

    async with bench(app) as host:
        failed = await host.ask("alone/k", "x")

    assert failed.failure is not None and failed.failure.code == "unavailable"


async def test_an_agent_that_awaits_something_cancelled_fails_its_task_and_stops_nobody(app: nexus.App) -> None:
    @app.agent
    class Reader(nexus.Agent):
        async def handle(self, payload: bool) -> int:
            if payload:
                gone = asyncio.ensure_future(asyncio.sleep(60))
                gone.cancel()
                await gone
            return 1

    async with bench(app) as host:
        failed = await host.ask("reader/a", True)

        assert failed.failure is not None and failed.failure.error_type == "CancelledError"
        assert await host.value("reader/a", False) == 1
