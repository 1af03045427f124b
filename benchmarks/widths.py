"""Narrow and wide goals: 1 to 1,000 agents in each, eight goals under way, Nexus and raw Ray's one grouped call."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks import raw
from benchmarks.cluster import check, direct, fleet, measure, work
from benchmarks.contender import GROUPED, NEXUS
from benchmarks.job import TEXT
from benchmarks.sampling import Round, Row, pair_ratios, summarise

SECTION = "widths"
WIDTHS = (1, 3, 10, 32, 100, 316, 1_000)
_CONCURRENCY = 8

Seen = dict[tuple[str, int], list[Round]]


def run(folder: Path, is_quick: bool) -> list[Row]:
    with fleet(folder) as up:
        return asyncio.run(_measure(up.token, raw.spawn_host(), is_quick))


async def _measure(token: str, host: object, is_quick: bool) -> list[Row]:
    turns, seconds = (1, 0.3) if is_quick else (3, 0.6)
    seen: Seen = {}
    async with direct(token) as submit:

        def nexus(width: int) -> Callable[[int], Awaitable[None]]:
            async def one(_: int) -> None:
                check(await submit("fan_out", work(width)), width)

            return one

        def grouped(width: int) -> Callable[[int], Awaitable[None]]:
            return lambda _: raw.fan_out_grouped(host, width, TEXT)

        for width in WIDTHS:
            ways = {NEXUS: (nexus(width), ""), GROUPED: (grouped(width), raw.HostActor.__name__)}
            await measure(f"warm-up, {width} wide", ways[NEXUS][0], 4, 0.3)
            for turn in range(turns):
                for name in sorted(ways, reverse=turn % 2 == 1):
                    one, actor = ways[name]
                    with raw.stopped(except_for=actor):
                        found = await measure(f"{name}, {width} wide", one, _CONCURRENCY, seconds)
                    seen.setdefault((name, width), []).append(found)
    return rows(seen)


def rows(seen: Seen) -> list[Row]:
    """Tasks a second, then the ratios."""
    made = []
    for (name, width), rounds in sorted(seen.items()):
        rates = summarise([one.rate * width for one in rounds])
        made.append(Row(SECTION, f"{name}, {width:,} agents a goal", "tasks/s", rates, series=name, at=width))
    for (name, width), rounds in sorted(seen.items()):
        latencies = summarise([latency * 1e3 for one in rounds for latency in one.latencies_s])
        title = f"{name}, {width:,} agents a goal, latency"
        made.append(Row(SECTION, title, "ms", latencies, series=name, at=width))
    for width in sorted({width for _, width in seen}):
        ratios = pair_ratios(*([one.rate for one in seen[name, width]] for name in (NEXUS, GROUPED)))
        title = f"{NEXUS} over {GROUPED}, {width:,} agents a goal"
        made.append(Row(SECTION, title, "x", summarise(ratios), series=GROUPED, at=width))
    return made
