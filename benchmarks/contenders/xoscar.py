"""xoscar: a pool with a process for each core. `each`: an actor per agent, one call each, gathered. `batched`: one
actor that holds all agents, and one batch of calls to it, which is xoscar's own way to ask much at once.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import xoscar

from benchmarks.contenders.serve import Goal, serve
from benchmarks.job import TASKS, TEXT


class Counters(xoscar.Actor):
    """One agent, or all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    @xoscar.extensible
    async def handle(self, key: str, payload: dict[str, Any]) -> dict[str, Any]:
        self.counts[key] = self.counts.get(key, 0) + 1
        return {"count": self.counts[key]}


@asynccontextmanager
async def contender(folder: Path, way: str) -> AsyncIterator[Goal]:
    processes = os.cpu_count() or 1
    pool = await xoscar.create_actor_pool("127.0.0.1", n_process=processes)

    async def create(number: int) -> Any:
        # Never process 0: that is this one, and a call within a process is another thing.
        place = xoscar.allocate_strategy.ProcessIndex(1 + number % processes)
        return await xoscar.create_actor(
            Counters, address=pool.external_address, uid=f"{number}", allocate_strategy=place
        )

    actors = [await create(number) for number in range(TASKS)] if way == "each" else [await create(0)]

    async def each(width: int) -> int:
        answers = await asyncio.gather(*(actor.handle("0", {"text": TEXT}) for actor in actors[:width]))
        return sum(answer["count"] > 0 for answer in answers)

    async def batched(width: int) -> int:
        handle = actors[0].handle
        answers = await handle.batch(*(handle.delay(str(number), {"text": TEXT}) for number in range(width)))
        return sum(answer["count"] > 0 for answer in answers)

    async with pool:
        yield {"each": each, "batched": batched}[way]


if __name__ == "__main__":
    serve("xoscar", contender)
