"""The Ray head killed: first its GCS, then all of it, with its records in a real Redis."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus_ray.cli.demo import free_port

from .conftest import ROOT, Fleet

pytestmark = pytest.mark.ray

ONCE_EACH = [1] * 10 + [11] * 10


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Redis that keeps on disk what it is told, on loopback, with a password; how to find it, as variables."""
    program = shutil.which("redis-server")
    if program is None:
        assert not os.environ.get("CI"), "redis-server is missing: apt install redis-server"
        pytest.skip("needs redis-server: apt install redis-server")
    port, password = free_port(), secrets.token_hex(16)
    (tmp_path / "redis.conf").write_text(
        f'bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {tmp_path}\nappendonly yes\nsave ""\n'
    )
    server = subprocess.Popen([program, tmp_path / "redis.conf"], stdout=subprocess.DEVNULL)
    yield {"RAY_REDIS_ADDRESS": f"127.0.0.1:{port}", "REDIS_PASSWORD": password}
    server.kill()
    server.wait()


@pytest.mark.timeout(240)  # Twenty seconds alone; starting two nodes takes minutes on a machine that is busy.
def test_accepted_goals_end_once_though_the_head_is_killed_and_clients_wait_through_it(
    redis: dict[str, str], tmp_path: Path
) -> None:
    fleet = Fleet(tmp_path / "state", "tests.ray.fleet_app:app")

    done = subprocess.run(
        [sys.executable, "-m", "tests.ray.head_killed", tmp_path / "state"],
        cwd=ROOT, env={**fleet.environment, **redis}, capture_output=True, text=True, timeout=220,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
    assert seen["without"] == [ONCE_EACH] * 8 and seen["with"] == [ONCE_EACH] * 4
    assert seen["over"] == [ONCE_EACH] * 8
    assert (seen["goals"], seen["ends"]) == (24, [1])
    assert seen["epochs"] == sorted(seen["epochs"]) and seen["epochs"][-1] > seen["epochs"][0]
