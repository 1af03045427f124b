"""Fan-out of 32 over stateful agents, 256 bytes each: Nexus with everything on against raw Ray, round by round.

Both run on one Ray cluster, in turn, so the pair of a round shares the machine's mood, and the ratio is of pairs. An
actor of Ray's that only waits is not free: 32 of them take about a fifth of a core. So raw Ray's processes are stopped
(SIGSTOP) while somebody else runs. Nexus's own, of which there are four, are not: a host that does not answer is
replaced.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks import raw
from benchmarks.cluster import TASKS, TEXT, check, direct, fleet, measure, say, work
from benchmarks.sampling import Round, Row, Target, pair_ratios, summarise

SECTION = "against-ray"
CONCURRENCIES = (1, 8, 64)

NEXUS = "Nexus"
LEDGERED = "Nexus, agent state durable too"
ONE_EACH = "raw Ray, one actor per agent"
GROUPED = "raw Ray, one grouped call to one host"

_AT_LEAST = {(ONE_EACH, 8): 20.0, (GROUPED, 8): 2.5}  # The first is the issue's, the second the design's.

_TAKES_PART = {ONE_EACH: "CounterActor", GROUPED: "HostActor"}

One = Callable[[int], Awaitable[None]]


def run(folder: Path, is_quick: bool) -> list[Row]:
    with fleet(folder) as up:
        say(f"starting {TASKS} actors for raw Ray")
        actors, host = raw.spawn_counters(TASKS), raw.spawn_host()
        return asyncio.run(_measure(up.token, actors, host, is_quick))


async def _measure(token: str, actors: list[object], host: object, is_quick: bool) -> list[Row]:
    rounds, seconds = (2, 0.4) if is_quick else (5, 1.0)
    seen: dict[tuple[str, int], list[Round]] = {}
    async with direct(token) as submit:

        async def nexus(type_name: str, _: int) -> None:
            check(await submit(type_name, work()), TASKS)

        contenders: dict[str, One] = {
            NEXUS: functools.partial(nexus, "fan_out"),
            ONE_EACH: lambda _: raw.fan_out(actors, TEXT),
            LEDGERED: functools.partial(nexus, "fan_out_ledgered"),
            GROUPED: lambda _: raw.fan_out_grouped(host, TASKS, TEXT),
        }
        for name, one in contenders.items():
            await measure(f"warm-up, {name}", one, 4, 0.5)
        for concurrency in CONCURRENCIES:
            for _ in range(rounds):
                for name, one in contenders.items():
                    with raw.stopped(except_for=_TAKES_PART.get(name, "")):
                        found = await measure(name, one, concurrency, seconds)
                    seen.setdefault((name, concurrency), []).append(found)
    return rows(seen)


def rows(seen: dict[tuple[str, int], list[Round]]) -> list[Row]:
    """Rates, then latencies, then ratios."""
    made = []
    for (name, concurrency), rounds in seen.items():
        summary = summarise([one.rate for one in rounds])
        made.append(Row(SECTION, f"{name}, concurrency {concurrency}", "goals/s", summary))
    for (name, concurrency), rounds in seen.items():
        summary = summarise([latency * 1e3 for one in rounds for latency in one.latencies_s])
        made.append(Row(SECTION, f"{name}, concurrency {concurrency}, latency", "ms", summary))
    for (name, concurrency), rounds in seen.items():
        if name not in (ONE_EACH, GROUPED):
            continue
        ratios = pair_ratios([one.rate for one in seen[NEXUS, concurrency]], [one.rate for one in rounds])
        at_least = _AT_LEAST.get((name, concurrency))
        target = None if at_least is None else Target("at_least", at_least)
        made.append(Row(SECTION, f"Nexus over {name}, concurrency {concurrency}", "x", summarise(ratios), target))
    return made
