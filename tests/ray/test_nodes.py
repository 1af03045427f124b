"""Several machines, as far as one can have them on one: one that joins, one that is lost, and the head killed."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from nexus_ray.cli.demo import free_port

from .conftest import ROOT, Fleet

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]  # Half a minute alone; minutes on a machine that is busy.

ONCE_EACH = [1] * 10 + [11] * 10


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Redis that keeps on disk what it is told, on loopback, with a password; how to find it, as variables."""
    program = shutil.which("redis-server")
    if program is None:
        assert not os.environ.get("CI"), "redis-server is missing: apt install redis-server"
        pytest.skip("needs redis-server: apt install redis-server")
    folder, port, password = tmp_path_factory.mktemp("redis"), free_port(), secrets.token_hex(16)
    (folder / "redis.conf").write_text(
        f'bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {folder}\nappendonly yes\nsave ""\n'
    )
    server = subprocess.Popen([program, folder / "redis.conf"], stdout=subprocess.DEVNULL)
    yield {"RAY_REDIS_ADDRESS": f"127.0.0.1:{port}", "REDIS_PASSWORD": password}
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def seen(redis: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program saw, on one cluster: it takes ten seconds to have one."""
    fleet = Fleet(tmp_path_factory.mktemp("nodes") / "state", "tests.ray.fleet_app:app")
    done = subprocess.run(
        [sys.executable, "-m", "tests.ray.several_nodes", fleet.state],
        cwd=ROOT, env={**fleet.environment, **redis}, capture_output=True, text=True, timeout=220,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))))


def test_a_node_that_joins_gets_hosts_and_what_was_on_one_that_is_lost_goes_on(seen: dict[str, Any]) -> None:
    second = seen["second"]

    assert (second["nodes"], second["processes"]) == (2, 4)
    assert second["streams"] == [["127.0.0.1", True]] * 4, "loopback, as everything of this cluster"
    assert second["ways"]["stream"] > 0 and second["ways"]["socket"] > 0
    assert second["walled"]["answers"] == 30, "Ray carries where no connection comes through"
    assert 1 <= second["walled"]["dialled"] <= 4, "dialled less and less often"
    assert second["epochs"] == sorted(set(second["epochs"]))
    assert second["left"]
    assert second["results"] == [ONCE_EACH] * 6


def test_accepted_goals_end_once_though_the_head_is_killed_and_clients_wait_through_it(seen: dict[str, Any]) -> None:
    head = seen["head"]

    assert head["without"] == [ONCE_EACH] * 8 and head["with"] == [ONCE_EACH] * 4
    assert head["over"] == [ONCE_EACH] * 8
    assert (seen["goals"], seen["ends"]) == (7 + 24, [1])
    assert head["epochs"] == sorted(head["epochs"]) and head["epochs"][-1] > head["epochs"][0]
