"""An agent runner over a real write stream and ledger, without hosts and goals around it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson

from nexus_ray.agents.runner import AgentRunner, RunnerSettings
from nexus_ray.agents.task import AgentState, TaskOrder, TaskResult
from nexus_ray.app import App
from nexus_ray.core.clock import Clock, SystemClock
from nexus_ray.core.context import CallContext
from nexus_ray.core.deadline import Deadline
from nexus_ray.core.identity import AgentId
from nexus_ray.goals.stream import WriteStream
from nexus_ray.ledger.memory import MemoryLedger
from tests.support.in_process import SESSION
from tests.support.records import a_goal


@dataclass
class Bench:
    """One runner; `ask` runs a task of the goal `goal-1`, each a step of its own."""

    runner: AgentRunner
    ledger: MemoryLedger
    clock: Clock
    asked: int = 0

    def order(self, agent: str, payload: Any = None, *, timeout_s: float = 20.0, private: bool = False) -> TaskOrder:
        self.asked += 1
        deadline_at = self.clock.now() + timeout_s
        headers = CallContext(SESSION, Deadline(deadline_at)).to_headers()
        return TaskOrder(
            "goal-1", f"s-{self.asked}", AgentId.parse(agent), orjson.dumps(payload), headers, deadline_at, private
        )

    async def ask(self, agent: str, payload: Any = None, *, is_local: bool = False, **options: Any) -> TaskResult:
        return await self.runner.run(self.order(agent, payload, **options), is_local=is_local)

    async def value(self, agent: str, payload: Any = None, **options: Any) -> Any:
        result = await self.ask(agent, payload, **options)
        assert result.failure is None, result.failure
        return orjson.loads(result.value)

    async def state(self, agent: str) -> AgentState | None:
        return await self.ledger.agent_state(AgentId.parse(agent))


@contextlib.asynccontextmanager
async def bench(
    app: App, *, ledger: MemoryLedger | None = None, clock: Clock | None = None, isolation: Any = None, **limits: Any
) -> AsyncIterator[Bench]:
    ledger = ledger or MemoryLedger()
    await ledger.accept([a_goal()], "host-a")
    stream = WriteStream(ledger, "host-a")
    stream.start()
    clock = clock or SystemClock()
    runner = AgentRunner(
        app.agents, host="host-a", recorder=stream, clock=clock, settings=RunnerSettings(**limits), isolation=isolation
    )
    try:
        yield Bench(runner, ledger, clock)
    finally:
        await runner.close()
        await stream.close()


async def until(is_so: Any) -> None:
    """Give the loop its turns until something is so, ten seconds at the most."""
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0)
