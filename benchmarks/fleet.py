"""The fleet that is measured: agents that count, and goals that fan out over them."""

from pydantic import BaseModel

import nexus_ray as nexus

app = nexus.App("benchmarks")


class Parcel(BaseModel):
    text: str


class Count(BaseModel):
    count: int = 0


class Work(BaseModel):
    text: str
    tasks: int = 32


class Crowd(BaseModel):
    """Agents `first` to `first + count - 1`; where the crowd is smaller, from its beginning again."""

    first: int
    count: int
    of: int = 1_000_000_000

    @property
    def names(self) -> list[str]:
        return [f"crowd-{number % self.of}" for number in range(self.first, self.first + self.count)]


@app.agent
class Counter(nexus.Agent):
    """Counts in memory, as the actors of the comparison do."""

    def __init__(self) -> None:
        self.count = 0

    async def handle(self, payload: Parcel) -> Count:
        self.count += 1
        return Count(count=self.count)


@app.agent
class Ledgered(nexus.Agent):
    """Counts in durable state: every task commits a new version."""

    state: Count

    async def handle(self, payload: Parcel) -> Count:
        self.state.count += 1
        return self.state


@app.agent(idle_s=1.0)
class Passing(nexus.Agent):
    """Passivated as soon as anybody looks."""

    def __init__(self) -> None:
        self.count = 0

    async def handle(self, payload: Parcel) -> Count:
        self.count += 1
        return Count(count=self.count)


@app.goal
async def fan_out(work: Work, team: nexus.Team) -> int:
    answers = await team.fan_out(Counter, [Parcel(text=work.text)] * work.tasks)
    return sum(answer.count > 0 for answer in answers)


@app.goal
async def fan_out_ledgered(work: Work, team: nexus.Team) -> int:
    answers = await team.fan_out(Ledgered, [Parcel(text=work.text)] * work.tasks)
    return sum(answer.count > 0 for answer in answers)


@app.goal
async def wake(crowd: Crowd, team: nexus.Team) -> int:
    """Ask agents of a crowd: those that were never asked before are activated by it."""
    return sum(answer.count > 0 for answer in await team.fan_out(Counter, _parcels(crowd), key=_text))


@app.goal
async def wake_passing(crowd: Crowd, team: nexus.Team) -> int:
    """Ask agents that are not kept."""
    return sum(answer.count > 0 for answer in await team.fan_out(Passing, _parcels(crowd), key=_text))


@app.goal
async def recall(crowd: Crowd, team: nexus.Team) -> int:
    """Ask agents with durable state."""
    return sum(answer.count > 0 for answer in await team.fan_out(Ledgered, _parcels(crowd), key=_text))


def _parcels(crowd: Crowd) -> list[Parcel]:
    return [Parcel(text=name) for name in crowd.names]


def _text(payload: Parcel) -> str:
    return payload.text
