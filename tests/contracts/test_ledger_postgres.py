"""What PostgreSQL adds to the promises: servers that go away, hosts that stop in the middle, fleets that collide."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError

from nexus_ray.config import load
from nexus_ray.core.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    FencedError,
    InvalidArgumentError,
    UnavailableError,
)
from nexus_ray.ledger.goal import Claim, EntryKind, GoalQuery, Note
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.ports import Acceptance
from nexus_ray.ledger.postgres import PostgresLedger
from nexus_ray.ledger.postgres_link import parameters
from nexus_ray.ledger.postgres_migrate import migrate, postgres_status
from tests.support.postgres import Proxy, Server, until
from tests.support.records import COUNTER, a_finish, a_goal, a_step

Open = Callable[..., Awaitable[PostgresLedger]]


@pytest.fixture
def database(postgres: Server) -> Iterator[str]:
    name = postgres.ledger()
    yield name
    postgres.give_back(name)


@pytest.fixture
async def open_one(postgres: Server, database: str) -> AsyncIterator[Open]:
    """Opens one ledger as several processes would; closes them all in the end."""
    opened: list[PostgresLedger] = []

    async def open_ledger(name: str = "host-a", **limits: Any) -> PostgresLedger:
        given = {"url": postgres.url(database), "cluster": "here", **limits}
        opened.append(await PostgresLedger.open(LedgerSettings(**given), name))
        return opened[-1]

    yield open_ledger
    for ledger in opened:
        await ledger.close()


async def journal(ledger: PostgresLedger, goal_id: str = "goal-1") -> list[str]:
    return [entry.step_key or entry.kind.value for entry in await ledger.journal(goal_id, 0, 10_000)]


def is_dense(postgres: Server, database: str) -> bool:
    """Tell whether the numbers of the entries have no gap and end where the head says."""
    ((count, newest, head),) = postgres.sql(
        "SELECT count(*), coalesce(max(seq), 0), (SELECT seq FROM nexus.head) FROM nexus.journal", database
    )
    return count == newest == head


# --- the server goes away


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["restart", "crash"])
async def test_what_was_acknowledged_is_there_after_the_server_was_away(
    postgres: Server, database: str, open_one: Open, number: int
) -> None:
    ledger = await open_one()
    acknowledged: dict[str, Acceptance] = {}

    async def client(client_id: int) -> None:
        for n in range(30):
            goal = a_goal(f"goal-{client_id}-{n:02}", idempotency_key=f"k-{client_id}-{n}")
            (acknowledged[goal.id],) = await ledger.accept([goal], "host-a")

    clients = asyncio.gather(*(client(n) for n in range(8)))
    await until(lambda: len(acknowledged) > 20)
    await asyncio.to_thread(postgres.stop, number)
    while_away = len(acknowledged)
    await asyncio.to_thread(postgres.start)
    await clients

    assert while_away < len(acknowledged) == 240
    # Once each, and as new, although some commits lost their answers.
    assert all(answer == Acceptance(goal_id, True) for goal_id, answer in acknowledged.items())
    records = await ledger.goals(GoalQuery(limit=1000))
    assert {record.goal.id for record in records} == acknowledged.keys()
    assert is_dense(postgres, database)
    assert [entry for n in range(8) for entry in await journal(ledger, f"goal-{n}-29")] == ["accepted", "claimed"] * 8


async def test_a_server_that_stalls_is_waited_for(postgres: Server, open_one: Open) -> None:
    ledger = await open_one()
    await ledger.accept([a_goal()], "host-a")

    with postgres.stalled():
        calls = asyncio.gather(ledger.append("host-a", [a_step(version=1)]), ledger.goal("goal-1"))
        await asyncio.sleep(0.3)
        assert not calls.done()

    (took_effect,), record = await asyncio.wait_for(calls, 10)
    assert took_effect and record is not None and await journal(ledger) == ["accepted", "claimed", "s-1"]


async def test_a_server_that_stalls_for_long_is_refused_in_time_and_taken_back(
    postgres: Server, database: str, open_one: Open
) -> None:
    ledger = await open_one(answer_s_max=0.4, outage_wait_s=0.1)
    await ledger.accept([a_goal()], "host-a")

    with postgres.stalled():
        for call in (ledger.append("host-a", [a_step(version=1)]), ledger.goal("goal-1")):
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(call, 9)

    # Said to be safe to repeat, and is: the one that was cut off may have been carried out meanwhile, or not.
    repeated = ledger.append("host-a", [a_step(version=1)])
    assert await asyncio.wait_for(repeated, 10) in ([True], [False])
    state = await ledger.agent_state(COUNTER)
    assert state is not None and state.version == 1
    assert await journal(ledger) == ["accepted", "claimed", "s-1"] and is_dense(postgres, database)


@pytest.mark.parametrize("what", ["answer", "call"])
async def test_a_commit_whose_answer_is_lost_is_looked_up_and_not_made_twice(
    postgres: Server, database: str, open_one: Open, what: str
) -> None:
    proxy = Proxy(postgres.port)
    port = await proxy.start()
    ledger = await open_one(url=postgres.url(database).replace(str(postgres.port), str(port)))

    proxy.lose(what)
    accepted = await ledger.accept([a_goal(idempotency_key="k")], "host-a")
    proxy.lose(what)
    answers = await ledger.append("host-a", [a_step(version=1), Note("goal-1", 1.0, b"0"), a_finish()])

    assert proxy.lost == 2
    assert accepted == [Acceptance("goal-1", True)] and answers == [True, True, True]
    assert await journal(ledger) == ["accepted", "claimed", "s-1", "note", "finished"]
    assert is_dense(postgres, database)
    await proxy.close()


async def test_sessions_that_are_ended_at_any_moment_cost_nothing_but_time(
    postgres: Server, database: str, open_one: Open
) -> None:
    ledger = await open_one()
    await ledger.accept([a_goal()], "host-a")
    ends = [0]

    async def end_sessions() -> None:
        text = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'host-a'"
        while True:
            ends[0] += len(await asyncio.to_thread(postgres.sql, text))
            await asyncio.sleep(0.05)

    ending = asyncio.ensure_future(end_sessions())
    # Each state follows on the one before, so one step that is lost or made twice breaks the chain.
    answers = [await ledger.append("host-a", [a_step(f"s-{n}", version=n)]) for n in range(1, 40)]
    ending.cancel()

    assert ends[0] > 3
    assert answers == [[True]] * 39
    assert await journal(ledger) == ["accepted", "claimed", *(f"s-{n}" for n in range(1, 40))]
    assert is_dense(postgres, database)


# --- several processes


async def test_several_processes_write_without_gaps_and_nobody_who_follows_misses_one(
    postgres: Server, database: str, open_one: Open
) -> None:
    first, second, reader = await open_one("host-a"), await open_one("host-b"), await open_one("gateway")
    await first.accept([a_goal("shared")], "host-a")
    seen: list[str] = []
    seqs: list[int] = [0]

    async def follow() -> None:
        while True:
            seq, goals = await reader.changes(seqs[-1], 5.0, 7)
            assert seq <= seqs[-1] + 7
            seqs.append(seq)
            seen.extend(goals)

    async def write(ledger: PostgresLedger, host: str, writer: int) -> None:
        goal_id = f"{host}-{writer}"
        await ledger.accept([a_goal(goal_id)], host)
        for n in range(8):
            assert await ledger.append(host, [a_step(f"s-{n}", goal_id), Note("shared", 1.0, b"0")]) == [True, True]
            await ledger.append(host, [a_step(f"{writer}-{n}", "shared")])
        assert await ledger.append(host, [a_finish(goal_id)]) == [True]

    following = asyncio.ensure_future(follow())
    both = [(first, "host-a"), (second, "host-b")]
    await asyncio.gather(*(write(ledger, host, n) for ledger, host in both for n in range(6)))
    newest = (await first.changes(-1, 0, 1))[0]
    await until(lambda: seqs[-1] >= newest)
    following.cancel()

    assert newest == 2 + 12 * (2 + 8 * 2 + 1) + 6 * 8  # Each key of the shared goal was recorded by one of the two.
    assert is_dense(postgres, database)
    assert seqs == sorted(seqs) and set(seen) == {"shared", *(f"host-{h}-{n}" for h in "ab" for n in range(6))}
    for h in "ab":
        assert await journal(reader, f"host-{h}-3") == [
            "accepted", "claimed", *(f"s-{n}" for n in range(8)), "finished",
        ]  # fmt: skip


async def test_two_front_doors_give_one_goal_to_one_idempotency_key(open_one: Open) -> None:
    doors = [await open_one(f"gateway-{n}") for n in range(3)]

    for n in range(10):
        requests = [door.accept([a_goal(f"goal-{n}-{d}", idempotency_key=f"k-{n}")]) for d, door in enumerate(doors)]
        ids = {(answer.goal_id, answer.is_new) for (answer,) in await asyncio.gather(*requests)}
        assert len({goal_id for goal_id, _ in ids}) == 1 and [is_new for _, is_new in ids].count(True) == 1

    assert len(await doors[0].goals(GoalQuery())) == 10


async def test_two_hosts_that_begin_an_agents_state_at_once_begin_one(open_one: Open) -> None:
    hosts = [await open_one(f"host-{n}") for n in range(3)]
    await hosts[0].accept([a_goal(f"goal-{n}") for n in range(3)])

    for version in range(1, 8):
        steps = [a_step(f"s-{version}", f"goal-{n}", version=version) for n in range(3)]
        answers = await asyncio.gather(
            *(host.append(f"host-{n}", [steps[n]]) for n, host in enumerate(hosts))
        )  # fmt: skip
        assert sorted(answers) == [[False], [False], [True]]


async def test_nothing_is_committed_by_a_host_after_its_fence(open_one: Open) -> None:
    directory = await open_one("directory")
    for n in range(8):
        host = f"host-{n}"
        ledger = await open_one(host)
        await directory.accept([a_goal(f"goal-{n}")])
        written = [0]

        async def write(ledger: PostgresLedger = ledger, host: str = host, n: int = n, written: Any = written) -> None:
            while True:
                await ledger.append(host, [Note(f"goal-{n}", 1.0, b"0")])
                written[0] += 1

        writers = [asyncio.ensure_future(write()) for _ in range(3)]
        await until(lambda written=written, n=n: written[0] > n % 4)  # type: ignore[misc]
        await directory.fence(host)
        after = await journal(directory, f"goal-{n}")

        for writer in writers:
            with pytest.raises(FencedError):
                await asyncio.wait_for(writer, 10)
        assert await journal(directory, f"goal-{n}") == after
        assert after.count("note") >= written[0]
        assert await directory.append("host-x", [Claim(f"goal-{n}", 1.0)]) == [True]
        await ledger.close()


async def test_a_host_that_stopped_in_the_middle_holds_nobody_up_once_it_is_fenced(
    postgres: Server, database: str, open_one: Open
) -> None:
    directory = await open_one("directory")
    await directory.accept([a_goal()], "host-a")
    # What a stopped process leaves: a transaction that holds the head, and is never ended by its owner.
    given = parameters(LedgerSettings(url=postgres.url(database), cluster="here"), "host-a")
    stopped = await psycopg.AsyncConnection.connect(**given)
    await stopped.execute("SELECT 1 FROM goals WHERE id = 'goal-1' FOR UPDATE")
    await stopped.execute("UPDATE head SET seq = seq + 7")

    await asyncio.wait_for(directory.fence("host-a"), 3)

    assert await directory.append("host-b", [Claim("goal-1", 1.0)]) == [True]
    assert is_dense(postgres, database)
    await stopped.close()


async def test_a_process_that_stopped_in_the_middle_is_cut_off_by_the_server(
    postgres: Server, database: str, open_one: Open
) -> None:
    other = await open_one("host-b", stall_s_max=1.0)
    await other.accept([a_goal()])
    given = parameters(LedgerSettings(url=postgres.url(database), cluster="here", stall_s_max=1.0), "gateway")
    stopped = await psycopg.AsyncConnection.connect(**given)
    await stopped.execute("SELECT 1 FROM goals WHERE id = 'goal-1' FOR UPDATE")

    assert await asyncio.wait_for(other.append("host-b", [Claim("goal-1", 1.0)]), 5) == [True]

    with pytest.raises(psycopg.Error):
        await stopped.execute("COMMIT")
    await stopped.close()


async def test_whoever_waits_is_told_although_the_notification_got_lost(postgres: Server, open_one: Open) -> None:
    reader, writer = await open_one("reader", look_every_s=0.1), await open_one("writer")
    await writer.accept([a_goal()])
    waiting = asyncio.ensure_future(reader.changes(1, 20.0, 10))
    text = "SELECT pid FROM pg_stat_activity WHERE application_name = 'reader' AND query LIKE 'SELECT seq FROM head%'"
    await until(lambda: postgres.sql(text))

    ended = postgres.sql(text.replace("SELECT pid", "SELECT pg_terminate_backend(pid)", 1))
    await writer.accept([a_goal("goal-2")])

    assert ended and await asyncio.wait_for(waiting, 10) == (2, ["goal-2"])


# --- the lease


async def test_two_fleets_on_one_ledger_are_refused_with_the_others_name(
    postgres: Server, database: str, open_one: Open
) -> None:
    mine = await open_one("host-a", cluster="mine")
    await mine.accept([a_goal()], "host-a")

    with pytest.raises(AlreadyExistsError, match="held by the fleet 'mine'"):
        await open_one("host-b", cluster="yours")

    # Where the lease has run out, the other gets it, and this one commits nothing any more.
    postgres.sql("UPDATE nexus.head SET lease_until = '-infinity'", database)
    yours = await open_one("host-b", cluster="yours")
    for call in (mine.append("host-a", [a_step()]), mine.fence("host-b"), mine.next_epoch()):
        with pytest.raises(UnavailableError, match="yours"):
            await call
    assert await yours.append("host-b", [Note("goal-1", 1.0, b"0")]) == [True]
    assert await journal(mine) == ["accepted", "claimed", "note"]
    await yours.release()
    assert await (await open_one("host-a", cluster="third")).next_epoch() == 1


async def test_a_lease_is_renewed_while_any_process_lives(postgres: Server, database: str, open_one: Open) -> None:
    await open_one(lease_s=3.0)
    text = "SELECT lease_until FROM nexus.head"
    before = postgres.sql(text, database)

    await until(lambda: postgres.sql(text, database) > before)

    with pytest.raises(AlreadyExistsError):
        await open_one(cluster="yours")


# --- what is refused


async def test_a_schema_that_is_not_ours_is_refused_with_what_to_do(
    postgres: Server, database: str, open_one: Open
) -> None:
    with pytest.raises(FailedPreconditionError, match="run `nexus ledger migrate`"):
        await open_one(url=postgres.url(postgres.empty_database()))
    postgres.sql("UPDATE nexus.alembic_version SET version_num = '0007'", database)
    settings = LedgerSettings(url=postgres.url(database))

    with pytest.raises(FailedPreconditionError, match="newer Nexus: schema 7; this one knows 2"):
        await open_one()
    with pytest.raises(FailedPreconditionError, match="newer Nexus"):
        await asyncio.to_thread(migrate, settings)

    assert (await asyncio.to_thread(postgres_status, settings)).standing == "newer"
    postgres.sql("UPDATE nexus.alembic_version SET version_num = '0002'", database)


async def test_migrations_may_be_run_twice_and_by_several_at_once(postgres: Server, open_one: Open) -> None:
    settings = LedgerSettings(url=postgres.url(postgres.empty_database()))

    done = await asyncio.gather(*(asyncio.to_thread(migrate, settings) for _ in range(3)))

    assert sorted(done) == [(0, 2), (2, 2), (2, 2)]
    ledger = await open_one(url=settings.url)
    await ledger.accept([a_goal()], "host-a")
    await ledger.append("host-a", [a_step(version=1), a_finish()])
    found = await asyncio.to_thread(postgres_status, settings)
    assert (found.standing, found.goals, found.entries, found.agents) == ("current", {"succeeded": 1}, 4, 1)
    assert (found.lease_holder, found.lease_s > 5, found.size_bytes > 8192) == ("here", True, True)
    await ledger.release()
    released = await asyncio.to_thread(postgres_status, settings)
    assert (released.lease_holder, released.lease_s) == ("", 0.0)


async def test_a_wrong_password_is_told_without_it_and_a_right_one_lets_in(
    postgres: Server, database: str, tmp_path: Path
) -> None:
    postgres.sql("CREATE ROLE stranger LOGIN SUPERUSER PASSWORD 'open sesame'")
    file = tmp_path / "password"
    file.write_text("guessed-it-not\n")
    file.chmod(0o600)
    settings = LedgerSettings(url=postgres.url(database, "stranger"), password_file=file, cluster="here")

    with pytest.raises(FailedPreconditionError, match=r"ledger\.password_file") as caught:
        await PostgresLedger.open(settings, "host")
    with pytest.raises(FailedPreconditionError, match="password"):
        await PostgresLedger.open(settings.model_copy(update={"password_file": None}), "host")
    # A fleet that runs meets the same as a ledger that is not to be had now: it is put right, and goes on.
    ledger = PostgresLedger(settings, "host")
    with pytest.raises(UnavailableError, match=r"ledger\.password_file") as met:
        await ledger.accept([a_goal()])
    file.write_text("open sesame\n")
    assert await ledger.accept([a_goal()]) == [Acceptance("goal-1", True)]
    await ledger.close()

    assert "guessed" not in f"{caught.value} {caught.value.details} {met.value} {met.value.details}"
    file.chmod(0o640)
    with pytest.raises(FailedPreconditionError, match="others can read the password"):
        await PostgresLedger.open(settings, "host")
    with pytest.raises(FailedPreconditionError, match="cannot be read"):
        await PostgresLedger.open(settings.model_copy(update={"password_file": tmp_path / "none"}), "host")


async def test_a_database_that_is_not_there_and_a_server_that_is_not_are_told_apart(postgres: Server) -> None:
    with pytest.raises(FailedPreconditionError, match='"nowhere" does not exist'):
        await PostgresLedger.open(LedgerSettings(url=postgres.url("nowhere")), "host")
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await PostgresLedger.open(LedgerSettings(url="postgresql://nexus@127.0.0.1:1/ledger"), "host")


@pytest.mark.parametrize(
    "url", ["postgresql://ann:sesame@h/db", "postgresql://h/db?password=sesame", "postgresql://h/db?sslpassword=sesame"]
)
def test_a_password_in_the_url_is_refused_with_what_to_do_and_not_repeated(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_LEDGER__URL", url)

    with pytest.raises(InvalidArgumentError, match="NEXUS_LEDGER__PASSWORD_FILE") as caught:
        load()
    with pytest.raises(ValidationError) as bare:
        LedgerSettings(url=url)

    assert "sesame" not in f"{caught.value} {caught.value.details} {bare.value}"


@pytest.mark.parametrize("url", ["mysql://ann@h/db", "postgresql://ann@h", "ledger.sqlite"])
def test_what_is_no_address_of_a_ledger_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="postgresql://USER@HOST/DATABASE"):
        LedgerSettings(url=url)


def test_beyond_this_machine_the_ledger_is_spoken_to_over_tls_and_known_by_its_certificate() -> None:
    far = "postgresql://ann@ledger.example/db"

    assert parameters(LedgerSettings(url=far), "host")["sslmode"] == "verify-full"
    assert parameters(LedgerSettings(url=f"{far}?sslmode=require"), "host")["sslmode"] == "require"
    for mode in ("disable", "allow", "prefer"):
        with pytest.raises(FailedPreconditionError, match=f"sslmode={mode}"):
            parameters(LedgerSettings(url=f"{far}?sslmode={mode}"), "host")
    assert "sslmode" not in parameters(LedgerSettings(url="postgresql://ann@127.0.0.1/db"), "host")


async def test_a_server_that_may_lose_what_it_acknowledged_is_refused(
    postgres: Server, database: str, open_one: Open
) -> None:
    with pytest.raises(FailedPreconditionError, match="synchronous_commit=off"):
        await open_one(url=f"{postgres.url(database)}?options=-c%20synchronous_commit%3Doff")
    await asyncio.to_thread(postgres.stop)
    await asyncio.to_thread(postgres.start, fsync="off")
    try:
        with pytest.raises(FailedPreconditionError, match="fsync=off"):
            await open_one()
    finally:
        await asyncio.to_thread(postgres.stop)
        await asyncio.to_thread(postgres.start)

    assert (await (await open_one()).changes(-1, 0, 1)) == (0, [])


async def test_a_flipped_bit_is_refused(postgres: Server, database: str, open_one: Open) -> None:
    ledger = await open_one()
    await ledger.accept([a_goal()], "host-a")
    await ledger.append("host-a", [a_step(body=b"1234")])

    postgres.sql("UPDATE nexus.journal SET body = set_byte(body, 0, 0) WHERE step_key = 's-1'", database)

    with pytest.raises(DataLossError):
        await ledger.entry("goal-1", "s-1")
    assert await ledger.goal("goal-1") is not None


@pytest.fixture
def small_disk(postgres: Server) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="nexus-small-"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        folder.rmdir()
        pytest.skip("a small disk can be mounted by root only")
    postgres.own(folder)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    shutil.rmtree(folder)


async def test_a_full_disk_refuses_and_loses_nothing_and_goes_on_when_there_is_room(
    postgres: Server, database: str, open_one: Open, small_disk: Path
) -> None:
    ledger = await open_one()
    postgres.sql(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    for table in ("journal", "goals"):
        postgres.sql(f"ALTER TABLE nexus.{table} SET TABLESPACE small", database)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (1 << 20))
    await ledger.accept([a_goal()], "host-a")

    kept = 0
    with pytest.raises(UnavailableError, match="disk is full"):
        for kept in range(100):
            await ledger.append("host-a", [Note("goal-1", float(kept), os.urandom(100_000)), a_step(f"s-{kept}")])
    assert 5 < kept < 30 and (await journal(ledger)).count("note") == kept
    assert (await ledger.goal("goal-1")) is not None
    ballast.unlink()

    # Incompressible, so that it takes what it seems to take.
    more = await ledger.append("host-a", [Note("goal-1", 99.0, os.urandom(100_000), EntryKind.NOTE)])
    assert more == [True] and (await journal(ledger)).count("note") == kept + 1
    assert is_dense(postgres, database)
    for table in ("journal", "goals"):
        postgres.sql(f"ALTER TABLE nexus.{table} SET TABLESPACE pg_default", database)
    postgres.sql("DROP TABLESPACE small")
