"""The writer of one process to a PostgreSQL ledger: loads what a batch of calls needs, decides, commits, and retries.

Law: nothing is answered before the commit, and a commit whose answer was lost is looked up, not guessed: each batch
carries a number that it commits with itself. What was loaded is forgotten with the batch, because others write too.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import psycopg

from nexus_ray.core.errors import NexusError, UnavailableError
from nexus_ray.core.ids import new_id
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.machine import Accept, Append, Call, LedgerMachine, Needs, Standing, weight
from nexus_ray.ledger.postgres_link import (
    Connection,
    bounded,
    connect,
    hang_up,
    is_bad_argument,
    is_passing,
    translated,
)
from nexus_ray.ledger.postgres_rows import AGENTS, DUMPERS, GOALS, HEAD, KEYS, STEPS, Texts, writing
from nexus_ray.observe.logs import get_logger

log = get_logger("ledger")

_AGAIN_FIRST_S = 0.02
_AGAIN_CEILING_S = 0.5
# What a process leaves behind that did not close its ledger: long after anybody could ask for it.
_FORGET_WRITERS = "DELETE FROM writers WHERE seen_at < now() - interval '1 day'"


class _Attempt:
    """One try of a batch: its number, and the answers if it came to deciding them and had them committed."""

    __slots__ = ("answers", "batch", "head_seq")

    def __init__(self) -> None:
        self.batch = 0
        self.head_seq = 0
        self.answers: list[Any] | None = None


class PostgresWriter:
    """Commits batches, one at a time; used from one event loop only.

    `head_seq` is the newest entry that this process committed, `commits` counts transactions that wrote something.
    """

    def __init__(self, settings: LedgerSettings, name: str, committed: Callable[[str, int], None]) -> None:
        """`committed(result, writes)` is told of every transaction: `ok` or `error`, and how many calls' writes."""
        self._settings = settings
        self._name = name
        self._committed = committed
        self._id = new_id("writer")
        self._connection: Connection | None = None
        self.head_seq = 0
        self.commits = 0

    async def commit(self, calls: Sequence[Call]) -> list[Any]:
        """Carry out calls in order in one transaction; for each, its answer or the error to raise.

        A server that is gone is waited for; so is a lock, and what others committed meanwhile is taken into account.
        """
        give_up_at = time.monotonic() + self._settings.outage_wait_s
        pause_s = _AGAIN_FIRST_S
        unsettled: _Attempt | None = None
        while True:
            attempt = _Attempt()
            try:
                answers = await self._transact(calls, attempt, unsettled)
                if answers is not None:
                    return answers
                # A fence or the lease came in between; what it was is seen at once.
                fault: Exception = UnavailableError("the ledger's fences change too fast")
            except Exception as error:  # Whatever it is, the transaction must end and every caller be told.
                fault = error
            if await self._end_transaction() and attempt.answers is not None:
                unsettled = attempt  # The commit was sent, and its answer is lost.
            if is_bad_argument(fault) and len(calls) > 1:
                # One call holds something that cannot be stored. Each alone, so that it fails without its neighbours.
                return [(await self.commit([call]))[0] for call in calls]
            if not is_passing(fault) or time.monotonic() > give_up_at:
                self._committed("error", 0)
                return [_for_caller(fault) for _ in calls]
            log.warning("ledger.tries_again", error=str(translated(fault)), calls=len(calls))
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _AGAIN_CEILING_S)

    async def open(self) -> None:
        """Connect, if that is not done.

        Raises:
            NexusError: As `connect` does.
        """
        if self._connection is None:
            connection = await connect(self._settings, self._name)
            for kind, dumper in DUMPERS:
                connection.adapters.register_dumper(kind, dumper)
            try:
                with bounded(connection, self._settings.answer_s_max):
                    await connection.execute(_FORGET_WRITERS)
                    await connection.execute("INSERT INTO writers(id) VALUES (%s) ON CONFLICT DO NOTHING", [self._id])
            except BaseException:
                hang_up(connection)
                await connection.close()
                raise
            self._connection = connection

    async def close(self) -> None:
        """Take leave and hang up."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            with bounded(connection, 1.0):
                await connection.execute("DELETE FROM writers WHERE id = %s", [self._id])
        except psycopg.Error:
            hang_up(connection)
        await connection.close()

    async def _end_transaction(self) -> bool:
        """Roll back, or drop the connection; tell whether it was dropped."""
        connection = self._connection
        if connection is None:
            return False
        if not connection.closed:
            try:
                with bounded(connection, self._settings.answer_s_max):
                    await connection.execute("ROLLBACK")
                return False
            except psycopg.Error:
                pass
        self._connection = None
        hang_up(connection)
        await connection.close()
        return True

    async def _transact(self, calls: Sequence[Call], attempt: _Attempt, unsettled: _Attempt | None) -> list[Any] | None:
        """Do it once; None if it has to be done again because of what came in between.

        With `unsettled`, first tell what became of that: the row of this writer is locked by a transaction that may
        still be under way on the other side, so whoever has the lock sees how it ended.
        """
        await self.open()
        connection = self._connection
        assert connection is not None
        needs = LedgerMachine().needs(calls)
        with bounded(connection, self._settings.answer_s_max):
            machine, fences, attempt.batch = await self._load(connection, calls, needs)
            if unsettled is not None and unsettled.batch == attempt.batch - 1 and unsettled.answers is not None:
                await connection.execute("ROLLBACK")
                return self._done(calls, unsettled)
            known = set(machine.versions)
            answers = [machine.decide(call) for call in calls]
            rows = machine.take_rows()
            if not rows.journal:
                await connection.execute("COMMIT")
                return answers
            attempt.answers = answers
            text, values = writing(machine, rows, known, fences, self._settings.cluster, self._id, attempt.batch)
            async with connection.pipeline():
                cursor = await connection.execute(text, values)
                await connection.execute("COMMIT")
            row = await cursor.fetchone()
        if row is None:
            attempt.answers = None
            return None
        attempt.head_seq = row[1]
        return self._done(calls, attempt)

    def _done(self, calls: Sequence[Call], attempt: _Attempt) -> list[Any]:
        assert attempt.answers is not None
        self.head_seq = max(self.head_seq, attempt.head_seq)
        self.commits += 1
        self._committed("ok", sum(weight(call) for call in calls))
        return attempt.answers

    async def _load(
        self, connection: Connection, calls: Sequence[Call], needs: Needs
    ) -> tuple[LedgerMachine, int, int]:
        """Begin a transaction; return what must be known, the count of fences, and the number of this batch."""
        machine = LedgerMachine()
        writers = {call.writer if isinstance(call, Append) else call.holder for call in calls
                   if isinstance(call, Append | Accept)}  # fmt: skip
        async with connection.pipeline():
            await connection.execute("BEGIN")
            head = await connection.execute(HEAD, [Texts(writers), self._id])
            goals = await connection.execute(GOALS, [Texts(needs.goals)])
            steps = await connection.execute(STEPS, _columns(needs.steps)) if needs.steps else None
            agents = await connection.execute(AGENTS, _columns(needs.agents)) if needs.agents else None
            keys = await connection.execute(KEYS, _columns(needs.keys), binary=True) if needs.keys else None
        row = await head.fetchone()
        if row is None:
            raise UnavailableError("this process was forgotten by the ledger")
        batch, fences, holder, fenced = row
        if holder != self._settings.cluster:
            raise UnavailableError(f"the ledger is held by another fleet: {holder or 'nobody'}", is_final=True)
        machine.fenced.update(fenced)
        for id_, is_over, status, host, cancel_by, is_fenced in await goals.fetchall():
            machine.load_standing(id_, Standing(is_over, status, host, cancel_by, set()))
            if is_fenced:
                machine.fenced.add(host)
        for goal_id, step_key in await steps.fetchall() if steps else ():
            machine.standings[goal_id].steps.add(step_key)
        for type_, key, version in await agents.fetchall() if agents else ():
            machine.versions[type_, key] = version
        for tenant, principal, key, *earlier in await keys.fetchall() if keys else ():
            machine.keyed[tenant, principal, key] = tuple(earlier)
        return machine, fences, batch + 1


def _columns(rows: Collection[tuple[str, ...]]) -> list[Texts]:
    return [Texts(column) for column in zip(*rows, strict=True)]


def _for_caller(fault: BaseException) -> NexusError:
    """Return what a call raises: what somebody must change is, for a call, that the ledger is not to be had now."""
    error = translated(fault)
    return UnavailableError(error.message, **error.details) if error.code == "failed_precondition" else error
