"""A whole fleet for one section: Ray on this machine, ledger, directory, hosts and, where asked for, the front door.

Everything is on, as after `nexus up`: fsync, tokens, roles, default sampling, metrics, logs. Only Ray's dashboard is
off, for Nexus and for raw Ray alike: it is another process on the same cores.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil

from benchmarks.job import TASKS, TEXT
from benchmarks.sampling import Round, closed_loop
from nexus_ray.config import Settings, load
from nexus_ray.ledger.goal import GoalStatus, Outcome

APP = "benchmarks.fleet:app"


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a section needs to know of the fleet that is up."""

    settings: Settings
    token: str
    url: str


@contextlib.contextmanager
def fleet(folder: Path, *, has_front_door: bool = False) -> Iterator[Fleet]:
    """Bring a fleet up, and down again."""
    from nexus_ray.runtime.local import set_environment, start_control_plane, start_ray, stop_ray
    from nexus_ray.runtime.state import prepare_state, write_operator_token

    os.umask(0o077)
    runtime = {"http_port": free_port(), "dashboard": False, "dashboard_port": free_port()}
    settings = load(state_dir=folder, runtime=runtime)
    prepare_state(settings)
    write_operator_token(settings)
    set_environment(settings)
    start_ray(settings)
    try:
        start_control_plane(APP, settings)
        url = ""
        if has_front_door:
            from nexus_ray.api.ingress import open_front_door

            url = open_front_door(APP, settings)
        yield Fleet(settings, (folder / "token").read_text().strip(), url)
        if has_front_door:
            from nexus_ray.api.ingress import close_front_door

            close_front_door()
    finally:
        stop_ray()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def host_processes() -> dict[str, psutil.Process]:
    """Return the processes of the agent hosts, by name."""
    from nexus_ray.runtime.fleet import RayFleet

    return {str(entry["host"]): psutil.Process(int(entry["process"])) for entry in asyncio.run(RayFleet().hosts())}


def work(tasks: int = TASKS) -> bytes:
    return orjson.dumps({"text": TEXT, "tasks": tasks})


def check(outcome: Outcome, expected: int) -> None:
    """A benchmark that measures failures measures nothing."""
    if outcome.status is not GoalStatus.SUCCEEDED or orjson.loads(outcome.result) != expected:
        raise RuntimeError(f"a goal ended as {outcome.status}: {outcome.failure or outcome.result!r}")


@contextlib.asynccontextmanager
async def direct(token: str) -> AsyncIterator[Callable[[str, bytes], Awaitable[Outcome]]]:
    """Yield what submits a goal from inside the cluster and returns its outcome."""
    from nexus_ray.runtime.direct import DirectClient

    client = DirectClient(token)
    await client.connect()

    async def submit(type_name: str, payload: bytes) -> Outcome:
        return await client.run(type_name, payload, 120.0)

    yield submit


async def measure(name: str, one: Callable[[int], Awaitable[None]], concurrency: int, seconds: float) -> Round:
    """One round, with a pause before it for what the round before left behind."""
    await asyncio.sleep(0.2)
    result = await closed_loop(one, concurrency, seconds)
    say(f"{name} at {concurrency}: {result.rate:,.0f} goals/s")
    return result


def say(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')}  {text}", flush=True)
