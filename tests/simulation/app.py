"""The fleet that is simulated: a few agent types and goals of every kind, and what each goal must come to.

Law: an agent's answer depends on its payload and its durable state, never on time or chance.
"""

import asyncio
from typing import Any

from pydantic import BaseModel

import nexus_ray as nexus
from nexus_ray.goals.strategies import Call
from tests.simulation.loop import PROCESS

app = nexus.App("simulated")


class Count(BaseModel):
    """How often an agent was told to count."""

    n: int = 0


@app.agent
class Echo(nexus.Agent):
    async def handle(self, number: int) -> int:
        if number % 3:
            await asyncio.sleep(number % 3 * 0.02)
        return number * 2


@app.agent("counter", idle_s=1.5)
class Counter(nexus.Agent):
    state: Count

    async def handle(self, seconds: float) -> int:
        self.state.n += 1
        if seconds:
            await asyncio.sleep(seconds)
        return self.state.n


@app.agent("clerk", scope="goal")
class Clerk(nexus.Agent):
    async def start(self) -> None:
        self.seen = 0

    async def handle(self, number: int) -> int:
        self.seen += 1
        await asyncio.sleep(0.01)
        return number


@app.agent("clumsy", retries=3)
class Clumsy(nexus.Agent):
    """Drops the first two attempts of every task."""

    state: Count

    async def handle(self, number: int, task: nexus.Task) -> int:
        self.state.n += 1
        if task.attempt < 3:
            raise RuntimeError("dropped")
        return self.state.n


async def _pay(key: str) -> str:
    """Something outside of Nexus, which the referee counts."""
    outside = PROCESS.get().loop.outside
    outside[key] = outside.get(key, 0) + 1
    await asyncio.sleep(0.05)
    return key


@app.agent("payer", retries=2)
class Payer(nexus.Agent):
    """Pays; what has an odd number may be paid twice."""

    async def handle(self, number: int, task: nexus.Task) -> int:
        name = "again" if number % 2 else "once"
        await task.effect(name, _pay, idempotent=name == "again")
        return number


@app.agent
class Faulty(nexus.Agent):
    async def handle(self, number: int) -> int:
        raise ValueError(f"no {number}")


@app.agent
class Sleeper(nexus.Agent):
    async def handle(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "slept"


@app.goal
async def fan(numbers: list[int], team: nexus.Team) -> list[int]:
    answers: list[int] = await team.fan_out(Echo, numbers, key=lambda number: f"e{number}")
    return answers


@app.goal
async def count(keys: list[str], team: nexus.Team) -> int:
    """Tell agents to count, some one after the other and some at once; return how often."""
    for key in keys[:2]:
        await team.ask(Counter, 0.1, key=key)
    await asyncio.gather(*(team.ask(Counter, 0.2, key=key) for key in keys[2:]))
    return len(keys)


@app.goal
async def clumsy(keys: list[str], team: nexus.Team) -> int:
    for number, key in enumerate(keys):
        await team.ask(Clumsy, number, key=key)
    return len(keys)


@app.goal
async def tree(depth: int, team: nexus.Team) -> int:
    """Have goals of this goal do the work."""
    if depth == 0:
        return await team.ask(Echo, 1, key="leaf")
    left, right, counted = await asyncio.gather(
        team.goal(tree, depth - 1), team.goal(fan, [1, 2, depth]), team.goal(count, ["a", "b", f"t{depth}"])
    )
    return int(left) + len(right) + int(counted)


@app.goal
async def race(key: str, team: nexus.Team) -> Any:
    return await team.race([Call(Sleeper, 20.0, key), Call(Echo, 3, key), Call(Counter, 15.0, key)])


@app.goal
async def quorum(number: int, team: nexus.Team) -> int:
    answers = await team.fan_out(Echo, list(range(number)), quorum=0.5, key=lambda n: f"q{n}")
    await team.fan_out(Clerk, list(range(3)), key=str)
    return min(len(answers), 1)


@app.goal
async def pay(number: int, team: nexus.Team) -> list[int]:
    answers: list[int] = await team.fan_out(Payer, list(range(number)), key=lambda n: f"p{n}")
    return answers


class Booking(BaseModel):
    """Who has a seat."""

    goals: list[str] = []


class Request(BaseModel):
    """Book for a goal, or take back what was booked, if it was."""

    goal: str
    is_undone: bool = False


@app.agent("seat", retries=1)
class Seat(nexus.Agent):
    state: Booking

    async def handle(self, request: Request) -> int:
        await asyncio.sleep(0.05)
        others = [goal for goal in self.state.goals if goal != request.goal]
        self.state.goals = others if request.is_undone else [*others, request.goal]
        return len(self.state.goals)


@app.goal
async def trip(is_full: bool, team: nexus.Team) -> int:
    """Book three seats, or none: where it is full, the last one fails."""
    book, undo = Request(goal=team.goal_id), Request(goal=team.goal_id, is_undone=True)
    steps = [nexus.SagaStep(Call(Seat, book, key), Call(Seat, undo, key)) for key in ("x", "y", "z")]
    if is_full:
        steps.append(nexus.SagaStep(Call(Faulty, 0, "full")))
    await team.saga(steps)
    return 3


@app.goal
async def patient(key: str, team: nexus.Team) -> bool:
    """Sleep, ask a person, and go on."""
    await team.sleep(0.6)
    approval = await team.approval("may I?", key="may")
    await team.ask(Counter, 0.0, key=key)
    return approval.approved


@app.goal
async def late(seconds: float, team: nexus.Team) -> str:
    await team.ask(Counter, 0.0, key="late")
    return str(await team.ask(Sleeper, seconds))


@app.goal
async def broken(number: int, team: nexus.Team) -> list[int]:
    answers: list[int] = await team.fan_out(Faulty, [number, number + 1])
    return answers


@app.goal
async def parent_of_the_late(seconds: float, team: nexus.Team) -> str:
    return str(await team.goal(late, seconds))


EXPECTED: dict[str, tuple[tuple[str, ...], Any]] = {
    "fan": (("succeeded",), lambda numbers: [number * 2 for number in numbers]),
    "count": (("succeeded",), len),
    "clumsy": (("succeeded",), len),
    "tree": (("succeeded",), lambda depth: 2 + 6 * depth),
    "race": (("succeeded",), lambda key: 6),
    "quorum": (("succeeded",), lambda number: 1),
    "pay": (("succeeded", "failed"), lambda number: list(range(number))),
    "patient": (("succeeded",), lambda key: True),
    "trip": (("succeeded", "failed"), lambda is_full: 3),
    "late": (("expired", "failed"), None),
    "broken": (("failed",), None),
    "parent_of_the_late": (("expired", "failed"), None),
}
"""By goal type: how a goal ends that nobody cancels, and what its result is, from its payload."""
