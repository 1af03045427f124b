"""Where more callers bring no more goals: Nexus from 1 to 256 goals under way, the rate and what a goal then takes."""

import asyncio
from pathlib import Path

from benchmarks.cluster import check, direct, fleet, measure, work
from benchmarks.contender import NEXUS
from benchmarks.job import TASKS
from benchmarks.sampling import Round, Row, summarise

SECTION = "knee"
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def run(folder: Path, is_quick: bool) -> list[Row]:
    with fleet(folder) as up:
        return asyncio.run(_measure(up.token, is_quick))


async def _measure(token: str, is_quick: bool) -> list[Row]:
    turns, seconds = (1, 0.3) if is_quick else (3, 0.6)
    seen: dict[int, list[Round]] = {}
    async with direct(token) as submit:

        async def one(_: int) -> None:
            check(await submit("fan_out", work()), TASKS)

        await measure("warm-up", one, 8, 1.0)
        for _ in range(turns):
            for concurrency in CONCURRENCIES:
                seen.setdefault(concurrency, []).append(await measure(NEXUS, one, concurrency, seconds))
    return rows(seen)


def rows(seen: dict[int, list[Round]]) -> list[Row]:
    """Rates, then latencies."""
    made = []
    for at, rounds in seen.items():
        rates = summarise([one.rate for one in rounds])
        made.append(Row(SECTION, f"{at} goals under way", "goals/s", rates, series=NEXUS, at=at))
    for at, rounds in seen.items():
        latencies = summarise([latency * 1e3 for one in rounds for latency in one.latencies_s])
        made.append(Row(SECTION, f"{at} goals under way, latency", "ms", latencies, series=NEXUS, at=at))
    return made
