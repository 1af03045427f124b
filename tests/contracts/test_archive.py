"""Keeping a ledger safe: backups while it is written, restoration, and every fault found."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexus_ray.core.errors import AlreadyExistsError, DataLossError, NotFoundError
from nexus_ray.ledger.archive import backup, look_through, restore, verify
from nexus_ray.ledger.goal import Claim, EntryKind, GoalQuery, GoalStatus, Note, RequestCancel, Step
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.ports import Acceptance, Ledger
from nexus_ray.ledger.postgres import PostgresLedger
from nexus_ray.ledger.sqlite import SqliteLedger
from nexus_ray.ledger.tables import reading, writing
from tests.support.postgres import Server
from tests.support.records import COUNTER, a_finish, a_goal, a_step

KINDS = ("sqlite", "postgres")


class Place:
    """Where one ledger is."""

    def __init__(self, kind: str, path: Path, server: Server | None) -> None:
        self.path = path
        self.database = server.ledger() if server is not None else ""
        self.settings = LedgerSettings(url=server.url(self.database), cluster="here") if server else LedgerSettings()

    async def open(self) -> Ledger:
        if self.database:
            return await PostgresLedger.open(self.settings, "host")
        return await SqliteLedger.open(self.path, self.settings)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made: list[Place] = []
    servers: list[Server] = []

    def make(kind: str) -> Place:
        server = request.getfixturevalue("postgres") if kind == "postgres" else None
        servers.extend([server] if server else [])
        made.append(Place(kind, tmp_path / f"{len(made)}.sqlite", server))
        return made[-1]

    yield make
    for one in made:
        if one.database:
            servers[0].give_back(one.database)


async def fill(ledger: Ledger) -> None:
    goals = [a_goal(f"goal-{n:02}", idempotency_key=f"k{n}", payload=f'{{"n":{n},"t":"ü"}}'.encode()) for n in range(8)]
    await ledger.accept(goals, "host-a")
    for n in range(6):
        await ledger.append("host-a", [a_step("s-1", f"goal-{n:02}", version=n + 1), Note(f"goal-{n:02}", 1.5, b"[1]")])
    ends = list(GoalStatus)[2:]
    await ledger.append("host-a", [a_finish(f"goal-{n:02}", status) for n, status in enumerate(ends)])
    await ledger.append("", [RequestCancel("goal-07", 2.0, "ann")])
    await ledger.append("host-a", [Step("goal-06", "q", 3.0, b"{}", kind=EntryKind.ASKED)])
    await ledger.fence("host-a")
    await ledger.next_epoch()


async def story(ledger: Ledger) -> Any:
    goals = await ledger.goals(GoalQuery(limit=1000))
    journals = [await ledger.journal(record.goal.id, 0, 1000) for record in goals]
    return goals, journals, await ledger.agent_state(COUNTER), await ledger.questions(0, 100)


@pytest.mark.parametrize(("source", "target"), [("sqlite", "sqlite"), ("sqlite", "postgres"), ("postgres", "sqlite")])
async def test_a_restored_ledger_tells_the_same_story_and_goes_on(
    place: Any, tmp_path: Path, source: str, target: str
) -> None:
    old, new = place(source), place(target)
    ledger = await old.open()
    await fill(ledger)
    before, seq = await story(ledger), (await ledger.changes(-1, 0, 1))[0]

    with reading(old.settings, old.path) as tables:
        written = backup(tables, tmp_path / "backup")
    epoch = await ledger.next_epoch()
    await ledger.close()
    with writing(new.settings, new.path) as tables:
        read = restore(tmp_path / "backup", tables)

    assert (written.goals, written.entries, written.states) == (read.goals, read.entries, read.states) == (8, 34, 1)
    ledger = await new.open()
    assert await story(ledger) == before
    assert (await ledger.changes(-1, 0, 1))[0] == seq
    assert await ledger.next_epoch() > epoch
    assert await ledger.accept([a_goal("goal-99", idempotency_key="k3", payload=b'{"n":3,"t":"\xc3\xbc"}')]) == [
        Acceptance("goal-03", False)
    ]
    assert await ledger.append("host-b", [Claim("goal-06", 9.0), a_step("s-2", "goal-06", version=7)]) == [True, True]
    await ledger.close()
    with reading(new.settings, new.path) as tables:
        assert verify(tables).is_sound


@pytest.mark.parametrize("kind", KINDS)
async def test_a_backup_while_the_ledger_is_written_holds_one_instant(place: Any, tmp_path: Path, kind: str) -> None:
    old, new = place(kind), place("sqlite")
    ledger = await old.open()
    acknowledged: list[str] = []
    is_over = asyncio.Event()

    async def write() -> None:
        while not is_over.is_set():
            goal_id = f"goal-{len(acknowledged):05}"
            await ledger.accept([a_goal(goal_id)], "host-a")
            await ledger.append("host-a", [a_step("s", goal_id, version=len(acknowledged) + 1), a_finish(goal_id)])
            acknowledged.append(goal_id)

    def keep() -> None:
        with reading(old.settings, old.path) as tables:
            backup(tables, tmp_path / "backup")

    writing_on = asyncio.create_task(write())
    while len(acknowledged) < 20:
        await asyncio.sleep(0.001)
    before = len(acknowledged)
    await asyncio.to_thread(keep)
    is_over.set()
    await writing_on
    await ledger.close()
    with writing(new.settings, new.path) as tables:
        restore(tmp_path / "backup", tables)

    ledger = await new.open()
    kept = {record.goal.id for record in await ledger.goals(GoalQuery(limit=10_000))}
    assert set(acknowledged[:before]) <= kept <= {*acknowledged, f"goal-{len(acknowledged):05}"}
    for goal_id in kept:
        kinds = [entry.kind.value for entry in await ledger.journal(goal_id, 0, 10)]
        assert kinds in (["accepted", "claimed", "step", "finished"], ["accepted", "claimed"])
    await ledger.close()


async def test_a_ledger_with_something_in_it_is_never_restored_over(place: Any, tmp_path: Path) -> None:
    for kind in KINDS:
        old = place(kind)
        ledger = await old.open()
        await fill(ledger)
        await ledger.close()
        if not (tmp_path / "backup").exists():
            with reading(old.settings, old.path) as tables:
                backup(tables, tmp_path / "backup")

        with pytest.raises(AlreadyExistsError), writing(old.settings, old.path) as tables:
            restore(tmp_path / "backup", tables)
        with reading(old.settings, old.path) as tables, pytest.raises(AlreadyExistsError):
            backup(tables, tmp_path / "backup")
        with reading(old.settings, old.path) as tables:
            assert verify(tables).is_sound


@pytest.fixture
async def written(tmp_path: Path) -> tuple[Path, Path]:
    """A ledger, and a backup of it."""
    path = tmp_path / "ledger.sqlite"
    ledger = await SqliteLedger.open(path)
    await fill(ledger)
    await ledger.close()
    with reading(LedgerSettings(), path) as tables:
        backup(tables, tmp_path / "backup")
    return path, tmp_path / "backup"


def test_a_backup_can_be_read_by_its_owner_alone(written: tuple[Path, Path]) -> None:
    assert written[1].stat().st_mode & 0o777 == 0o600


def test_a_backup_that_was_changed_cut_short_or_put_together_is_refused_whole(
    written: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = written[1].read_bytes()
    lines = whole.splitlines(keepends=True)
    spoilt = {f"line {at} left out": lines[:at] + lines[at + 1 :] for at in range(len(lines))}
    spoilt |= {f"cut after line {at}": lines[:at] for at in range(len(lines))}
    spoilt |= {f"line {at} twice": lines[: at + 1] + lines[at:] for at in range(len(lines))}
    spoilt["two lines swapped"] = [*lines[:3], lines[4], lines[3], *lines[5:]]
    for at in range(0, len(whole), 101):
        changed = bytearray(whole)
        changed[at] ^= 0x01
        spoilt[f"bit flipped at {at}"] = [bytes(changed)]

    for number, (what, content) in enumerate(spoilt.items()):
        path = tmp_path / "spoilt"
        path.write_bytes(b"".join(content))
        with pytest.raises(DataLossError):
            look_through(path)
            pytest.fail(what)
        if number % 20:
            continue
        target = tmp_path / "new" / "ledger.sqlite"
        with contextlib.suppress(DataLossError), writing(LedgerSettings(), target) as tables:
            restore(path, tables)
        assert list(target.parent.iterdir()) == [], what
    with pytest.raises(NotFoundError):
        look_through(tmp_path / "nosuch")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE journal SET body = x'7b7d20' WHERE seq = 20", "entry 20"),
        ("UPDATE journal SET goal_id = 'goal-00' WHERE seq = 20", "entry 20"),
        ("UPDATE goals SET deadline_at = 1e9 WHERE id = 'goal-03'", "goal goal-03"),
        ("UPDATE goals SET host = 'host-x' WHERE id = 'goal-06'", "the standing of goal goal-06"),
        ("UPDATE goals SET finished_seq = NULL WHERE id = 'goal-00'", "goal goal-00"),
        ("UPDATE goals SET headers = 'x' WHERE id = 'goal-03'", "goal goal-03"),
        ("UPDATE agent_states SET version = version + 1", "counter/k"),
        ("DELETE FROM journal WHERE seq = 20", "entries 20 to 20"),
        ("DELETE FROM journal WHERE seq > 30", "entries 31 to 34"),
        ("DELETE FROM journal WHERE kind = 'finished'", "how it ended"),
        ("DELETE FROM goals WHERE id = 'goal-02'", "belongs to goal goal-02"),
        ("UPDATE journal SET seq = seq + 1000 WHERE seq = 34", "entries 34 to 1033"),
    ],
)
async def test_every_fault_is_found_and_what_is_damaged_is_not_backed_up(
    written: tuple[Path, Path], tmp_path: Path, change: str, told: str
) -> None:
    path, _ = written
    with sqlite3.connect(path) as other:
        assert other.execute(change).rowcount > 0
    other.close()

    with reading(LedgerSettings(), path) as tables:
        report = verify(tables)
        with pytest.raises(DataLossError):
            backup(tables, tmp_path / "another")

    assert not report.is_sound and any(told in fault for fault in report.faults), report.faults
    assert not (tmp_path / "another").exists()


async def test_a_bit_that_flips_in_the_file_is_seen_wherever_it_is(written: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = written
    whole = path.read_bytes()
    found = 0
    for at in range(0, len(whole), 251):
        changed = bytearray(whole)
        changed[at] ^= 0x40
        copy = tmp_path / "copy.sqlite"
        copy.write_bytes(bytes(changed))
        before = await rows_of(path)
        try:
            with reading(LedgerSettings(), copy) as tables:
                is_seen = not verify(tables).is_sound
        except (DataLossError, NotFoundError) as error:
            is_seen = bool(str(error))
        except Exception as error:
            is_seen = type(error).__name__ in ("UnavailableError", "FailedPreconditionError")
        # Else it fell where nothing is: on a free part of a page, or on what SQLite itself does not look at.
        assert is_seen or await rows_of(copy) == before, at
        found += is_seen
    assert found > 20


async def rows_of(path: Path) -> Any:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    with contextlib.closing(connection):
        return [connection.execute(f"SELECT * FROM {table}").fetchall() for table in ("goals", "journal", "fenced")]
