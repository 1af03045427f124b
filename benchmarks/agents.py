"""Agents that are only there: from 10 to 100,000 of them, the memory of each, the time to activate them, and the goals
per second that ask some of them; Ray actors beside them.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import psutil

from benchmarks import raw
from benchmarks.cluster import check, direct, fleet, host_processes, measure, say
from benchmarks.contender import NEXUS
from benchmarks.job import TASKS
from benchmarks.sampling import Row, Target, summarise

SECTION = "agents"
SIZES = (10, 100, 1_000, 10_000, 100_000)
_KIB = 1024
_MIB = 1024 * 1024
_BATCH = 250  # Agents woken at a time where memory is measured: what is under way must not look like what stays.
_MEASURABLE = 1_000  # Memory of fewer agents is lost in what else a process does.
_CONCURRENCY = 8
_SETTLE_S = 1.0
_PASSIVATED_S_MAX = 30.0
_SEED = 7
_IDLE_KIB_MAX = 4.0
_ACTIVATE_1000_S_MAX = 0.5

Submit = Callable[[str, bytes], Awaitable[Any]]


def run(folder: Path, is_quick: bool) -> list[Row]:
    with fleet(folder) as up:
        hosts = host_processes()
        made = asyncio.run(_agents(up.token, list(hosts.values()), is_quick))
        return made + _actors(10 if is_quick else 50)


async def _agents(token: str, hosts: list[psutil.Process], is_quick: bool) -> list[Row]:
    sizes = SIZES[:-1] if is_quick else SIZES
    async with direct(token) as submit:
        # Code paths, caches and heaps of a batch are there before anything counts; these agents are not kept.
        await _passing(submit, hosts, 4 * _BATCH)
        crowd, before = _Crowd(submit), uss_bytes(hosts)
        made = [Row(SECTION, "hosts without agents, all", "MiB", summarise([before / _MIB]))]
        bytes_at: dict[int, int] = {}
        for size in sizes:
            await crowd.grow(size - crowd.size)
            await asyncio.sleep(_SETTLE_S)
            bytes_at[size] = uss_bytes(hosts)
            made += _memory(size, bytes_at[size] - before)
            made += await crowd.goals(size, 0.3 if is_quick else 1.0)
        # The first ones fill what was free in the heap, and may even seem to cost nothing; those after them cannot.
        last, other = sizes[-1], sizes[-2]
        each = summarise([(bytes_at[last] - bytes_at[other]) / (last - other) / _KIB])
        made.append(Row(SECTION, f"each of the last {last - other:,}", "KiB", each, Target("at_most", _IDLE_KIB_MAX)))
        made.append(Row(SECTION, "agents active at once", "agents", summarise([await active("Counter")])))
        made += await crowd.activations(2 if is_quick else 7)
        made += await _passing(submit, hosts, 2_000 if is_quick else 10_000)
    return made


class _Crowd:
    """Agents that were asked at least once, and the goals that ask them."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._random = random.Random(_SEED)
        self.size = 0

    async def wake(self, count: int, type_name: str = "wake") -> float:
        """Activate agents in one goal; return the seconds."""
        payload = orjson.dumps({"first": self.size, "count": count})
        self.size += count
        started = time.perf_counter()
        check(await self._submit(type_name, payload), count)
        return time.perf_counter() - started

    async def grow(self, count: int, type_name: str = "wake") -> None:
        """Activate agents, a few at a time."""
        while count > 0:
            await self.wake(min(count, _BATCH), type_name)
            count -= _BATCH

    async def goals(self, size: int, seconds: float) -> list[Row]:
        """Ask 32 in a row, from anywhere in the crowd."""

        async def one(_: int) -> None:
            payload = {"first": self._random.randrange(size), "count": TASKS, "of": size}
            check(await self._submit("wake", orjson.dumps(payload)), TASKS)

        await measure(f"warm-up, {size:,} agents", one, _CONCURRENCY, 0.3)
        rounds = [await measure(f"{size:,} agents", one, _CONCURRENCY, seconds) for _ in range(3)]
        rates = summarise([found.rate for found in rounds])
        return [Row(SECTION, f"{size:,} agents, 32 asked in a goal", "goals/s", rates, series=NEXUS, at=size)]

    async def activations(self, times: int) -> list[Row]:
        seconds = summarise([await self.wake(1_000) for _ in range(times)])
        target = Target("at_most", _ACTIVATE_1000_S_MAX)
        return [Row(SECTION, "1,000 agents activated", "s", seconds, target)]


def _memory(size: int, more_bytes: int) -> list[Row]:
    if size < _MEASURABLE:
        return []
    each = summarise([more_bytes / size / _KIB])
    target = Target("at_most", _IDLE_KIB_MAX)
    say(f"memory of {size:,} agents: {each.median:.2f} KiB each")
    return [Row(SECTION, f"{size:,} agents idle, each", "KiB", each, target, series=NEXUS, at=size)]


async def _passing(submit: Submit, hosts: list[psutil.Process], count: int) -> list[Row]:
    """Agents that were asked and passivated: on record, and nowhere else."""
    crowd, before = _Crowd(submit), uss_bytes(hosts)
    await crowd.grow(count, "wake_passing")
    ends_at = time.monotonic() + _PASSIVATED_S_MAX
    while (left := await active("Passing")) > 0 and time.monotonic() < ends_at:
        await asyncio.sleep(0.5)
    each = summarise([(uss_bytes(hosts) - before) / count / _KIB])
    return [
        Row(SECTION, f"{count:,} agents passivated, each", "KiB", each),
        Row(SECTION, f"active of {count:,} passivated", "agents", summarise([left]), Target("at_most", 0)),
    ]


async def active(name: str) -> int:
    """Return how many agents of a type are active, on all hosts."""
    from nexus_ray.runtime.fleet import RayFleet

    counts: Counter[str] = Counter()
    for host in await RayFleet().hosts():
        counts.update({agent_type.lower(): count for agent_type, count in host["agents"].items()})
    return counts[name.lower()]


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
