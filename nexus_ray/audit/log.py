"""The audit log's driver: what waits is written together, by one thread, with one sync.

Law: an append returns after the commit that holds it, never before.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nexus_ray.audit import retention
from nexus_ray.audit.checkpoint import verifier_key
from nexus_ray.audit.limits import AuditSettings
from nexus_ray.audit.ports import Hold, Proof, RecordQuery
from nexus_ray.audit.record import Entry, Record, check_entry
from nexus_ray.audit.store import AuditStore, Database
from nexus_ray.core.clock import Clock, SystemClock
from nexus_ray.core.errors import DataLossError, NexusError, UnavailableError
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger

log = get_logger("audit.log")

_ResultT = TypeVar("_ResultT")


@dataclass(frozen=True, slots=True)
class _Waiting:
    entries: Sequence[Entry]
    numbers: "asyncio.Future[list[int]]"


class DatabaseAuditLog:
    """Implements `AuditLog` over a database; used from one event loop only."""

    def __init__(self, settings: AuditSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        # One thread: a connection belongs to it, and what is written stays in order.
        self._thread = ThreadPoolExecutor(1, "audit")
        self._waiting: deque[_Waiting] = deque()  # The loop puts in, the thread takes out; nothing else is shared.
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_writing = False
        self._is_closed = False
        self._store: AuditStore
        self._key = ""

    @classmethod
    async def open(
        cls, connect: Callable[[], Database], key: Ed25519PrivateKey, settings: AuditSettings,
        clock: Clock | None = None,
    ) -> "DatabaseAuditLog":  # fmt: skip
        """Open a log.

        Raises:
            DataLossError: It is not what was signed.
            NexusError: It cannot be opened; the message says why.
        """
        made = cls(settings, clock)
        try:
            made._store = await made._in_thread(lambda: _opened(connect, key, settings))
        except BaseException as error:
            made._thread.shutdown()
            if isinstance(error, DataLossError):
                metrics.count(
                    "nexus_security_violations_total", violation_type="audit_tampered", severity="critical",
                    source="audit",
                )  # fmt: skip
                log.error("audit.tampered", error=error.message)
            raise
        made._key = verifier_key(made._store.origin, key.public_key())
        made._begin(made._every(settings.checkpoint_s, made.checkpoint))
        made._begin(made._every(settings.retain_every_s, lambda: made.retain(made._clock.now())))
        return made

    async def append(self, entries: Sequence[Entry]) -> list[int]:
        """See `AuditLog.append`."""
        self._check()
        for entry in entries:
            check_entry(entry)
        if self._count + len(entries) > self._settings.waiting_max:
            raise UnavailableError("too many audit records wait to be written", retry_after_s=1.0)
        if not entries:
            return []
        loop = asyncio.get_running_loop()
        waiting = _Waiting(entries, loop.create_future())
        self._waiting.append(waiting)
        self._count += len(entries)
        if not self._is_writing:
            self._is_writing = True
            loop.call_soon(self._thread.submit, self._write, loop)  # Soon: whoever comes in this moment comes along.
        return await waiting.numbers

    async def records(self, query: RecordQuery) -> list[Record]:
        """See `AuditLog.records`."""
        return await self._in_store(lambda store: store.records(query, self._settings.read_rows_max))

    async def checkpoint(self) -> str:
        """See `AuditLog.checkpoint`."""
        return await self._in_store(lambda store: store.checkpoint())

    async def checkpoints(self, after_size: int, limit: int) -> list[str]:
        """See `AuditLog.checkpoints`."""
        limit = max(0, min(limit, self._settings.read_rows_max))
        return await self._in_store(lambda store: store.checkpoints(after_size, limit))

    async def prove(self, seq: int) -> Proof:
        """See `AuditLog.prove`."""
        return await self._in_store(lambda store: store.prove(seq))

    async def consistency(self, old_size: int) -> tuple[list[bytes], str]:
        """See `AuditLog.consistency`."""
        return await self._in_store(lambda store: store.consistency(old_size))

    async def key(self) -> str:
        """See `AuditLog.key`."""
        return self._key

    async def retain(self, now: float) -> int:
        """See `AuditLog.retain`."""
        count = await self._in_store(lambda store: retention.retain(store, self._settings, now))
        if count:
            log.info("audit.retained", emptied=count)
        return count

    async def hold(self, hold: Hold, entry: Entry) -> None:
        """See `AuditLog.hold`."""
        await self._in_store(lambda store: retention.hold(store, hold, entry))

    async def release(self, name: str, entry: Entry) -> None:
        """See `AuditLog.release`."""
        await self._in_store(lambda store: retention.release(store, name, entry))

    async def holds(self) -> list[Hold]:
        """See `AuditLog.holds`."""
        return await self._in_store(retention.holds)

    async def close(self) -> None:
        """See `AuditLog.close`."""
        if self._is_closed:
            return
        self._is_closed = True
        while self._is_writing:
            await asyncio.sleep(0.001)  # Bounded by what waits, which no longer grows.
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        with contextlib.suppress(NexusError):
            await self._in_thread(self._store.checkpoint)
        await self._in_thread(self._store.database.close)
        self._thread.shutdown()

    def _check(self) -> None:
        if self._is_closed:
            raise UnavailableError("the audit log is closed")

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="audit")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_store(self, work: Callable[[AuditStore], _ResultT]) -> _ResultT:
        self._check()
        store = self._store
        return await self._in_thread(lambda: work(store))

    async def _in_thread(self, work: Callable[[], _ResultT]) -> _ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _write(self, loop: asyncio.AbstractEventLoop) -> None:
        """Write what waits, batch after batch, in the thread: one hop there and one back, however many there are."""
        together = self._take()
        while together:
            entries = [entry for one in together for entry in one.entries]
            written: list[int] | BaseException
            try:
                written = self._store.append(entries)
            except BaseException as error:  # Whatever it is, nobody may wait for an answer that does not come.
                written = error
            following = self._take()
            loop.call_soon_threadsafe(self._answer, loop, together, written, not following)
            together = following

    def _take(self) -> list[_Waiting]:
        together: list[_Waiting] = []
        count = 0
        while self._waiting and (not together or count + len(self._waiting[0].entries) <= self._settings.batch_max):
            together.append(self._waiting.popleft())
            count += len(together[-1].entries)
        return together

    def _answer(
        self, loop: asyncio.AbstractEventLoop, together: list[_Waiting], written: list[int] | BaseException,
        is_last: bool,
    ) -> None:  # fmt: skip
        count = sum(len(one.entries) for one in together)
        self._count -= count
        if isinstance(written, BaseException):
            told = written if isinstance(written, Exception) else UnavailableError("the audit log is closing")
            metrics.count("nexus_audit_records_total", result="error", value=count)
            log.error("audit.not_written", records=count, error=str(told), details=getattr(told, "details", {}))
            for one in together:
                if not one.numbers.done():
                    one.numbers.set_exception(told)
        else:
            metrics.count("nexus_audit_records_total", result="ok", value=count)
            metrics.record("nexus_audit_batch_records", count)
            for one in together:
                if not one.numbers.done():
                    one.numbers.set_result(written[: len(one.entries)])
                written = written[len(one.entries) :]
        if is_last and self._waiting:  # They came while the thread was on its way out.
            self._thread.submit(self._write, loop)
        elif is_last:
            self._is_writing = False

    async def _every(self, seconds: float, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except NexusError as error:
                log.error("audit.work_failed", error=error.message)


def _opened(connect: Callable[[], Database], key: Ed25519PrivateKey, settings: AuditSettings) -> AuditStore:
    database = connect()
    try:
        store = AuditStore(database, key, settings.checkpoint_records)
        store.open()
    except BaseException:
        database.close()
        raise
    return store
