"""Fan-out of 32 over stateful agents, 256 bytes each: Nexus with everything on against raw Ray, and against peers.

Nexus and raw Ray run on one Ray cluster; a peer runs in processes of its own. An actor of Ray's that only waits is not
free: 32 of them take about a fifth of a core. So raw Ray's processes, and all of a peer's, are stopped (SIGSTOP) while
somebody else runs. Nexus's own and Ray's are not, because a host that does not answer is replaced: what they take from
the peers meanwhile is measured and told.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import psutil

from benchmarks import contender, raw
from benchmarks.cluster import check, direct, fleet, say, work
from benchmarks.contender import (
    GROUPED,
    LEDGERED,
    NEXUS,
    ONE_EACH,
    OURS,
    Contender,
    NotRunError,
    Peer,
    started,
)
from benchmarks.contenders.protocol import Order
from benchmarks.job import TASKS, TEXT
from benchmarks.race import Heat, Runner, race, rows, tail
from benchmarks.sampling import Note, Round, Row, closed_loop, summarise

SECTION = "against-ray"
CONCURRENCIES = (1, 8, 64)

TARGETS = {
    (ONE_EACH, 8): 60.0, (GROUPED, 8): 2.5, (contender.LANGGRAPH_SQLITE.name, 8): 100.0, (contender.DBOS.name, 8): 25.0,
}  # fmt: skip
_TAIL_MAX = 5.0
_PAUSE_S = 0.2  # Before a round, for what the round before left behind.

Found = list[Row | Note]


def run(folder: Path, is_quick: bool) -> Found:
    return side_by_side(SECTION, folder, is_quick, ())


def heats(is_quick: bool) -> list[Heat]:
    # With 64 goals under way some take 8 s for a round, whatever its length: three of those must do.
    return [Heat(concurrency, 2 if is_quick else 3 if concurrency > 8 else 5, 0.4 if is_quick else 1.0)
            for concurrency in (CONCURRENCIES[:2] if is_quick else CONCURRENCIES)]  # fmt: skip


def side_by_side(section: str, folder: Path, is_quick: bool, peers: Sequence[Peer]) -> Found:
    """Measure Nexus, raw Ray and these peers."""
    with fleet(folder) as up:
        say(f"starting {TASKS} actors for raw Ray")
        actors, host = raw.spawn_counters(TASKS), raw.spawn_host()
        return asyncio.run(_measure(section, folder, up.token, actors, host, peers, is_quick))


async def _measure(
    section: str, folder: Path, token: str, actors: list[object], host: object, peers: Sequence[Peer], is_quick: bool
) -> Found:
    found: Found = []
    async with contextlib.AsyncExitStack() as stack:
        with raw.stopped():
            up = await _start(section, folder, peers, found, stack)
        submit = await stack.enter_async_context(direct(token))
        standing_by: list[float] = []
        theirs = [Runner(one.peer.name, functools.partial(_round_of_peer, one, up, standing_by)) for one in up]

        async def nexus(type_name: str, _: int) -> None:
            check(await submit(type_name, work()), TASKS)

        def on_ray(name: str, one: Callable[[int], Awaitable[None]], actor: str = "") -> Runner:
            return Runner(name, functools.partial(_round_on_ray, one, actor, up))

        runners = [
            on_ray(NEXUS, functools.partial(nexus, "fan_out")),
            on_ray(ONE_EACH, lambda _: raw.fan_out(actors, TEXT), raw.CounterActor.__name__),
            on_ray(LEDGERED, functools.partial(nexus, "fan_out_ledgered")),
            on_ray(GROUPED, lambda _: raw.fan_out_grouped(host, TASKS, TEXT), raw.HostActor.__name__),
            *theirs,
        ]
        seen, notes = await race(section, runners, heats(is_quick))
    found += [*rows(section, seen, NEXUS, OURS, TARGETS), tail(section, seen, NEXUS, 8, _TAIL_MAX), *notes]
    if standing_by:
        found.append(Row(section, "Nexus and Ray, while a peer is measured", "cores", summarise(standing_by)))
    return found


async def _start(
    section: str, folder: Path, peers: Sequence[Peer], found: Found, stack: contextlib.AsyncExitStack
) -> list[Contender]:
    up = []
    for number, peer in enumerate(peers):
        try:
            one = await stack.enter_async_context(started(peer, folder / "peers" / str(number)))
        except NotRunError as error:
            say(f"{peer.name}: not run: {error}")
            found.append(Note(section, f"{peer.name}: not run: {error}"))
        else:
            say(f"{peer.name} {one.version} is up")
            found.append(Note(section, f"{peer.name}: {peer.module} {one.version}"))
            up.append(one)
    return up


async def _round_on_ray(
    one: Callable[[int], Awaitable[None]], actor: str, peers: Sequence[Contender], concurrency: int, seconds: float
) -> Round:
    with raw.stopped(except_for=actor):
        await asyncio.sleep(_PAUSE_S)
        ours = _ours(peers)
        before = contender.cpu_s(ours)
        found = await closed_loop(one, concurrency, seconds)
        found.cpu_s = contender.cpu_s(ours) - before
    return found


async def _round_of_peer(
    one: Contender, peers: Sequence[Contender], standing_by: list[float], concurrency: int, seconds: float
) -> Round:
    with raw.stopped():
        await asyncio.sleep(_PAUSE_S)
        idle = _ours(peers)[1:]  # Without this process, which only counts meanwhile.
        before, began = contender.cpu_s(idle), time.perf_counter()
        found = await one.measure(Order(concurrency, seconds, TASKS))
        standing_by.append((contender.cpu_s(idle) - before) / (time.perf_counter() - began))
    return found


def _ours(peers: Sequence[Contender]) -> list[psutil.Process]:
    """Return this process and all that it started, Ray's and Nexus's, without the peers."""
    theirs = {process.pid for one in peers for process in one.processes()}
    me = psutil.Process()
    return [process for process in (me, *me.children(recursive=True)) if process.pid not in theirs]
