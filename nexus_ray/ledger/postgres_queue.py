"""What waits for the writer of a PostgreSQL ledger: all calls that wait are taken together, as one transaction.

Law: calls are carried out in the order they were made, each is answered exactly once, and what waits is bounded. It
is what `lane` is to a thread, on the event loop of the process.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nexus_ray.core.errors import InternalError, UnavailableError
from nexus_ray.ledger.lane import answer_each
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.machine import Call

_Waiting = tuple[Call, int, int, "asyncio.Future[Any]"]


class CallQueue:
    """Calls that wait, and the task that has them carried out; used from one event loop only."""

    def __init__(self, carry_out: Callable[[Sequence[Call]], Awaitable[list[Any]]], settings: LedgerSettings) -> None:
        """`carry_out` gets a batch and returns one answer for each call: a value, or the error to raise."""
        self._carry_out = carry_out
        self._settings = settings
        self._waiting: deque[_Waiting] = deque()
        self._weight = 0
        self._size_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    def submit(self, call: Call, weight: int, size_bytes: int) -> "asyncio.Future[Any]":
        """Queue a call behind all that wait; the future gets its answer.

        Raises:
            UnavailableError: Closed, or too much waits; then `details["retry_after_s"]` says when to come back.
        """
        settings = self._settings
        if self._is_closed:
            raise UnavailableError("the ledger is closed")
        # One call alone always fits: its own size was checked before, and it must not wait for ever.
        if self._waiting and (
            self._weight + weight > settings.queue_writes_max
            or self._size_bytes + size_bytes > settings.queue_bytes_max
        ):
            raise UnavailableError(
                "the ledger has too much waiting; nothing of this call was kept",
                waiting=self._weight,
                waiting_bytes=self._size_bytes,
                retry_after_s=settings.retry_after_s,
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((call, weight, size_bytes, future))
        self._weight += weight
        self._size_bytes += size_bytes
        if self._task is None or self._task.done():
            # Begun in the next turn of the loop, so that whoever calls in this one is in the same transaction.
            self._task = loop.create_task(self._run(), name="ledger-writer")
        return future

    async def close(self) -> None:
        """Take no more and carry out what waits."""
        self._is_closed = True
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while batch := self._take():
            try:
                answers = await self._carry_out([call for call, *_ in batch])
            except Exception as error:  # The top of this task: it must outlive a fault, and every caller be told.
                answers = [InternalError("the ledger failed", error_type=type(error).__name__) for _ in batch]
            answer_each(zip([future for *_, future in batch], answers, strict=True))

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        taken = 0
        while self._waiting and (not batch or taken + self._waiting[0][1] <= self._settings.batch_writes_max):
            waiting = self._waiting.popleft()
            batch.append(waiting)
            taken += waiting[1]
            self._size_bytes -= waiting[2]
        self._weight -= taken
        return batch
