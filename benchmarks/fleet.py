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
    """Agents `first` to `first + count - 1`."""

    first: int
    count: int


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
    """Activate agents that were never asked before, each by one task."""
    names = [str(number) for number in range(crowd.first, crowd.first + crowd.count)]
    return sum(answer.count == 1 for answer in await team.fan_out(Counter, [Parcel(text=n) for n in names], key=_text))


def _text(payload: Parcel) -> str:
    return f"crowd-{payload.text}"
