"""The app of the fleet under test; importable as `tests.ray.fleet_app`."""

import asyncio
import os
import time
from typing import Any

from pydantic import BaseModel

import nexus_ray as nexus
from benchmarks.chaos import agents as chaos

app = nexus.App("under-test")
chaos.install(app)


class Count(BaseModel):
    n: int = 0


@app.agent
class Counter(nexus.Agent):
    """Counts what it is told, durably, and says in which process."""

    state: Count

    async def handle(self, payload: int) -> dict[str, int]:
        self.state.n += payload
        return {"n": self.state.n, "process": os.getpid()}


@app.agent
class Sleeper(nexus.Agent):
    async def handle(self, payload: float) -> float:
        await asyncio.sleep(payload)
        return payload


@app.agent
class Raiser(nexus.Agent):
    async def handle(self, payload: str) -> str:
        if payload == "exit":
            raise SystemExit(3)
        raise ValueError(payload)


@app.agent
class Odd(nexus.Agent):
    async def handle(self, payload: Any) -> Any:
        return object()


@app.agent(isolation="process", num_cpus=0, timeout_s=30)
class Alone(nexus.Agent):
    """Has a process of its own, where it may block, or die."""

    state: Count

    def handle(self, payload: str) -> dict[str, int]:
        if payload == "die":
            os._exit(9)
        time.sleep(0.01)
        self.state.n += 1
        return {"process": os.getpid(), "n": self.state.n}


@app.agent(isolation="process", num_cpus=0, timeout_s=30, retries=1)
class AlonePayer(nexus.Agent):
    """Does something outside from a process of its own, or dies doing it."""

    def handle(self, payload: str, task: nexus.Task) -> list[str]:
        def pay(key: str) -> str:
            if payload == "die":
                os._exit(9)
            return key

        return [task.run_effect("pay", pay), task.run_effect("pay", pay)]


@app.agent(isolation="process", resources={"unobtainium": 1}, timeout_s=1.5)
class Homeless(nexus.Agent):
    """Wants what no machine here has."""

    async def handle(self, payload: Any) -> Any:
        return payload


@app.goal
async def homeless(request: Any, team: nexus.Team) -> Any:
    """Ask an agent that can be placed nowhere."""
    return await team.ask(Homeless, request)


@app.goal
async def count(request: int, team: nexus.Team) -> list[dict[str, int]]:
    """Ask `request` counters to count one."""
    return await team.fan_out(Counter, [1] * request)


@app.goal
async def count_then_sleep(request: float, team: nexus.Team) -> list[int]:
    """Count with ten counters of this goal, sleep, and count with them again."""
    name = team.goal_id
    first = await team.fan_out(Counter, [1] * 10, key=_named(name))
    await team.ask(Sleeper, request, key=name)
    second = await team.fan_out(Counter, [10] * 10, key=_named(name))
    return [answer["n"] for answer in (*first, *second)]


@app.goal
async def raise_(request: str, team: nexus.Team) -> str:
    """Ask an agent that raises."""
    return await team.ask(Raiser, request)


@app.goal
async def odd(request: Any, team: nexus.Team) -> Any:
    """Ask an agent whose answer is no JSON."""
    return await team.ask(Odd, request)


@app.goal
async def alone(request: list[str], team: nexus.Team) -> list[dict[str, int]]:
    """Ask an agent with a process of its own, several times."""
    return [await team.ask(Alone, word, key=team.goal_id) for word in request]


@app.goal
async def pay_alone(request: str, team: nexus.Team) -> list[str]:
    """Have an agent with a process of its own do something outside."""
    return await team.ask(AlonePayer, request, key=team.goal_id)


@app.goal
async def sleep(request: float, team: nexus.Team) -> float:
    """Sleep."""
    return await team.ask(Sleeper, request, key=team.goal_id)


def _named(name: str) -> Any:
    numbers = iter(range(1_000_000))
    return lambda _: f"{name}-{next(numbers)}"
