"""A lane: one thread that takes all jobs that wait, carries them out together, and tells each caller what came of it.

Law: jobs are carried out in the order they were given, each is answered exactly once, and what waits is bounded.
This is what makes a group commit: while one batch is being synced to the disk, the next one gathers.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nexus_ray.core.errors import InternalError, NexusError, UnavailableError
from nexus_ray.ledger.bell import call_soon

JobT = TypeVar("JobT")


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """What may wait in a lane and what one batch may hold, counted in the weights of the jobs."""

    waiting_max: int
    waiting_bytes_max: int
    batch_max: int
    retry_after_s: float


@dataclass(slots=True)
class _Waiting(Generic[JobT]):
    job: JobT
    weight: int
    size_bytes: int
    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop


class Lane(Generic[JobT]):
    """One thread and what waits for it.

    `carry_out` gets a batch and returns one answer for each job: a value, or the error to raise.
    """

    def __init__(
        self, name: str, carry_out: Callable[[Sequence[JobT]], Sequence[Any]], limits: LaneLimits
    ) -> None:
        self._carry_out = carry_out
        self._limits = limits
        # Guarded by `_has_work`'s lock: the four below. Written by callers and by the thread.
        self._has_work = threading.Condition()
        self._waiting: deque[_Waiting[JobT]] = deque()
        self._weight = 0
        self._size_bytes = 0
        self._is_closed = False
        # A daemon, so that a process that forgets to close its ledger can still end.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to carry out jobs."""
        self._thread.start()

    def submit(self, job: JobT, weight: int = 1, size_bytes: int = 0) -> "asyncio.Future[Any]":
        """Queue a job behind all that wait; the future, of the running loop, gets its answer.

        Raises:
            UnavailableError: Closed, or too much waits; then `details["retry_after_s"]` says when to come back.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        limits = self._limits
        with self._has_work:
            if self._is_closed:
                raise UnavailableError("the ledger is closed")
            # One job alone always fits: its own size was checked before, and it must not wait for ever.
            if self._waiting and (
                self._weight + weight > limits.waiting_max or self._size_bytes + size_bytes > limits.waiting_bytes_max
            ):
                raise UnavailableError(
                    "the ledger has too much waiting; nothing of this call was kept",
                    waiting=self._weight,
                    waiting_bytes=self._size_bytes,
                    retry_after_s=limits.retry_after_s,
                )
            self._waiting.append(_Waiting(job, weight, size_bytes, future, loop))
            self._weight += weight
            self._size_bytes += size_bytes
            self._has_work.notify()
        return future

    def close(self) -> None:
        """Take no more, carry out what waits, and end the thread; blocks until then. Idempotent."""
        with self._has_work:
            self._is_closed = True
            self._has_work.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while batch := self._take():
            try:
                answers = self._carry_out([waiting.job for waiting in batch])
            except Exception as error:  # The top of this thread: it must outlive a fault, and every caller be told.
                answers = [InternalError("the ledger failed", error_type=type(error).__name__) for _ in batch]
            by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
            for waiting, answer in zip(batch, answers, strict=True):
                by_loop.setdefault(waiting.loop, []).append((waiting.future, answer))
            for loop, answered in by_loop.items():
                call_soon(loop, answer_each, answered)

    def _take(self) -> list[_Waiting[JobT]]:
        """Wait for work and take a batch of it; empty when the lane is closed and done."""
        batch: list[_Waiting[JobT]] = []
        weight = 0
        with self._has_work:
            while not self._waiting and not self._is_closed:
                self._has_work.wait()
            while self._waiting and (not batch or weight + self._waiting[0].weight <= self._limits.batch_max):
                waiting = self._waiting.popleft()
                batch.append(waiting)
                weight += waiting.weight
                self._size_bytes -= waiting.size_bytes
            self._weight -= weight
        return batch


def answer_each(answered: "Iterable[tuple[asyncio.Future[Any], Any]]") -> None:
    """Tell each caller what came of his job: a value, or the error to raise."""
    for future, answer in answered:
        if future.done():  # Its caller was cancelled meanwhile.
            continue
        if isinstance(answer, NexusError):
            future.set_exception(answer)
        else:
            future.set_result(answer)
