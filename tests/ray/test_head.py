"""The Ray head killed: first its GCS, then all of it, with its records in a real Redis."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Fleet

pytestmark = pytest.mark.ray

ONCE_EACH = [1] * 10 + [11] * 10


@pytest.fixture
def redis_server() -> str:
    found = shutil.which("redis-server")
    if found is None:
        assert not os.environ.get("CI"), "redis-server is missing: apt install redis-server"
        pytest.skip("needs redis-server: apt install redis-server")
    return found


def test_accepted_goals_end_once_though_the_head_is_killed_and_clients_wait_through_it(
    redis_server: str, tmp_path: Path
) -> None:
    fleet = Fleet(tmp_path / "state", "tests.ray.fleet_app:app")

    done = subprocess.run(
        [sys.executable, "-m", "tests.ray.head_killed", tmp_path / "state"],
        cwd=ROOT, env=fleet.environment, capture_output=True, text=True, timeout=150,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
    assert seen["without"] == [ONCE_EACH] * 8 and seen["with"] == [ONCE_EACH] * 4
    assert seen["over"] == [ONCE_EACH] * 8
    assert (seen["goals"], seen["ends"]) == (20, [1])
    assert seen["epochs"] == sorted(seen["epochs"]) and seen["epochs"][-1] > seen["epochs"][0]
