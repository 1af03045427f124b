"""The chaos run, small: every kind of process is killed and paused under load, and every goal is accounted for."""

from pathlib import Path

import pytest

from benchmarks.chaos import report
from benchmarks.chaos.processes import Processes
from benchmarks.chaos.schedule import schedule
from benchmarks.chaos.torment import torment
from nexus_ray.runtime.client import Connection

from .conftest import Fleet, until

pytestmark = pytest.mark.ray

BLOWS = 25
EVERY_S = 0.8
SEED = 25


@pytest.mark.timeout(240)  # Some 40 s on two cores that have nothing else to do.
def test_after_25_blows_nothing_is_lost_doubled_or_stuck(fleet: Fleet, connection: Connection, tmp_path: Path) -> None:
    kinds = Processes(fleet.record["pid"]).kinds()
    assert {"agent host", "ledger", "directory", "Serve replica", "Serve controller"} <= set(kinds)
    blows = schedule(SEED, BLOWS, EVERY_S, kinds)

    result = torment(fleet.connect, fleet.record["pid"], blows, tmp_path, seed=SEED)

    print(f"seed {SEED}", dict(report.rows(result)), *result.recoveries, sep="\n")
    assert report.complaints(result) == []
    assert result.is_clean and result.blows == BLOWS and result.account.accepted > BLOWS
    assert set(result.account.ended) == {"succeeded"}
    until(lambda: len(connection.hosts()) == 2)
