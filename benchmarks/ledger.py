"""The two ledgers side by side: `python -m benchmarks.ledger`. Needs PostgreSQL's programs; starts a server of its own.

A goal is two calls and 35 writes: accepted and claimed, then 32 steps and its outcome. Every answer waits for the disk.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.postgres import PostgresLedger
from nexus_ray.ledger.sqlite import SqliteLedger
from tests.support.postgres import Server
from tests.support.records import a_finish, a_goal, a_step

STEPS = 32
WRITES = STEPS + 3
GOALS = {1: 100, 8: 400, 64: 1200}


async def load(ledger: Any, name: str, concurrency: int) -> dict[str, float]:
    """Take so many goals at once through a ledger; return what it did in a second."""
    turns = asyncio.Semaphore(concurrency)
    goals = GOALS[concurrency]

    async def one(number: int) -> None:
        goal_id = f"{name}-{number:06}"
        async with turns:
            await ledger.accept([a_goal(goal_id)], name)
            await ledger.append(name, [*(a_step(f"s-{n}", goal_id) for n in range(STEPS)), a_finish(goal_id)])

    commits, began = ledger.commits, time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(goals)))
    took_s = time.perf_counter() - began
    rates = {"goals_s": goals, "writes_s": goals * WRITES, "commits_s": ledger.commits - commits}
    return {name: count / took_s for name, count in rates.items()}


async def _alone(url: str, folder: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {}
    postgres = await PostgresLedger.open(LedgerSettings(url=url, cluster="bench"), "bench")
    sqlite = await SqliteLedger.open(folder / "ledger.sqlite")
    for number in range(rounds):
        for concurrency in GOALS:
            for kind, ledger in (("sqlite", sqlite), ("postgres", postgres)):
                row = await load(ledger, f"{number}-{concurrency}", concurrency)
                found.setdefault(f"{kind}, {concurrency} at once", []).append(row)
    await sqlite.close()
    await postgres.close()
    return found


def _process(url: str, name: str, start: Any, told: Any) -> None:
    async def run() -> dict[str, float]:
        ledger = await PostgresLedger.open(LedgerSettings(url=url, cluster="bench"), name)
        start.wait()
        row = await load(ledger, name, 64)
        await ledger.close()
        return row

    told.put(asyncio.run(run()))


def _together(url: str, name: str) -> dict[str, float]:
    """Two processes at once on one PostgreSQL; the sum of what they did in a second."""
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_process, args=(url, f"{name}-{n}", start, told)) for n in range(2)]
    for process in processes:
        process.start()
    rows = [told.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(10)
    return {key: sum(row[key] for row in rows) for key in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    server = Server()
    try:
        server.start()
        url = server.url(server.ledger())
        with tempfile.TemporaryDirectory() as folder:
            found = asyncio.run(_alone(url, Path(folder), given.rounds))
        found["postgres, 2 processes, 64 at once each"] = [_together(url, f"t{n}") for n in range(given.rounds)]
    finally:
        server.close()
    medians = {name: {key: round(statistics.median(row[key] for row in rows)) for key in rows[0]}
               for name, rows in found.items()}  # fmt: skip
    if given.json:
        print(json.dumps(medians))
        return
    for name, row in medians.items():
        print(f"{name:40} {row['goals_s']:6} goals/s {row['writes_s']:8} writes/s {row['commits_s']:6} commits/s")


if __name__ == "__main__":
    main()
