"""The embedded ledger: one SQLite file, one thread that writes, one that reads. Needs no server.

Law: an answer is given after the commit that holds it was synced to the disk, never before; and one process writes.
All calls that wait are committed together, so the cost of a sync is shared by whoever came during the one before.
It deliberately knows nothing of other machines: several hosts reach one ledger through the process that owns it.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nexus_ray.agents.task import AgentState
from nexus_ray.core.errors import AlreadyExistsError, NexusError, NotFoundError, UnavailableError
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.bell import Bell
from nexus_ray.ledger.goal import Entry, EntryKind, Goal, GoalQuery, GoalRecord, Write
from nexus_ray.ledger.lane import Lane, LaneLimits
from nexus_ray.ledger.limits import LedgerSettings, check_goals, check_writes
from nexus_ray.ledger.machine import Accept, Append, Call, Fence, NextEpoch
from nexus_ray.ledger.marks import Mark, PutMark, page_of_marks, to_mark
from nexus_ray.ledger.ports import Acceptance
from nexus_ray.ledger.schema import (
    ENTRY_COLUMNS,
    RECORD_COLUMNS,
    RECORD_TABLES,
    open_reader,
    open_writer,
    page_of_goals,
    read_rows,
    to_entry,
    to_record,
    to_state,
    translated,
    with_body,
)
from nexus_ray.ledger.writer import LedgerWriter
from nexus_ray.observe import metrics

__all__ = ["LedgerSettings", "SqliteLedger"]

AnswerT = TypeVar("AnswerT")
_Read = Callable[[sqlite3.Connection], Any]


class SqliteLedger:
    """A ledger in a file; may be used from any event loop of its process."""

    def __init__(self, path: Path | str, settings: LedgerSettings | None = None) -> None:
        """Name the file; `open` opens it."""
        self._path = Path(path)
        self._settings = settings or LedgerSettings()
        self._bell = Bell(self._settings.waiters_max, self._settings.retry_after_s)
        self._is_closed = False

    @classmethod
    async def open(cls, path: Path | str, settings: LedgerSettings | None = None) -> "SqliteLedger":
        """Open a ledger, or make one with mode 0600.

        Raises:
            AlreadyExistsError: Another process, or this one, has it open.
            NotFoundError: Its folder does not exist.
            DataLossError: The file is not a ledger, or is damaged.
            FailedPreconditionError: Another version of Nexus wrote it.
            UnavailableError: It cannot be opened now.
        """
        ledger = cls(path, settings)
        await asyncio.to_thread(ledger._open)
        return ledger

    @property
    def commits(self) -> int:
        """How many transactions were committed since it was opened: under load far fewer than calls."""
        return self._writer.commits

    async def accept(self, goals: Sequence[Goal], holder: str = "") -> list[Acceptance]:
        """Accept goals; see `Ledger.accept`."""
        size_bytes = check_goals(goals, self._settings)
        answers: list[Acceptance] = await self._write(Accept(tuple(goals), holder), len(goals), size_bytes)
        return answers

    async def append(self, writer: str, writes: Sequence[Write]) -> list[bool]:
        """Carry out writes; see `Ledger.append`."""
        size_bytes = check_writes(writes, self._settings)
        answers: list[bool] = await self._write(Append(writer, tuple(writes)), len(writes), size_bytes)
        return answers

    async def goal(self, goal_id: str) -> GoalRecord | None:
        """Return a goal and where it stands, or None."""
        return await self._read(lambda connection: _goal(connection, goal_id))

    async def goals(self, query: GoalQuery) -> list[GoalRecord]:
        """Return a page of goals, newest first."""
        limit = self._rows(query.limit)
        return await self._read(lambda connection: _goals(connection, query, limit))

    async def unfinished(self, after: str, limit: int) -> list[GoalRecord]:
        """Return goals that are not terminal, in the order of their ids."""
        text = (
            f"SELECT {RECORD_COLUMNS} FROM {RECORD_TABLES}"
            " WHERE g.finished_seq IS NULL AND g.id > ? ORDER BY g.id LIMIT ?"
        )
        values = (after, self._rows(limit))
        return await self._read(lambda connection: read_rows(connection.execute(text, values).fetchall(), to_record))

    async def journal(self, goal_id: str, after_seq: int, limit: int) -> list[Entry]:
        """Return a goal's entries above `after_seq`, in order."""
        limit = self._rows(limit)
        return await self._read(lambda connection: _journal(connection, goal_id, after_seq, limit))

    async def entry(self, goal_id: str, step_key: str) -> Entry | None:
        """Return what was recorded under a key, or None."""
        text = f"SELECT {ENTRY_COLUMNS} FROM journal WHERE goal_id = ? AND step_key = ?"
        entries = await self._read(
            lambda connection: read_rows(connection.execute(text, (goal_id, step_key)).fetchall(), to_entry)
        )
        return entries[0] if entries else None

    async def questions(self, after_seq: int, limit: int, tenant: str = "") -> list[Entry]:
        """Return what was asked of people and is not answered; see `Ledger.questions`."""
        text = (
            f"SELECT {ENTRY_COLUMNS} FROM journal j WHERE kind = 'asked' AND seq > ?"
            " AND EXISTS (SELECT 1 FROM goals g WHERE g.id = j.goal_id AND g.finished_seq IS NULL"
            " AND ? IN ('', g.tenant))"
            " AND NOT EXISTS (SELECT 1 FROM journal a WHERE a.goal_id = j.goal_id AND a.step_key = j.step_key || '=')"
            " ORDER BY seq LIMIT ?"
        )
        values = (after_seq, tenant, self._rows(limit))
        return await self._read(lambda connection: read_rows(connection.execute(text, values).fetchall(), to_entry))

    async def changes(self, after_seq: int, wait_s: float, limit: int) -> tuple[int, list[str]]:
        """Return which goals have news; see `Ledger.changes`."""
        self._check()
        if after_seq < 0:
            return self._writer.head_seq, []
        await self._bell.wait(lambda: self._writer.head_seq > after_seq or self._is_closed, wait_s)
        self._check()
        if self._writer.head_seq <= after_seq:
            return self._writer.head_seq, []
        text = "SELECT seq, goal_id FROM journal WHERE seq > ? ORDER BY seq LIMIT ?"
        values = (after_seq, self._rows(limit))
        rows = await self._read(lambda connection: connection.execute(text, values).fetchall())
        return rows[-1][0] if rows else after_seq, list(dict.fromkeys(goal_id for _, goal_id in rows))

    async def agent_state(self, agent: AgentId) -> AgentState | None:
        """Return the last committed state of an agent, or None."""
        text = "SELECT version, schema, body, sum FROM agent_states WHERE type = ? AND key = ?"
        values = (agent.type, agent.key)
        row = await self._read(lambda connection: connection.execute(text, values).fetchone())
        return None if row is None else to_state(agent, row)

    async def put_mark(self, mark: Mark, only_new: bool = False) -> bool:
        """Write a mark; see `Ledger.put_mark`."""
        is_written: bool = await self._write(PutMark(mark, only_new), 1, len(mark.body))
        return is_written

    async def marks(self, kinds: Sequence[str], after_version: int, limit: int) -> list[Mark]:
        """Return marks that changed, in the order of their versions."""
        text, values = page_of_marks(kinds, "?"), (after_version, *kinds, self._rows(limit))
        return await self._read(lambda connection: read_rows(connection.execute(text, values).fetchall(), to_mark))

    async def fence(self, host: str) -> None:
        """Refuse every later write of `host`."""
        if not host:
            raise ValueError("the front door cannot be fenced")
        await self._write(Fence(host), 1, 0)

    async def next_epoch(self) -> int:
        """Return a number larger than every one before."""
        epoch: int = await self._write(NextEpoch(), 1, 0)
        return epoch

    async def close(self) -> None:
        """Commit what waits, then let go of the file; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._bell.ring()
        await asyncio.to_thread(self._close)

    def _open(self) -> None:
        settings = self._settings
        self._lock = _lock(self._path.with_name(self._path.name + ".lock"))
        try:
            self._writing = open_writer(self._path, settings)
            try:
                self._writer = LedgerWriter(self._writing, settings, _count)
                self._writer.load()
                self._reading = open_reader(self._path, settings)
            except BaseException:
                self._writing.close()
                raise
        except sqlite3.Error as error:
            os.close(self._lock)
            raise translated(error) from error
        except BaseException:
            os.close(self._lock)
            raise
        limits = LaneLimits(
            settings.queue_writes_max, settings.queue_bytes_max, settings.batch_writes_max, settings.retry_after_s
        )
        self._writes: Lane[Call] = Lane("ledger-writer", self._commit, limits)
        # A batch of reads is answered when its last is done, so it is small: a page of goals should not hold up others.
        limits = LaneLimits(settings.queue_reads_max, settings.queue_bytes_max, 16, settings.retry_after_s)
        self._reads: Lane[_Read] = Lane("ledger-reader", self._answer, limits)
        self._writes.start()
        self._reads.start()

    def _close(self) -> None:
        self._writes.close()
        self._reads.close()
        # The reader first: the last to close copies the log into the file, which a read-only one cannot.
        self._reading.close()
        self._writing.close()
        os.close(self._lock)

    def _check(self) -> None:
        if self._is_closed:
            raise UnavailableError("the ledger is closed")

    def _rows(self, limit: int) -> int:
        # SQLite takes a negative limit for none at all.
        return max(0, min(limit, self._settings.read_rows_max))

    async def _write(self, call: Call, weight: int, size_bytes: int) -> Any:
        return await self._writes.submit(call, max(1, weight), size_bytes)

    async def _read(self, read: Callable[[sqlite3.Connection], AnswerT]) -> AnswerT:
        answer: AnswerT = await self._reads.submit(read)
        return answer

    def _commit(self, calls: Sequence[Call]) -> list[Any]:
        head_seq = self._writer.head_seq
        answers = self._writer.commit(calls)
        if self._writer.head_seq != head_seq:
            self._bell.ring()
        return answers

    def _answer(self, reads: Sequence[_Read]) -> list[Any]:
        answers: list[Any] = []
        for read in reads:
            try:
                answers.append(read(self._reading))
            except (NexusError, sqlite3.Error, ValueError) as error:
                answers.append(translated(error))
        return answers


def _lock(path: Path) -> int:
    """Take the lock that says who writes; it ends with the process, however that ends."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise NotFoundError("the ledger's folder does not exist", path=str(path.parent)) from error
    except OSError as error:
        raise UnavailableError(f"the ledger cannot be locked: {error.strerror}", path=str(path)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise AlreadyExistsError("another process has this ledger open", path=str(path)) from error
    return descriptor


def _count(result: str, writes: int) -> None:
    metrics.count("nexus_ledger_commits_total", result=result)
    if writes:
        metrics.record("nexus_ledger_batch_writes", writes)


def _goal(connection: sqlite3.Connection, goal_id: str) -> GoalRecord | None:
    text = f"SELECT {RECORD_COLUMNS} FROM {RECORD_TABLES} WHERE g.id = ?"
    records = read_rows(connection.execute(text, (goal_id,)).fetchall(), to_record)
    return records[0] if records else None


def _goals(connection: sqlite3.Connection, query: GoalQuery, limit: int) -> list[GoalRecord]:
    text, values = page_of_goals(query, "?")
    return read_rows(connection.execute(text, (*values, limit)).fetchall(), to_record)


def _journal(connection: sqlite3.Connection, goal_id: str, after_seq: int, limit: int) -> list[Entry]:
    # The numbers first, from the index alone: sorting whole rows would read every body of the goal for each page.
    text = (
        f"SELECT {ENTRY_COLUMNS} FROM journal WHERE seq IN"
        " (SELECT seq FROM journal WHERE goal_id = ? AND seq > ? ORDER BY seq LIMIT ?) ORDER BY seq"
    )
    entries = read_rows(connection.execute(text, (goal_id, after_seq, limit)).fetchall(), to_entry)
    if not any(entry.kind in (EntryKind.ACCEPTED, EntryKind.FINISHED) for entry in entries):
        return entries
    # Read after the entries, so it is at least as new; what it is read for never changes.
    record = _goal(connection, goal_id)
    assert record is not None, "an entry without its goal"
    return [with_body(entry, record) for entry in entries]
