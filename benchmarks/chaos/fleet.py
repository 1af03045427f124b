"""A fleet of its own for a run: `nexus up` as a child, with its own state folder and ports, stopped afterwards."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.cluster import free_port
from nexus_ray.cli.detached import start, stop
from nexus_ray.runtime.client import Connection, connect

APP = "benchmarks.chaos.agents:app"
ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def fleet(folder: Path, say: Callable[[str], None]) -> Iterator[tuple[int, Callable[[], Connection]]]:
    """Yield the process that all others of the fleet come from, and what opens a connection."""
    environment = {"NEXUS_RUNTIME__DASHBOARD_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    up = start(folder, [APP, "--host", "127.0.0.1", "--port", str(free_port())], say, environment=environment)
    try:
        yield up.pid, functools.partial(connect, up.url, (folder / "token").read_text().strip(), folder)
    finally:
        stop(folder)
