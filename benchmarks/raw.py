"""The same work on Ray alone: one actor per agent, and one host actor that takes a whole goal in one call.

In memory and open to everybody on the cluster: no record, no identity, no traces. That is the comparison.
Ray is imported where it is used: it reads its environment when it is imported, and the fleet sets that.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import psutil


class CounterActor:
    """One agent."""

    def __init__(self) -> None:
        self.count = 0

    async def handle(self, payload: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        return {"count": self.count}


class HostActor:
    """Many agents in one process; a goal is one call."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    async def handle_all(self, payloads: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(self._handle(key, payload) for key, payload in payloads)))

    async def _handle(self, key: str, payload: dict[str, Any]) -> dict[str, Any]:
        self.counts[key] = self.counts.get(key, 0) + 1
        return {"count": self.counts[key]}


@contextlib.contextmanager
def stopped(except_for: str = "") -> Iterator[None]:
    """Stop the processes of raw Ray's actors, but for those of one class; let them go on afterwards."""
    kinds = {CounterActor.__name__, HostActor.__name__} - {except_for}
    found = [one for one in psutil.Process().children(recursive=True) if any(kind in _title(one) for kind in kinds)]
    for process in found:
        process.suspend()
    try:
        yield
    finally:
        for process in found:
            process.resume()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def spawn_counters(count: int) -> list[Any]:
    """Return actors that have answered once."""
    import ray

    actors = [ray.remote(CounterActor).options(num_cpus=0, max_concurrency=1000).remote() for _ in range(count)]
    ray.get([actor.handle.remote({"text": ""}) for actor in actors], timeout=150.0)
    return actors


def spawn_host() -> Any:
    """Return a host actor that has answered once."""
    import ray

    host = ray.remote(HostActor).options(num_cpus=0, max_concurrency=1000).remote()
    ray.get(host.handle_all.remote([("0", {"text": ""})]), timeout=60.0)
    return host


async def fan_out(actors: list[Any], text: str) -> None:
    """One goal: every actor is asked once."""
    answers = await asyncio.gather(*(actor.handle.remote({"text": text}) for actor in actors))
    assert len(answers) == len(actors) and all(answer["count"] > 0 for answer in answers)


async def fan_out_grouped(host: Any, tasks: int, text: str) -> None:
    """One goal: one call with all questions."""
    answers = await host.handle_all.remote([(str(number), {"text": text}) for number in range(tasks)])
    assert len(answers) == tasks and all(answer["count"] > 0 for answer in answers)
