"""What only the embedded ledger promises: a file, a lock, a full disk, SIGKILL, group commit."""

import asyncio
import itertools
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus_ray.core.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    FencedError,
    NotFoundError,
    UnavailableError,
)
from nexus_ray.ledger.goal import Claim, EntryKind, GoalQuery, GoalStatus, Note
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.ports import Acceptance
from nexus_ray.ledger.sqlite import SqliteLedger
from nexus_ray.observe import metrics
from tests.support.records import COUNTER, a_finish, a_goal, a_step

SEED = 20_260
MIB = 1024 * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


async def test_only_its_owner_can_read_it(path: Path) -> None:
    before = os.umask(0)
    try:
        ledger = await SqliteLedger.open(path)
        await ledger.accept([a_goal()])
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        await ledger.close()
    finally:
        os.umask(before)

    assert len(modes) == 4 and set(modes.values()) == {0o600}


async def test_everything_is_there_after_it_was_closed_and_opened(path: Path) -> None:
    ledger = await SqliteLedger.open(path)
    await ledger.accept([a_goal(idempotency_key="k"), a_goal("goal-2")], "host-a")
    await ledger.append("host-a", [a_step(version=1), a_finish()])
    await ledger.fence("host-a")
    epoch = await ledger.next_epoch()
    before = (await ledger.goals(GoalQuery()), await ledger.journal("goal-1", 0, 100), await ledger.changes(-1, 0, 1))
    await ledger.close()

    ledger = await SqliteLedger.open(path)

    after = (await ledger.goals(GoalQuery()), await ledger.journal("goal-1", 0, 100), await ledger.changes(-1, 0, 1))
    assert after == before
    assert await ledger.next_epoch() == epoch + 1
    state = await ledger.agent_state(COUNTER)
    assert state is not None and state.version == 1
    with pytest.raises(FencedError):
        await ledger.append("host-a", [])
    assert await ledger.accept([a_goal("goal-3", idempotency_key="k")]) == [Acceptance("goal-1", False)]
    assert await ledger.append("host-b", [Claim("goal-2", 1.0), a_step("x", "goal-2", version=2)]) == [True, True]
    await ledger.close()


async def test_a_killed_writer_loses_nothing_that_was_acknowledged_and_leaves_no_half_call(path: Path) -> None:
    print("seed", SEED)
    rng = random.Random(SEED)
    accepted: set[str] = set()
    finished: set[str] = set()
    version = 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ledger_child", str(path), str(version // 3)],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert child.stdout is not None
        said = [child.stdout.readline()]
        time.sleep(rng.uniform(0.0, 0.08))  # Not a wait for something: the moment of the kill is what is varied.
        child.send_signal(signal.SIGKILL)
        said += child.stdout.read().splitlines(keepends=True)
        child.wait(10)
        child.stdout.close()
        whole = [line.split() for line in said if line.endswith("\n")]
        accepted |= {goal_id for word, goal_id in whole if word == "accepted"}
        finished |= {goal_id for word, goal_id in whole if word == "finished"}

        ledger = await SqliteLedger.open(path)
        records = {record.goal.id: record for record in await ledger.goals(GoalQuery(limit=10_000))}
        assert accepted <= records.keys()
        assert finished <= {goal_id for goal_id, record in records.items() if record.status.is_terminal}
        for goal_id, record in records.items():
            kinds = [entry.kind for entry in await ledger.journal(goal_id, 0, 10)]
            begun = [EntryKind.ACCEPTED, EntryKind.CLAIMED]
            ended = [*begun, EntryKind.STEP, EntryKind.STEP, EntryKind.STEP, EntryKind.FINISHED]
            assert kinds == (ended if record.status is GoalStatus.SUCCEEDED else begun)
        state = await ledger.agent_state(COUNTER)
        version = state.version if state else 0
        assert version == 3 * sum(record.status.is_terminal for record in records.values())
        # What was left in the middle is ended as its host would, so that the next child's versions follow on.
        for goal_id in sorted(goal_id for goal_id, record in records.items() if not record.status.is_terminal):
            steps = [a_step(f"s-{n}", goal_id, version=version + n) for n in (1, 2, 3)]
            assert await ledger.append("host-a", [*steps, a_finish(goal_id)]) == [True] * 4
            version += 3
        await ledger.close()

    assert len(finished) > 10


async def test_a_second_writer_is_refused_and_the_first_goes_on(path: Path) -> None:
    ledger = await SqliteLedger.open(path)

    with pytest.raises(AlreadyExistsError):
        await SqliteLedger.open(path)
    code = (
        "import asyncio, sys\nfrom nexus_ray.ledger.sqlite import SqliteLedger\n"
        "try: asyncio.run(SqliteLedger.open(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__)"
    )
    other = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, str(path)], capture_output=True)

    assert other.stdout == b"AlreadyExistsError\n"
    assert await ledger.accept([a_goal()]) == [Acceptance("goal-1", True)]
    await ledger.close()
    again = await SqliteLedger.open(path)
    assert await again.goal("goal-1") is not None
    await again.close()


async def fill(ledger: SqliteLedger) -> list[int]:
    """Write until there is no room; return which notes were acknowledged."""
    kept = []
    for number in itertools.count():
        try:
            await ledger.append("", [Note("goal-1", float(number), b"x" * 200_000)])
        except UnavailableError as error:
            assert "full" in error.message or "IOERR" in error.message, error.message
            return kept
        kept.append(number)
        assert number < 100, "it never filled up"
    raise AssertionError


async def notes(ledger: SqliteLedger) -> list[int]:
    return [int(entry.at) for entry in await ledger.journal("goal-1", 0, 1000) if entry.kind is EntryKind.NOTE]


async def test_a_full_file_refuses_and_loses_nothing_and_goes_on_when_it_may_grow(path: Path) -> None:
    ledger = await SqliteLedger.open(path, LedgerSettings(file_bytes_max=2 * MIB))
    await ledger.accept([a_goal()], "host-a")

    kept = await fill(ledger)
    small = await ledger.append("host-a", [a_step(version=1)])
    assert await notes(ledger) == kept and len(kept) >= 5
    await ledger.close()

    ledger = await SqliteLedger.open(path, LedgerSettings(file_bytes_max=8 * MIB))
    assert await notes(ledger) == kept
    assert await ledger.append("host-a", [Note("goal-1", 0.0, b"x" * 200_000), a_finish()]) == [True, True]
    state = await ledger.agent_state(COUNTER)
    assert (small, state and state.version) == ([True], 1)
    await ledger.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can be mounted by root only; test_a_file_that_may_not_grow covers the rest")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_refuses_and_loses_nothing_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * MIB)
    ledger = await SqliteLedger.open(small_disk / "ledger.sqlite")
    await ledger.accept([a_goal()], "host-a")

    kept = await fill(ledger)
    with pytest.raises(UnavailableError):
        await ledger.append("host-a", [a_step(version=1), Note("goal-1", 0.0, b"x" * 200_000)])
    assert await notes(ledger) == kept and await ledger.agent_state(COUNTER) is None
    ballast.unlink()

    assert await ledger.append("host-a", [a_step(version=1), Note("goal-1", 99.0, b"x" * 200_000)]) == [True, True]
    await ledger.close()
    ledger = await SqliteLedger.open(small_disk / "ledger.sqlite")
    assert await notes(ledger) == [*kept, 99]
    await ledger.close()


async def test_a_file_that_may_not_grow_refuses_and_loses_nothing(path: Path) -> None:
    ledger = await SqliteLedger.open(path)
    await ledger.accept([a_goal()], "host-a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        kept = await fill(ledger)
        assert await notes(ledger) == kept
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)

    assert await ledger.append("host-a", [Note("goal-1", 99.0, b"x" * 200_000)]) == [True]
    await ledger.close()
    ledger = await SqliteLedger.open(path)
    assert await notes(ledger) == [*kept, 99]
    await ledger.close()


@pytest.mark.parametrize("content", [b"hello " * 5000, b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(DataLossError):
        await SqliteLedger.open(path)

    assert path.read_bytes() == content


async def test_another_programs_database_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs(x)")
    other.close()

    with pytest.raises(DataLossError):
        await SqliteLedger.open(path)


async def test_a_damaged_ledger_says_so_and_guesses_nothing(path: Path) -> None:
    ledger = await SqliteLedger.open(path)
    await ledger.accept([a_goal(f"goal-{n}", payload=b"1" * 3000) for n in range(50)])
    await ledger.close()
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))

    with pytest.raises(DataLossError):
        ledger = await SqliteLedger.open(path)
        try:
            await ledger.goals(GoalQuery())
        finally:
            await ledger.close()


async def test_a_record_that_cannot_be_read_back_is_not_guessed(path: Path) -> None:
    ledger = await SqliteLedger.open(path)
    await ledger.accept([a_goal(), a_goal("goal-2")])
    await ledger.close()
    with sqlite3.connect(path) as other:
        other.execute("UPDATE goals SET headers = '{' WHERE id = 'goal-1'")
    other.close()

    ledger = await SqliteLedger.open(path)

    with pytest.raises(DataLossError):
        await ledger.goal("goal-1")
    assert await ledger.goal("goal-2") is not None
    await ledger.close()


async def test_a_newer_schema_is_refused_and_the_file_is_let_go(path: Path) -> None:
    await (await SqliteLedger.open(path)).close()

    for version, refused in ((4, True), (3, False)):
        with sqlite3.connect(path) as other:
            other.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (version,))
        other.close()
        if refused:
            with pytest.raises(FailedPreconditionError):
                await SqliteLedger.open(path)
        else:
            await (await SqliteLedger.open(path)).close()


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        await SqliteLedger.open(tmp_path / "no" / "ledger.sqlite")


async def test_what_waits_is_committed_together(path: Path) -> None:
    ledger = await SqliteLedger.open(path)
    await ledger.accept([a_goal()], "host-a")
    before, counted = ledger.commits, commits_counted()

    answers = await asyncio.gather(*(ledger.append("host-a", [a_step(f"s-{n}")]) for n in range(500)))

    assert answers == [[True]] * 500
    assert ledger.commits - before <= 20
    assert commits_counted() - counted == ledger.commits - before
    await ledger.close()


def commits_counted() -> int:
    line = next((line for line in metrics.exposition().decode().splitlines()
                 if line.startswith('nexus_ledger_commits_total{result="ok"}')), "x 0")  # fmt: skip
    return int(float(line.split()[1]))


async def test_too_much_waiting_is_refused_and_nothing_of_it_is_kept(path: Path) -> None:
    ledger = await SqliteLedger.open(path, LedgerSettings(queue_writes_max=50))
    await ledger.accept([a_goal()], "host-a")

    calls = [ledger.append("host-a", [a_step(f"s-{n}-{m}") for m in range(10)]) for n in range(100)]
    answers = await asyncio.gather(*calls, return_exceptions=True)

    refused = [answer for answer in answers if isinstance(answer, UnavailableError)]
    assert refused and all(error.details["retry_after_s"] > 0 for error in refused)
    steps = len(await ledger.journal("goal-1", 2, 10_000))
    assert steps == 10 * sum(answer == [True] * 10 for answer in answers) == 10 * (100 - len(refused))
    await ledger.close()


async def test_a_ledger_serves_several_event_loops_of_its_process(path: Path) -> None:
    ledger = await SqliteLedger.open(path)
    await ledger.accept([a_goal()], "host-a")

    def elsewhere(number: int) -> list[bool]:
        return asyncio.run(ledger.append("host-a", [a_step(f"s-{number}")]))

    answers = await asyncio.gather(*(asyncio.to_thread(elsewhere, number) for number in range(5)))

    assert answers == [[True]] * 5
    await ledger.close()


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("journal", "body", b'{"n":2}'),
        ("journal", "at", 10.5),
        ("goals", "principal", "eve"),
        ("goals", "host", "host-x"),
        ("agent_states", "body", b'{"n":9}'),
    ],
)
async def test_a_row_that_was_changed_behind_its_back_is_refused_by_name(
    path: Path, table: str, column: str, value: object
) -> None:
    ledger = await SqliteLedger.open(path)
    await ledger.accept([a_goal()], "host-a")
    await ledger.append("host-a", [a_step(version=1)])
    await ledger.close()
    with sqlite3.connect(path) as other:
        other.execute(f"UPDATE {table} SET {column} = ?", (value,))
    other.close()

    ledger = await SqliteLedger.open(path)

    with pytest.raises(DataLossError, match=r"goal-1|counter/k"):
        await ledger.agent_state(COUNTER)
        await ledger.goal("goal-1")
        await ledger.journal("goal-1", 0, 10)
    await ledger.close()
