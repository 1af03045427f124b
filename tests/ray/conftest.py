"""One fleet for all tests here, started as a user would: `nexus up --detach`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nexus_ray.cli.demo import free_port
from nexus_ray.runtime.client import Connection, connect

ROOT = Path(__file__).resolve().parents[2]
NEXUS = [sys.executable, "-m", "nexus_ray.cli"]
UP_S_MAX = 120


class Fleet:
    """A running fleet, and what a test may do to it."""

    def __init__(self, state: Path, app: str, *, dashboard: bool = False) -> None:
        self.state = state
        self.app = app
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NEXUS_", "RAY_"))},
            "NEXUS_STATE_DIR": str(state),
            "NEXUS_RUNTIME__DASHBOARD": str(dashboard).lower(),  # Without it, a fleet is up seconds earlier.
            "NEXUS_RUNTIME__DASHBOARD_PORT": str(free_port()),
            "NEXUS_RUNTIME__HTTP_PORT": str(free_port()),
            "PYTHONPATH": str(ROOT),
        }

    def nexus(self, *arguments: str, timeout_s: float = 60, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run `nexus ARGUMENTS` to its end."""
        return subprocess.run(
            [*NEXUS, *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout_s, **options
        )

    def up(self) -> None:
        done = self.nexus("up", self.app, "--detach", timeout_s=UP_S_MAX)
        assert done.returncode == 0, done.stderr

    def down(self) -> None:
        done = self.nexus("down", timeout_s=90)
        assert done.returncode == 0, done.stderr

    @property
    def record(self) -> dict[str, Any]:
        """What `nexus up` wrote about itself."""
        return dict(json.loads((self.state / "fleet.json").read_text()))

    def connect(self) -> Connection:
        return connect(self.record["url"], (self.state / "token").read_text().strip(), self.state)

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Return the fleet's processes whose title begins with `name`."""
        found = []
        root = psutil.Process(self.record["pid"])
        for process in [root, *root.children(recursive=True)]:
            try:
                if not name or " ".join(process.cmdline()).startswith(name):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, name: str) -> None:
        """SIGKILL the one process whose title begins with `name`."""
        (process,) = self.processes(name)
        process.kill()

    def host_process(self, host: str) -> psutil.Process:
        with self.connect() as connection:
            (pid,) = [entry["process"] for entry in connection.hosts() if entry["host"] == host]
        return psutil.Process(pid)


def until(what: Callable[[], Any], *, within_s: float = 30.0, every_s: float = 0.05) -> Any:
    """Return what `what` gives as soon as it is true; fail when it does not become so in time."""
    ends_at = time.monotonic() + within_s
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < ends_at, f"not within {within_s:g} s"
        time.sleep(every_s)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet") / "state", "tests.ray.fleet_app:app", dashboard=True)
    fleet.up()
    yield fleet
    fleet.down()


@pytest.fixture
def connection(fleet: Fleet) -> Iterator[Connection]:
    with fleet.connect() as connection:
        yield connection
