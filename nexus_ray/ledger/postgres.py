"""The production ledger: PostgreSQL, which every process of a fleet speaks to directly.

Law: the order of the commits is the order of the numbers. Every transaction that writes takes the one row `head` last
and lets go of it with its commit; fences and the lease are changes of that row, so a commit comes before them or not
at all. What waits in one process is committed together, so the cost of a commit is shared.
It deliberately does not spread over several databases, and knows nothing of how PostgreSQL itself is made to last.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from nexus_ray.agents.task import AgentState
from nexus_ray.core.errors import AlreadyExistsError, NexusError, UnavailableError
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.bell import Bell
from nexus_ray.ledger.goal import Entry, EntryKind, Goal, GoalQuery, GoalRecord, Write
from nexus_ray.ledger.limits import LedgerSettings, check_goals, check_writes
from nexus_ray.ledger.machine import Accept, Append
from nexus_ray.ledger.marks import FORGET_AFTER_S, Mark, page_of_marks, to_mark
from nexus_ray.ledger.ports import Acceptance
from nexus_ray.ledger.postgres_link import Connection, Links, bounded, connect, hang_up, is_passing, translated
from nexus_ray.ledger.postgres_queue import CallQueue
from nexus_ray.ledger.postgres_rows import CHANNEL
from nexus_ray.ledger.postgres_writer import PostgresWriter
from nexus_ray.ledger.schema import (
    ENTRY_COLUMNS,
    RECORD_COLUMNS,
    RECORD_TABLES,
    page_of_goals,
    read_rows,
    to_entry,
    to_record,
    to_state,
    with_body,
)
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger

log = get_logger("ledger")

_Row = tuple[Any, ...]

_AGAIN_S = 0.1  # How soon a read is tried again; a server that is gone refuses connections at once.

# `clock_timestamp`, not `now`: this may have waited for the row.
_LEASE = (
    "UPDATE head SET lease_holder = %(cluster)s, lease_until = clock_timestamp() + make_interval(secs => %(lease_s)s)"
    " WHERE lease_holder IN ('', %(cluster)s) OR lease_until < clock_timestamp() RETURNING lease_holder"
)
HOLDER = "SELECT lease_holder, extract(epoch FROM greatest(lease_until, now()) - now())::float8 FROM head"
"""Who has the lease, and for how many seconds more. PostgreSQL subtracts nothing from a time that never was."""
_RELEASE = "UPDATE head SET lease_until = '-infinity' WHERE lease_holder = %s RETURNING 1"
_EPOCH = "UPDATE head SET epoch = epoch + 1 WHERE lease_holder = %s RETURNING epoch"
_FENCE = (
    "WITH h AS (UPDATE head SET fences = fences + 1 WHERE lease_holder = %s RETURNING 1),"
    " f AS (INSERT INTO fenced SELECT %s FROM h ON CONFLICT DO NOTHING) SELECT 1 FROM h"
)
_PUT_MARK = (
    "WITH h AS (UPDATE head SET marks = marks + 1 WHERE lease_holder = %s RETURNING marks),"
    " d AS (DELETE FROM marks WHERE until < %s AND (kind, name) <> (%s, %s)),"
    " m AS (INSERT INTO marks(version, kind, name, at, until, body, sum)"
    " SELECT h.marks, %s, %s, %s, %s, %s, %s FROM h ON CONFLICT (kind, name) DO UPDATE SET"
    " version = excluded.version, at = excluded.at, until = excluded.until, body = excluded.body, sum = excluded.sum"
    " WHERE NOT %s OR marks.until <= excluded.at RETURNING 1) SELECT (SELECT count(*) FROM m) FROM h"
)
_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name = %s AND datname = current_database() AND usename = current_user"
    " AND pid <> pg_backend_pid()"
)
_CHANGES = (
    "SELECT h.seq, j.seq, j.goal_id FROM head h LEFT JOIN LATERAL"
    " (SELECT seq, goal_id FROM journal WHERE seq > %s ORDER BY seq LIMIT %s) j ON true ORDER BY j.seq"
)
_QUESTIONS = (
    f"SELECT {ENTRY_COLUMNS} FROM journal j WHERE kind = 'asked' AND seq > %s"
    " AND EXISTS (SELECT 1 FROM goals g WHERE g.id = j.goal_id AND g.finished_seq IS NULL"
    " AND %s::text IN ('', g.tenant))"
    " AND NOT EXISTS (SELECT 1 FROM journal a WHERE a.goal_id = j.goal_id AND a.step_key = j.step_key || '=')"
    " ORDER BY seq LIMIT %s"
)
_RECORD = f"SELECT {RECORD_COLUMNS} FROM {RECORD_TABLES} WHERE g.id = %s"


class PostgresLedger:
    """A ledger in a PostgreSQL database; used from one event loop only. Connects at the first call, or by `open`."""

    def __init__(self, settings: LedgerSettings, name: str) -> None:
        """`name` is the host's, or says what else this process is; `fence(name)` ends its connections."""
        self._settings = settings
        self._links = Links(settings, name)
        self._name = name
        self._writer = PostgresWriter(settings, name, _count)
        self._queue = CallQueue(self._commit, settings)
        self._bell = Bell(settings.waiters_max, settings.retry_after_s)
        self._head_seq = 0
        self._is_closed = False
        self._is_open = False
        self._opening = asyncio.Lock()
        self._reads: set[asyncio.Task[list[_Row]]] = set()
        self._following: asyncio.Task[None] | None = None
        self._leasing: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, settings: LedgerSettings, name: str) -> "PostgresLedger":
        """Open a ledger and take its lease.

        Raises:
            AlreadyExistsError: Another fleet has it; the message names it.
            FailedPreconditionError: It cannot be opened until somebody changes something; the message says what.
            UnavailableError: It cannot be opened now.
        """
        ledger = cls(settings, name)
        try:
            await ledger._open()
        except BaseException:
            await ledger.close()
            raise
        return ledger

    @property
    def commits(self) -> int:
        """How many transactions this process committed: under load far fewer than calls."""
        return self._writer.commits

    async def accept(self, goals: Sequence[Goal], holder: str = "") -> list[Acceptance]:
        """Accept goals; see `Ledger.accept`."""
        size_bytes = check_goals(goals, self._settings)
        answers: list[Acceptance] = await self._queue.submit(
            Accept(tuple(goals), holder), max(1, len(goals)), size_bytes
        )
        return answers

    async def append(self, writer: str, writes: Sequence[Write]) -> list[bool]:
        """Carry out writes; see `Ledger.append`."""
        size_bytes = check_writes(writes, self._settings)
        answers: list[bool] = await self._queue.submit(Append(writer, tuple(writes)), max(1, len(writes)), size_bytes)
        return answers

    async def goal(self, goal_id: str) -> GoalRecord | None:
        """Return a goal and where it stands, or None."""
        records = read_rows(await self._rows(_RECORD, goal_id), to_record)
        return records[0] if records else None

    async def goals(self, query: GoalQuery) -> list[GoalRecord]:
        """Return a page of goals, newest first."""
        text, values = page_of_goals(query, "%s")
        return read_rows(await self._rows(text, *values, self._limit(query.limit)), to_record)

    async def unfinished(self, after: str, limit: int) -> list[GoalRecord]:
        """Return goals that are not terminal, in the order of their ids."""
        text = (
            f"SELECT {RECORD_COLUMNS} FROM {RECORD_TABLES}"
            " WHERE g.finished_seq IS NULL AND g.id > %s ORDER BY g.id LIMIT %s"
        )
        return read_rows(await self._rows(text, after, self._limit(limit)), to_record)

    async def journal(self, goal_id: str, after_seq: int, limit: int) -> list[Entry]:
        """Return a goal's entries above `after_seq`, in order."""
        # The numbers first, from the index alone: sorting whole rows would read every body of the goal for each page.
        text = (
            f"SELECT {ENTRY_COLUMNS} FROM journal WHERE seq IN"
            " (SELECT seq FROM journal WHERE goal_id = %s AND seq > %s ORDER BY seq LIMIT %s) ORDER BY seq"
        )
        entries = read_rows(await self._rows(text, goal_id, after_seq, self._limit(limit)), to_entry)
        if not any(entry.kind in (EntryKind.ACCEPTED, EntryKind.FINISHED) for entry in entries):
            return entries
        # Read after the entries, so it is at least as new; what it is read for never changes.
        record = await self.goal(goal_id)
        assert record is not None, "an entry without its goal"
        return [with_body(entry, record) for entry in entries]

    async def entry(self, goal_id: str, step_key: str) -> Entry | None:
        """Return what was recorded under a key, or None."""
        text = f"SELECT {ENTRY_COLUMNS} FROM journal WHERE goal_id = %s AND step_key = %s"
        entries = read_rows(await self._rows(text, goal_id, step_key), to_entry)
        return entries[0] if entries else None

    async def questions(self, after_seq: int, limit: int, tenant: str = "") -> list[Entry]:
        """Return what was asked of people and is not answered; see `Ledger.questions`."""
        return read_rows(await self._rows(_QUESTIONS, after_seq, tenant, self._limit(limit)), to_entry)

    async def changes(self, after_seq: int, wait_s: float, limit: int) -> tuple[int, list[str]]:
        """Return which goals have news; see `Ledger.changes`."""
        ends_at = time.monotonic() + wait_s
        while True:
            rows = await self._rows(_CHANGES, max(after_seq, 0), 0 if after_seq < 0 else self._limit(limit))
            head_seq = rows[0][0]
            self._note_head(head_seq)
            if after_seq < 0 or rows[0][1] is None:
                found: tuple[int, list[str]] = (head_seq, [])
            else:
                return rows[-1][1], list(dict.fromkeys(goal_id for _, _, goal_id in rows))
            remaining_s = ends_at - time.monotonic()
            if after_seq < 0 or remaining_s <= 0 or head_seq > after_seq:
                return found
            if self._following is None or self._following.done():
                self._following = asyncio.get_running_loop().create_task(self._follow(), name="follow the ledger")
            await self._bell.wait(lambda: self._head_seq > after_seq or self._is_closed, remaining_s)

    async def agent_state(self, agent: AgentId) -> AgentState | None:
        """Return the last committed state of an agent, or None."""
        text = "SELECT version, schema, body, sum FROM agent_states WHERE type = %s AND key = %s"
        rows = await self._rows(text, agent.type, agent.key)
        return to_state(agent, rows[0]) if rows else None

    async def put_mark(self, mark: Mark, only_new: bool = False) -> bool:
        """Write a mark; see `Ledger.put_mark`."""
        kind, name, at, until, body, _ = mark
        rows = await self._rows(
            _PUT_MARK, self._settings.cluster, at - FORGET_AFTER_S, kind, name, kind, name, at, until, body, mark.sum,
            only_new,
        )  # fmt: skip
        if not rows:
            raise await self._not_ours()
        return bool(rows[0][0])

    async def marks(self, kinds: Sequence[str], after_version: int, limit: int) -> list[Mark]:
        """Return marks that changed, in the order of their versions."""
        values = (after_version, *kinds, self._limit(limit))
        return read_rows(await self._rows(page_of_marks(kinds, "%s"), *values), to_mark)

    async def fence(self, host: str) -> None:
        """Refuse every later write of `host`; what it left open in the middle is ended."""
        if not host:
            raise ValueError("the front door cannot be fenced")
        # Before: it may have stopped while it holds what the fence waits for.
        await self._rows(_END_SESSIONS, host)
        if not await self._rows(_FENCE, self._settings.cluster, host):
            raise await self._not_ours()

    async def next_epoch(self) -> int:
        """Return a number larger than every one before."""
        rows = await self._rows(_EPOCH, self._settings.cluster)
        if not rows:
            raise await self._not_ours()
        return int(rows[0][0])

    async def release(self) -> None:
        """Let another fleet have the ledger at once; for when this fleet has stopped."""
        await self._rows(_RELEASE, self._settings.cluster)

    async def close(self) -> None:
        """Commit what waits, then hang up; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._bell.ring()
        await self._queue.close()
        endless = [task for task in (self._following, self._leasing) if task is not None]
        for task in endless:
            task.cancel()
        if ending := [*endless, *self._reads]:
            await asyncio.wait(ending)
        await self._writer.close()
        await self._links.close()

    def _check(self) -> None:
        if self._is_closed:
            raise UnavailableError("the ledger is closed")

    def _limit(self, limit: int) -> int:
        return max(0, min(limit, self._settings.read_rows_max))

    async def _open(self) -> None:
        async with self._opening:
            if self._is_open:
                return
            async with self._links.use() as connection:
                if await self._lease(connection) != self._settings.cluster:
                    holder, ends_in_s = await _one(connection, HOLDER)
                    raise AlreadyExistsError(
                        f"the ledger is held by the fleet {holder!r}; this one is {self._settings.cluster!r}. If that "
                        f"one is gone, its lease ends in {max(0.0, ends_in_s):.0f} s",
                        holder=holder,
                    )
            self._is_open = True
            self._leasing = asyncio.get_running_loop().create_task(self._keep_lease(), name="keep the lease")

    async def _lease(self, connection: Connection) -> str:
        given = {"cluster": self._settings.cluster, "lease_s": self._settings.lease_s}
        row = await (await connection.execute(_LEASE, given)).fetchone()
        return str(row[0]) if row is not None else ""

    async def _keep_lease(self) -> None:
        """Renew the lease, or take it back when whoever took it is gone."""
        while True:
            await asyncio.sleep(self._settings.lease_s / 4)
            try:
                async with self._links.use() as connection:
                    if not await self._lease(connection):
                        log.error("ledger.lease_lost", cluster=self._settings.cluster)
            except (NexusError, psycopg.Error, OSError) as error:
                log.warning("ledger.lease_not_renewed", error=str(translated(error)))

    async def _not_ours(self) -> NexusError:
        holder = (await self._rows(HOLDER))[0][0]
        return UnavailableError(f"the ledger is held by another fleet: {holder or 'nobody'}")

    async def _commit(self, calls: Sequence[Any]) -> list[Any]:
        if not self._is_open:
            try:
                await self._open()
            except NexusError as error:
                return [UnavailableError(error.message, **error.details) for _ in calls]
        answers = await self._writer.commit(calls)
        self._note_head(self._writer.head_seq)
        return answers

    def _note_head(self, seq: int) -> None:
        if seq > self._head_seq:
            self._head_seq = seq
            self._bell.ring()

    async def _follow(self) -> None:
        """Ring whenever anybody has committed: told by PostgreSQL, and looked for where that got lost."""
        while True:
            try:
                connection = await connect(self._settings, self._name)
                try:
                    await self._listen(connection)
                finally:
                    hang_up(connection)
                    await connection.close()
            except (NexusError, psycopg.Error, OSError) as error:
                log.warning("ledger.not_followed", error=str(translated(error)))
                await asyncio.sleep(self._settings.look_every_s)

    async def _listen(self, connection: Connection) -> None:
        with bounded(connection, self._settings.answer_s_max):
            await connection.execute(f"LISTEN {CHANNEL}")
        while True:
            with bounded(connection, self._settings.answer_s_max):
                (seq,) = await _one(connection, "SELECT seq FROM head")
            self._note_head(seq)
            async for told in connection.notifies(timeout=self._settings.look_every_s):
                if told.payload.isdigit():
                    self._note_head(int(told.payload))

    async def _rows(self, text: str, *values: Any) -> list[_Row]:
        """Read; try again while the server is away, for a time."""
        self._check()
        # Not in the caller's task: where that is cancelled, psycopg would wait for the server first.
        task = asyncio.get_running_loop().create_task(self._read(text, values), name="read the ledger")
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)
        return await asyncio.shield(task)

    async def _read(self, text: str, values: Sequence[Any]) -> list[_Row]:
        give_up_at = time.monotonic() + self._settings.outage_wait_s
        while True:
            try:
                if not self._is_open:
                    await self._open()
                async with self._links.use() as connection:
                    return await (await connection.execute(text, values, binary=True)).fetchall()
            except (NexusError, psycopg.Error, OSError) as error:
                if not is_passing(error) or "retry_after_s" in getattr(error, "details", {}):
                    raise _for_caller(error) from None
                if self._is_closed or time.monotonic() > give_up_at:
                    raise _for_caller(error) from None
            await asyncio.sleep(_AGAIN_S)


def _for_caller(fault: BaseException) -> NexusError:
    error = translated(fault)
    if error.code in ("failed_precondition", "already_exists"):
        return UnavailableError(error.message, **error.details)
    return error


async def _one(connection: Connection, text: str) -> Any:
    row = await (await connection.execute(text)).fetchone()
    assert row is not None
    return row


def _count(result: str, writes: int) -> None:
    metrics.count("nexus_ledger_commits_total", result=result)
    if writes:
        metrics.record("nexus_ledger_batch_writes", writes)
