"""A host is killed under ten thousand agents with durable state: how long until each answers again.

Two looks. One agent after the other is asked, anywhere among the ten thousand, from the moment of the kill on: what
they wait is the detection, the new membership, and their state's way out of the ledger. And all of them are asked at
that moment, by goals of 250, beside the same with nobody killed, for that is much work in itself.
"""

import asyncio
import random
import time
from pathlib import Path

import orjson

from benchmarks.cluster import check, direct, fleet, host_processes, say
from benchmarks.sampling import Row, Target, nearest_rank, summarise

SECTION = "recovery"
AGENTS = 10_000
_BATCH = 250
_PROBES = 2_000
_LANES = 32  # So that those who wait for the detection are more than one of a hundred.
_SEED = 7
_P99_S_MAX = 2.0
_REFILLED_S_MAX = 30.0


def run(folder: Path, is_quick: bool) -> list[Row]:
    agents = 1_000 if is_quick else AGENTS
    with fleet(folder) as up:
        return asyncio.run(_kills(up.token, agents, 2 if is_quick else 6))


async def _kills(token: str, agents: int, kills: int) -> list[Row]:
    calm: list[float] = []
    struck: list[float] = []
    tails: list[float] = []
    async with direct(token) as submit:

        async def ask(first: int, since: float) -> float:
            check(await submit("recall", orjson.dumps({"first": first, "count": _BATCH})), _BATCH)
            return time.perf_counter() - since

        async def ask_all() -> list[float]:
            since = time.perf_counter()
            return list(await asyncio.gather(*(ask(first, since) for first in range(0, agents, _BATCH))))

        async def ask_one_by_one() -> list[float]:
            names = random.Random(_SEED).sample(range(agents), min(agents, _PROBES))
            waited: list[float] = []

            async def lane() -> None:
                while names:
                    since = time.perf_counter()
                    check(await submit("recall", orjson.dumps({"first": names.pop(), "count": 1})), 1)
                    waited.append(time.perf_counter() - since)

            await asyncio.gather(*(lane() for _ in range(_LANES)))
            return waited

        await ask_all()
        for number in range(kills):
            calm += await ask_all()
            hosts = await asyncio.to_thread(host_processes)
            name, process = sorted(hosts.items())[0]
            say(f"kill {number + 1} of {kills}: {name}")
            process.kill()
            if number % 2:
                struck += await ask_all()
            else:
                asked = sorted(await ask_one_by_one())
                tails.append(nearest_rank(asked, 0.99))
                say(f"p50 {nearest_rank(asked, 0.5):.3f} s, p99 {tails[-1]:.3f} s of {len(asked):,}")
            await _until_refilled(len(hosts))
    return [
        Row(SECTION, f"{agents:,} agents asked, nobody killed", "s", summarise(calm)),
        Row(SECTION, f"{agents:,} agents asked as a host is killed", "s", summarise(struck)),
        Row(SECTION, f"one of {agents:,} after a kill, p99", "s", summarise(tails), Target("at_most", _P99_S_MAX)),
    ]


async def _until_refilled(hosts: int) -> None:
    """Wait for the new host, so that the next kill finds as many as this one."""
    ends_at = time.monotonic() + _REFILLED_S_MAX
    while time.monotonic() < ends_at:
        if len(await asyncio.to_thread(host_processes)) >= hosts:
            return
        await asyncio.sleep(0.25)
    raise RuntimeError("the killed host was not replaced")
