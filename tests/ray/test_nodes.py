"""Two machines, as far as one can have them on one: what a node that joins brings, and one that is lost takes along."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Fleet

pytestmark = pytest.mark.ray


def test_a_node_that_joins_gets_hosts_and_what_was_on_one_that_is_lost_goes_on(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "state", "tests.ray.fleet_app:app")

    done = subprocess.run(
        [sys.executable, "-m", "tests.ray.two_nodes", tmp_path / "state"],
        cwd=ROOT, env=fleet.environment, capture_output=True, text=True, timeout=110,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
    assert (seen["nodes"], seen["processes"]) == (2, 4)
    assert seen["streams"] == [["127.0.0.1", True]] * 4, "loopback, as everything of this cluster"
    assert seen["ways"]["stream"] > 0 and seen["ways"]["socket"] > 0
    assert seen["walled"]["answers"] == 30, "Ray carries where no connection comes through"
    assert 1 <= seen["walled"]["dialled"] <= 4, "dialled less and less often"
    assert seen["epochs"] == sorted(set(seen["epochs"]))
    assert seen["left"]
    assert seen["results"] == [[1] * 10 + [11] * 10] * 6
