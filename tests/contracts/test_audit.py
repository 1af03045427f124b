"""What every audit log promises, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nexus_ray.audit.checkpoint import open_checkpoint
from nexus_ray.audit.limits import AuditSettings
from nexus_ray.audit.log import DatabaseAuditLog
from nexus_ray.audit.ports import Hold, RecordQuery
from nexus_ray.audit.postgres import PostgresDatabase
from nexus_ray.audit.record import Kind, Retention
from nexus_ray.audit.sqlite import SqliteDatabase
from nexus_ray.audit.store import Database
from nexus_ray.audit.tree import root_of, verify_consistency, verify_inclusion
from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NexusError,
    NotFoundError,
    UnavailableError,
)
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.postgres_link import parameters
from tests.audit.support import KEY, entry
from tests.support.postgres import Server

OpenLog = Callable[..., Awaitable[DatabaseAuditLog]]
_TABLES = ("head", "records", "nodes", "checkpoints", "holds")
DAY_S = 86_400.0


@pytest.fixture(params=["sqlite", "postgres"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Database]]:
    """Connects to one log, again and again."""
    if request.param == "sqlite":
        yield lambda: SqliteDatabase(tmp_path / "audit.sqlite")
        return
    server: Server = request.getfixturevalue("postgres")
    database = server.ledger()
    settings = LedgerSettings(url=server.url(database), cluster="here")
    yield lambda: PostgresDatabase(parameters(settings, "audit"))
    server.sql(f"DROP TABLE IF EXISTS {', '.join(f'nexus.audit_{name}' for name in _TABLES)}", database)
    server.give_back(database)


@pytest.fixture
async def open_log(connect: Callable[[], Database]) -> AsyncIterator[OpenLog]:
    opened: list[DatabaseAuditLog] = []

    async def open_one(key: Ed25519PrivateKey = KEY, **settings: Any) -> DatabaseAuditLog:
        opened.append(await DatabaseAuditLog.open(connect, key, AuditSettings(**settings), ManualClock()))
        return opened[-1]

    yield open_one
    for one in opened:
        await one.close()


def tamper(connect: Callable[[], Database], statement: str, *values: Any) -> None:
    """Do what only somebody with the disk in his hands can do."""
    database = connect()
    with database.writing():
        assert database.execute(statement, *values) == 1
    database.close()


async def numbers(log: DatabaseAuditLog, **wanted: Any) -> list[int]:
    return [record.seq for record in await log.records(RecordQuery(**wanted))]


async def test_what_was_appended_stands_in_order_and_is_still_there_after_the_log_was_closed(open_log: OpenLog) -> None:
    log = await open_log()

    assert await log.append([entry(0), entry(1)]) == [0, 1]
    assert await log.append([entry(2, facts={"n": 1})]) == [2]
    await log.close()

    found = await (await open_log()).records(RecordQuery(is_oldest_first=True))
    assert [record.seq for record in found] == [0, 1, 2]
    assert found[2].fields["facts"] == {"n": 1}
    assert [record.fields.get("previous") for record in found[1:]] == [record.hash.hex() for record in found[:2]]


async def test_appends_at_one_time_share_transactions_and_each_gets_its_own_numbers(open_log: OpenLog) -> None:
    log = await open_log()

    answers = await asyncio.gather(*(log.append([entry(n), entry(n + 100)]) for n in range(50)))

    assert sorted(seq for answer in answers for seq in answer) == list(range(100))
    found = {record.seq: record.fields["operation"] for record in await log.records(RecordQuery(limit=100))}
    assert all(found[seq] == f"op-{n + more}" for n, answer in enumerate(answers)
               for seq, more in zip(answer, (0, 100), strict=True))  # fmt: skip


async def test_an_entry_that_is_given_twice_stands_once(open_log: OpenLog) -> None:
    log = await open_log()
    await log.append([entry(0), entry(1)])

    assert await log.append([entry(1), entry(2), entry(2)]) == [1, 2, 2]
    assert await log.append([entry(0), entry(1)]) == [0, 1]

    assert await numbers(log) == [2, 1, 0]


async def test_an_intent_is_open_until_its_outcome_stands(open_log: OpenLog) -> None:
    log = await open_log()

    await log.append([entry(0, Kind.INTENT), entry(1, Kind.INTENT), entry(2)])
    assert await numbers(log, is_open=True) == [1, 0]
    await log.append([entry(0, Kind.OUTCOME, outcome="ok")])

    assert await numbers(log, is_open=True) == [1]
    await log.append([entry(3, Kind.INTENT), entry(3, Kind.OUTCOME)])
    assert await numbers(log, is_open=True) == [1]
    assert await numbers(log, operation="op-0") == [3, 0]


async def test_records_are_found_by_what_they_say_and_in_pages(open_log: OpenLog) -> None:
    log = await open_log(read_rows_max=3)
    await log.append([
        entry(0, goal="goal-1"), entry(1, principal="bob"), entry(2, action="goal:submit", decision="deny"),
        entry(3, tenant="other"), entry(4, goal="goal-1"),
    ])  # fmt: skip

    assert await numbers(log, goal="goal-1") == [4, 0]
    assert await numbers(log, principal="bob") == [1]
    assert await numbers(log, action="goal:submit", decision="deny") == [2]
    assert await numbers(log, tenants=("other", "third")) == [3]
    assert await numbers(log, limit=100) == [4, 3, 2]
    assert await numbers(log, before=2) == [1, 0]
    assert await numbers(log, after=1, is_oldest_first=True, limit=2) == [2, 3]


async def test_every_record_is_proved_by_a_signed_checkpoint_and_every_tree_by_the_next(open_log: OpenLog) -> None:
    log = await open_log(checkpoint_records=300)
    await log.append([entry(n) for n in range(270)])
    early = await log.checkpoint()
    await log.append([entry(n) for n in range(270, 530)])
    hashes = [record.hash for record in await log.records(RecordQuery(is_oldest_first=True, limit=1000))]
    origin = early.partition("\n")[0]

    for seq in (0, 1, 255, 256, 269, 270, 500, 529):
        proof = await log.prove(seq)
        signed = open_checkpoint(proof.checkpoint, origin, KEY.public_key())
        assert verify_inclusion(proof.record.hash, seq, signed.size, proof.path, signed.root)
        assert signed.root == root_of(hashes[: signed.size])
    path, text = await log.consistency(270)
    old, new = (open_checkpoint(one, origin, KEY.public_key()) for one in (early, text))
    assert verify_consistency(270, 530, old.root, new.root, path) and new.size == 530
    assert await log.checkpoints(0, 10) == [early, text] and await log.checkpoints(270, 10) == [text]
    assert await log.checkpoint() == text


async def test_what_is_not_there_is_not_proved(open_log: OpenLog) -> None:
    log = await open_log()
    await log.append([entry(0)])

    with pytest.raises(NotFoundError):
        await log.prove(1)
    for size in (0, 2):
        with pytest.raises(InvalidArgumentError):
            await log.consistency(size)
    with pytest.raises(InvalidArgumentError):
        await log.append([entry(1), entry(2, principal="a" * 500)])
    assert await numbers(log) == [0]


async def test_more_than_may_wait_is_refused_and_so_is_a_closed_log(open_log: OpenLog) -> None:
    log = await open_log(waiting_max=3)

    with pytest.raises(UnavailableError):
        await log.append([entry(n) for n in range(4)])
    assert await log.append([entry(n) for n in range(3)]) == [0, 1, 2]
    await log.close()
    await log.close()

    with pytest.raises(UnavailableError):
        await log.append([entry(4)])


@pytest.mark.parametrize("change", [
    ("UPDATE audit_records SET hash = ? WHERE seq = 0", bytes(32)),
    ("DELETE FROM audit_records WHERE seq = ?", 2),
    ("DELETE FROM audit_records WHERE seq = ?", 1),
    ("UPDATE audit_head SET size = ?", 2),
    ("UPDATE audit_head SET last = ?", bytes(32)),
    ("UPDATE audit_head SET peaks = ?", bytes(64)),
    ("UPDATE audit_head SET origin = ?", "nexus/audit/another"),
    ("UPDATE audit_checkpoints SET text = 'x' WHERE size = ?", 3),
])  # fmt: skip
async def test_a_log_that_is_not_what_was_signed_is_not_gone_on_with(
    open_log: OpenLog, connect: Callable[[], Database], change: tuple[str, Any]
) -> None:
    log = await open_log()
    await log.append([entry(0), entry(1), entry(2)])
    await log.close()

    tamper(connect, *change)

    with pytest.raises(NexusError) as refused:
        await open_log()
    assert isinstance(refused.value, DataLossError | FailedPreconditionError)


async def test_a_log_that_another_key_signed_is_refused(open_log: OpenLog) -> None:
    log = await open_log()
    await log.append([entry(0)])
    await log.close()

    with pytest.raises(FailedPreconditionError, match="key"):
        await open_log(key=Ed25519PrivateKey.generate())


async def test_old_records_lose_their_words_and_the_tree_still_holds(open_log: OpenLog) -> None:
    log = await open_log(access_days=1, change_days=10)
    await log.append([
        entry(0, retention=Retention.ACCESS), entry(1, retention=Retention.ACCESS, goal="goal-1"), entry(2),
        entry(3, Kind.INTENT, retention=Retention.ACCESS), entry(4, retention=Retention.FOREVER),
    ])  # fmt: skip
    before = await log.records(RecordQuery(is_oldest_first=True))

    assert await log.retain(100.0 + DAY_S) == 0
    assert await log.retain(102.0 + DAY_S) == 2
    assert await log.retain(102.0 + DAY_S) == 0

    found = await log.records(RecordQuery(is_oldest_first=True))
    assert [record.hash for record in found[:5]] == [record.hash for record in before]
    assert [record.body is None for record in found] == [True, True, False, False, False, False]
    assert found[0].fields == {"seq": 0, "emptied": before[0].hash.hex()}
    assert found[5].fields["facts"] == {"emptied": [[0, 1]], "retention": "access", "days": 1.0}
    assert await numbers(log, goal="goal-1") == [] and await numbers(log, principal="ada") == [4, 3, 2]
    proof = await log.prove(0)
    signed = open_checkpoint(proof.checkpoint, proof.checkpoint.partition("\n")[0], KEY.public_key())
    assert verify_inclusion(before[0].hash, 0, signed.size, proof.path, signed.root)


async def test_what_is_held_is_kept_until_it_is_let_go_and_both_are_written_down(open_log: OpenLog) -> None:
    log = await open_log(access_days=1)
    await log.append([entry(0, retention=Retention.ACCESS), entry(1, retention=Retention.ACCESS, principal="bob")])
    placed = Hold("case 7", "principal", "bob", "a letter of the court", "eve", 100.0)
    by_eve = {"action": "audit:hold", "principal": "eve", "retention": Retention.FOREVER}

    await log.hold(placed, entry(2, **by_eve))
    assert await log.retain(10 * DAY_S) == 1
    with pytest.raises(AlreadyExistsError):
        await log.hold(placed, entry(3, **by_eve))
    for field, value in (("seq", "1"), ("principal", "")):
        with pytest.raises(InvalidArgumentError):
            await log.hold(Hold("x", field, value), entry(3, **by_eve))

    assert await log.holds() == [placed]
    assert await numbers(log, principal="bob") == [1]
    with pytest.raises(NotFoundError):
        await log.release("case 8", entry(3, **by_eve))
    await log.release("case 7", entry(4, **by_eve))
    assert await log.retain(10 * DAY_S) == 1
    assert await numbers(log, principal="eve") == [4, 2] and await log.holds() == []


async def test_another_process_does_not_share_the_file(open_log: OpenLog, tmp_path: Path) -> None:
    log = await open_log()
    await log.append([entry(0)])
    if not (tmp_path / "audit.sqlite").exists():
        second = await open_log()  # PostgreSQL lets several in, one at a time.
        answers = await asyncio.gather(*(one.append([entry(n)]) for n, one in enumerate([log, second] * 8, 1)))
        assert sorted(answers) == [[n] for n in range(1, 17)]
        return

    with pytest.raises(AlreadyExistsError):
        await open_log()
    assert (tmp_path / "audit.sqlite").stat().st_mode & 0o777 == 0o600
