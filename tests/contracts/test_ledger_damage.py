"""What a disk may do to the embedded ledger: flip bits in its log, cut writes short, and fail to sync."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nexus_ray.core.errors import DataLossError
from nexus_ray.ledger.goal import GoalQuery
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.log import read_log
from nexus_ray.ledger.sqlite import SqliteLedger
from tests.support.records import a_goal

GOALS = 12
LIBRARY = Path(__file__).parents[1] / "support" / "failing_sync.c"


async def left_by_a_kill(folder: Path) -> Path:
    """A ledger as it lies there when its process was killed: its last transactions are in the log alone."""
    path = folder / "alive.sqlite"
    ledger = await SqliteLedger.open(path)
    for number in range(GOALS):
        await ledger.accept([a_goal(f"goal-{number:02}")])
    dead = folder / "dead.sqlite"
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{dead}{suffix}")
    await ledger.close()
    return dead


async def goals_in(path: Path) -> int:
    ledger = await SqliteLedger.open(path)
    try:
        return len(await ledger.goals(GoalQuery(limit=100)))
    finally:
        await ledger.close()


async def test_a_log_that_is_whole_is_taken(tmp_path: Path) -> None:
    assert await goals_in(await left_by_a_kill(tmp_path)) == GOALS


async def test_a_bit_that_flips_in_the_log_is_never_taken_for_a_write_that_was_cut_short(tmp_path: Path) -> None:
    whole = await left_by_a_kill(tmp_path)
    log = Path(f"{whole}-wal").read_bytes()
    commits = read_log(whole).commits
    frame = (len(log) - 32) // commits[-1]
    refused = 0
    for at in range(32 + 24, len(log), frame // 2):
        changed = bytearray(log)
        changed[at] ^= 0x10
        copy = tmp_path / f"{at}.sqlite"
        shutil.copy(whole, copy)
        Path(f"{copy}-wal").write_bytes(bytes(changed))
        is_last = (at - 32) // frame >= commits[-2]
        try:
            kept = await goals_in(copy)
        except DataLossError as error:
            refused += 1
            assert "restore a backup" in error.message
            assert not is_last
        else:
            # The transaction that was the last cannot be told from one that nobody was told of.
            assert (kept == GOALS) or (is_last and kept == GOALS - 1), at
    assert refused > 12


async def test_a_write_that_was_cut_short_is_dropped_and_what_was_acknowledged_before_stays(tmp_path: Path) -> None:
    whole = await left_by_a_kill(tmp_path)
    log = Path(f"{whole}-wal").read_bytes()
    commits = read_log(whole).commits
    frame = (len(log) - 32) // commits[-1]
    for torn in (1, 25, frame, frame + 100, 2 * frame - 1):
        copy = tmp_path / f"torn-{torn}.sqlite"
        shutil.copy(whole, copy)
        Path(f"{copy}-wal").write_bytes(log[:-torn])

        assert await goals_in(copy) == GOALS - 1


@pytest.fixture(scope="module")
def failing_sync(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes fsync fail while a file is there."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no C compiler here: apt install gcc libc6-dev")
    library = tmp_path_factory.mktemp("sync") / "failing_sync.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, LIBRARY, "-ldl"], check=True)
    return library


def test_nothing_is_acknowledged_after_a_sync_that_failed(failing_sync: Path, tmp_path: Path) -> None:
    switch = tmp_path / "fail"
    environment = {**os.environ, "LD_PRELOAD": str(failing_sync), "NEXUS_TEST_FAIL_SYNC": str(switch)}
    path = tmp_path / "ledger.sqlite"

    told = subprocess.run(
        [sys.executable, "-m", "tests.support.syncing_child", str(path), str(switch)],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    ).stdout.split()  # fmt: skip

    refused = [line for line in told if line.startswith("refused:")]
    acknowledged = [line.removeprefix("accepted:") for line in told if line.startswith("accepted:")]
    assert len(refused) == 10 and len(acknowledged) == 10
    assert [line.split(":")[1] for line in refused] == ["UnavailableError"] * 10

    async def kept() -> set[str]:
        ledger = await SqliteLedger.open(path, LedgerSettings())
        try:
            return {record.goal.id for record in await ledger.goals(GoalQuery(limit=100))}
        finally:
            await ledger.close()

    assert set(acknowledged) <= asyncio.run(kept())
