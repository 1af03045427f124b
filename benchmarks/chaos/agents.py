"""The fleet that is struck: agents that count durably and leave traces outside, and goals that ask them.

Every answer carries what is needed to find a loss or a doubling afterwards. `install` puts it all into any app.
"""

import asyncio

from pydantic import BaseModel

import nexus_ray as nexus
from benchmarks.chaos.traces import append

COUNTER = "chaos_counter"
NOTER = "chaos_noter"
PAYER = "chaos_payer"
UNKNOWN = "unknown"
_WORK_S = 0.02  # What is between a trace outside and its record: the gap that a crash falls into.


class Count(BaseModel):
    n: int = 0


class Job(BaseModel):
    """`tag` is the client's idempotency key: two goals of one tag are one goal too many."""

    tag: str
    keys: list[str] = []
    folder: str = ""
    seconds: float = 0.0


class Trace(BaseModel):
    """Where an agent is to leave a line."""

    folder: str
    number: int


class Counter(nexus.Agent):
    """Counts durably: what it answers is the state that was committed with the answer."""

    state: Count

    async def handle(self, payload: str) -> int:
        self.state.n += 1
        return self.state.n


class Noter(nexus.Agent):
    """Does something outside by itself, under its task's key. It may happen twice, with the same key."""

    async def handle(self, trace: Trace, task: nexus.Task) -> str:
        append(trace.folder, "noted", task.idempotency_key)
        await asyncio.sleep(_WORK_S)
        return task.idempotency_key


class Payer(nexus.Agent):
    """Does something outside as an effect: once, or nobody knows, and it says so."""

    async def handle(self, trace: Trace, task: nexus.Task) -> str:
        async def pay(key: str) -> str:
            append(trace.folder, "paid", key)
            await asyncio.sleep(_WORK_S)
            return key

        try:
            return str(await task.effect("pay", pay))
        except nexus.EffectUnknownError:
            return UNKNOWN


async def chaos_count(job: Job, team: nexus.Team) -> list[int]:
    """Ask shared counters, all at once."""
    return list(await team.fan_out(COUNTER, job.keys, key=str))


async def chaos_linger(job: Job, team: nexus.Team) -> list[int]:
    """Count, sleep over whatever happens meanwhile, and count again."""
    first = await team.fan_out(COUNTER, job.keys, key=str)
    await team.sleep(job.seconds)
    return [*first, *await team.fan_out(COUNTER, job.keys, key=str)]


async def chaos_family(job: Job, team: nexus.Team) -> list[int]:
    """Have two goals of this goal count."""
    goals = (team.goal("chaos_count", Job(tag=f"{job.tag}/{name}", keys=job.keys)) for name in "ab")
    return [n for numbers in await asyncio.gather(*goals) for n in numbers]


async def chaos_note(job: Job, team: nexus.Team) -> list[str]:
    """Have four agents leave a line each, by themselves."""
    return list(await team.fan_out(NOTER, _traces(job), key=lambda trace: f"{trace.number}"))


async def chaos_pay(job: Job, team: nexus.Team) -> list[str]:
    """Have four agents leave a line each, as an effect."""
    return list(await team.fan_out(PAYER, _traces(job), key=lambda trace: f"{trace.number}"))


GOALS = (chaos_count, chaos_linger, chaos_family, chaos_note, chaos_pay)


def install(app: nexus.App) -> None:
    """Declare the agents and goals in an app."""
    for name, agent in ((COUNTER, Counter), (NOTER, Noter), (PAYER, Payer)):
        app.agent(name)(agent)
    for goal in GOALS:
        app.goal(goal)


def _traces(job: Job) -> list[Trace]:
    return [Trace(folder=job.folder, number=number) for number in range(4)]


app = nexus.App("chaos")
install(app)
