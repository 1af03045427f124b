"""What agents cost that are only there: the time to activate them, and the memory of each; Ray actors beside them."""

import asyncio
import time
from pathlib import Path

import orjson
import psutil

from benchmarks import raw
from benchmarks.cluster import check, direct, fleet, host_processes, say
from benchmarks.sampling import Row, Target, summarise

SECTION = "agents"
_KIB = 1024
_MIB = 1024 * 1024
_BATCH = 250  # Agents woken at a time where memory is measured: what is under way must not look like what stays.
_SETTLE_S = 1.0
_IDLE_KIB_MAX = 8.0
_ACTIVATE_1000_S_MAX = 0.5


def run(folder: Path, is_quick: bool) -> list[Row]:
    with fleet(folder) as up:
        hosts = list(host_processes().values())
        made = asyncio.run(_agents(up.token, hosts, is_quick))
        return made + _actors(10 if is_quick else 50)


async def _agents(token: str, hosts: list[psutil.Process], is_quick: bool) -> list[Row]:
    large = 2_000 if is_quick else 10_000
    async with direct(token) as submit:
        asked = 0

        async def wake(count: int) -> float:
            nonlocal asked
            payload = orjson.dumps({"first": asked, "count": count})
            asked += count
            started = time.perf_counter()
            check(await submit("wake", payload), count)
            return time.perf_counter() - started

        async def wake_in_batches(count: int) -> None:
            for _ in range(count // _BATCH):
                await wake(_BATCH)
            await asyncio.sleep(_SETTLE_S)

        await wake_in_batches(4 * _BATCH)  # Code paths, caches and heaps of a batch are there before anything counts.
        before = uss_bytes(hosts)
        await wake_in_batches(1_000)
        after_1000 = uss_bytes(hosts)
        await wake_in_batches(large - 1_000)
        after_all = uss_bytes(hosts)
        more = 3 * large
        await wake_in_batches(more)
        after_more = uss_bytes(hosts)
        say(f"memory of {large:,} agents: {(after_all - before) / large / _KIB:.2f} KiB each")
        seconds_1000 = [await wake(1_000) for _ in range(2 if is_quick else 7)]
        seconds_all = [await wake(large) for _ in range(1 if is_quick else 3)]
    target = Target("at_most", _IDLE_KIB_MAX)
    per_1000 = summarise([(after_1000 - before) / 1_000 / _KIB])
    per_all = summarise([(after_all - before) / large / _KIB])
    # The first ones fill what was free in the heap, and may even seem to cost nothing; those after them cannot.
    each_more = summarise([(after_more - after_all) / more / _KIB])
    return [
        Row(SECTION, "1,000 agents idle, each", "KiB", per_1000, target),
        Row(SECTION, f"{large:,} agents idle, each", "KiB", per_all, target),
        Row(SECTION, f"each of {more:,} more", "KiB", each_more, target),
        Row(SECTION, "hosts without agents, all", "MiB", summarise([before / _MIB])),
        Row(SECTION, "1,000 agents activated", "s", summarise(seconds_1000), Target("at_most", _ACTIVATE_1000_S_MAX)),
        Row(SECTION, f"{large:,} agents activated", "s", summarise(seconds_all)),
    ]


def _actors(count: int) -> list[Row]:
    say(f"starting {count} Ray actors")
    started = time.perf_counter()
    actors = raw.spawn_counters(count)
    seconds = time.perf_counter() - started
    time.sleep(_SETTLE_S)
    mine = [process for process in psutil.Process().children(recursive=True) if "CounterActor" in _title(process)]
    pss = [process.memory_full_info().pss / _KIB for process in mine]
    assert len(pss) == len(actors), f"{len(pss)} processes for {len(actors)} actors"
    return [
        Row(SECTION, f"{count} Ray actors idle, each (PSS)", "KiB", summarise(pss)),
        Row(SECTION, f"{count} Ray actors started", "s", summarise([seconds])),
    ]


def uss_bytes(processes: list[psutil.Process]) -> int:
    """Return the memory that only these processes hold."""
    return sum(process.memory_full_info().uss for process in processes)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
