"""A crew: runs many short coroutines with few asyncio tasks.

Law: each coroutine runs within one task from beginning to end, and sees a clean context. One task runs one after the
other for as long as none has to wait; the one that waits keeps its task, and another task takes up the rest. Which
one is next goes by turns; see `turns`.

Most agents answer without ever waiting. A task for each costs 15 µs, and a timer 3, which is half of what the rest of
a short task takes; so a timer is set only for what waits, too.
"""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any

from nexus_ray.agents.promise import Promise
from nexus_ray.agents.turns import Turns

_JOBS_A_TURN_MAX = 64  # Then everybody else on the loop has a turn: about 3 ms.


class Job(Promise[Any]):
    """One coroutine of a crew, and the future of what it returns. Cancelling it cancels the coroutine."""

    __slots__ = ("_is_over", "coroutine", "seconds", "task", "timer")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], seconds: float) -> None:
        super().__init__()
        self.coroutine = coroutine
        self.seconds = seconds
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._is_over = False

    def cancel(self, msg: Any = None) -> bool:
        """Have the coroutine cancelled; the future is done when the coroutine has ended."""
        if self.done():
            return False
        if self.task is None:
            self.coroutine.close()
            self.resolve(None, asyncio.CancelledError())
            return True
        return self.task.cancel(msg)

    @property
    def is_cancelled(self) -> bool:
        """Tell whether somebody has asked for it to be cancelled, or cut it off."""
        return self.task is not None and self.task.cancelling() > 0

    def expire(self) -> None:
        """Cut the coroutine off: its time is over."""
        self._is_over = True
        if self.task is not None:
            self.task.cancel()

    def has_expired(self) -> bool:
        """Tell the coroutine that was cancelled whether it was by its time, and nobody else; true once."""
        if not self._is_over or self.task is None:
            return False
        self._is_over = False
        return self.task.uncancel() == 0

    def end(self, value: Any, error: BaseException | None) -> None:
        """Say how the coroutine ended."""
        if self.timer is not None:
            self.timer.cancel()
        if not self.done():
            self.resolve(value, error)


class Crew:
    """Runs coroutines; used from one event loop only."""

    def __init__(self) -> None:
        self._waiting: Turns[Job] = Turns()
        self._tasks: set[asyncio.Task[None]] = set()
        self._worker: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()
        self.current: Job | None = None
        """The job whose coroutine runs at this moment; to be read before the coroutine first waits."""

    @property
    def under_way(self) -> int:
        """How many coroutines wait or run."""
        return len(self._waiting) + len(self._tasks)  # Each that waits for something keeps a task.

    def start(self, coroutine: Coroutine[Any, Any, Any], seconds: float, lane: str = "") -> Job:
        """Run a coroutine; after `seconds` it is cut off, see `Job.has_expired`. Lanes take turns."""
        job = Job(coroutine, seconds)
        self._waiting.put(lane, job)
        if self._worker is None:
            self._call_worker()
        return job

    async def close(self) -> None:
        """Cancel everything."""
        while self._waiting:
            self._waiting.take().cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _call_worker(self) -> None:
        task = asyncio.get_running_loop().create_task(self._work(), context=self._context.copy())
        self._worker = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        me = asyncio.current_task()
        assert me is not None
        clean = contextvars.copy_context()
        loop.call_soon(self._look, me)
        jobs = 0
        while self._worker is me and self._waiting:
            job = self._waiting.take()
            if job.done():
                continue
            job.task = me
            self.current = job
            value, error = None, None
            try:
                value = await job.coroutine
            except BaseException as raised:
                error = raised
            if self._worker is me:
                self.current = None
            job.task = None
            job.end(value, error)
            if isinstance(error, asyncio.CancelledError) or clean != contextvars.copy_context():
                break  # This task is spoilt for others.
            jobs += 1
            if jobs % _JOBS_A_TURN_MAX == 0:
                await asyncio.sleep(0)
                loop.call_soon(self._look, me)
        if self._worker is me:
            self._worker = None
            if self._waiting:
                self._call_worker()

    def _look(self, worker: "asyncio.Task[None]") -> None:
        """Called when the loop has its next turn: a worker that is in the middle of a job now is one that waits."""
        job = self.current
        if self._worker is not worker or job is None or job.task is not worker:
            return
        self._worker = None
        self.current = None
        job.timer = asyncio.get_running_loop().call_later(max(0.0, job.seconds), job.expire)
        if self._waiting:
            self._call_worker()
