"""DBOS on SQLite, its default without a server: a workflow with one step that asks all agents, in this process.

One step for the whole goal, not one for each agent, is the way that is kind to DBOS: a step is a commit.
"""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from dbos import DBOS, DBOSConfig

from benchmarks.contenders.serve import Goal, serve
from benchmarks.job import TEXT

counts: Counter[str] = Counter()


async def agent(key: str, text: str) -> int:
    counts[key] += 1
    return counts[key]


@DBOS.step()
async def ask_all(width: int, text: str) -> list[int]:
    return [await agent(str(number), text) for number in range(width)]


@DBOS.workflow()
async def fan_out(width: int, text: str) -> int:
    return sum(count > 0 for count in await ask_all(width, text))


@asynccontextmanager
async def contender(folder: Path, way: str) -> AsyncIterator[Goal]:
    config: DBOSConfig = {
        "name": "benchmark", "system_database_url": f"sqlite:///{folder / 'dbos.sqlite'}", "log_level": "WARNING",
    }  # fmt: skip
    DBOS(config=config)
    DBOS.launch()

    async def goal(width: int) -> int:
        return await fan_out(width, TEXT)

    try:
        yield goal
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    serve("dbos", contender)
