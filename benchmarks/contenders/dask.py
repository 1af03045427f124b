"""Dask: 32 actors on a LocalCluster, which by default has a worker process for each core; one call each, gathered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from benchmarks.contenders.serve import Goal, serve
from benchmarks.job import TASKS, TEXT


class Counter:
    """One agent."""

    def __init__(self) -> None:
        self.count = 0

    async def handle(self, payload: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        return {"count": self.count}


@asynccontextmanager
async def contender(folder: Path, way: str) -> AsyncIterator[Goal]:
    cluster = LocalCluster(
        host="127.0.0.1", dashboard_address=None, worker_dashboard_address=None, asynchronous=True,
        local_directory=str(folder),
    )  # fmt: skip
    async with cluster, Client(cluster, asynchronous=True) as client:
        actors = [await client.submit(Counter, actor=True, pure=False) for _ in range(TASKS)]

        async def goal(width: int) -> int:
            async def ask(actor: Any) -> dict[str, Any]:
                return await actor.handle({"text": TEXT})

            answers = await asyncio.gather(*(ask(actor) for actor in actors[:width]))
            return sum(answer["count"] > 0 for answer in answers)

        yield goal


if __name__ == "__main__":
    serve("distributed", contender)
