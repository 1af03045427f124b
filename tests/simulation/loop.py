"""An event loop whose time is a number: it never waits, and runs the same callbacks in the same order every time.

Law: a callback belongs to the process in whose context it was scheduled. A process that was killed has no further
turn, not even to clean up; one that is paused has its turns later, in their order. No threads, no sockets.
"""

import asyncio
import contextlib
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any


class Stuck(Exception):
    """The run took more turns than it may: something goes round in circles."""


class Process:
    """What a process of the operating system is here: a name, a context, and whether it has turns."""

    __slots__ = ("at_death", "backlog", "context", "is_alive", "is_paused", "kind", "loop", "name", "skew_s")

    def __init__(self, loop: "SimLoop", name: str, kind: str, skew_s: float = 0.0) -> None:
        self.loop = loop
        self.name = name
        self.kind = kind
        self.skew_s = skew_s
        self.is_alive = True
        self.is_paused = False
        self.backlog: list[Handle] = []
        self.at_death: dict[int, Callable[[], None]] = {}
        self.context = contextvars.Context()
        self.context.run(PROCESS.set, self)

    def now(self) -> float:
        """Wall-clock seconds, as this process sees them; a `Clock`."""
        return 1_000_000.0 + self.loop.now + self.skew_s

    def monotonic(self) -> float:
        return self.loop.now

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a coroutine in this process."""
        return SimTask(coroutine, self.loop, self.context.copy())

    def kill(self) -> None:
        """SIGKILL: no turn more."""
        if self.is_alive:
            self.is_alive = False
            self.backlog.clear()
            self.forsake()

    def forsake(self) -> None:
        """Have everybody who waits for this process believe that it is dead."""
        watching, self.at_death = list(self.at_death.values()), {}
        for tell in watching:
            tell()

    def pause(self) -> None:
        """SIGSTOP."""
        self.is_paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self.is_paused = False
        self.loop.ready.extend(self.backlog)
        self.backlog.clear()


PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")


class Handle:
    """A callback that is to be called."""

    __slots__ = ("args", "at", "callback", "context", "is_cancelled")

    def __init__(self, callback: Callable[..., Any], args: Any, context: contextvars.Context, at: float) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.at = at
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.at


class SimFuture(asyncio.Future[Any]):
    """A future whose place in a set follows from its number, not from where in memory it lies."""

    def __init__(self, loop: "SimLoop") -> None:
        loop.number += 1
        self.number = loop.number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set follows from its number."""

    def __init__(
        self, coroutine: Any, loop: "SimLoop", context: contextvars.Context | None = None, name: str | None = None
    ) -> None:
        loop.number += 1
        self.number = loop.number
        super().__init__(coroutine, loop=loop, context=context, name=name or "")
        self._log_destroy_pending = False  # The tasks of the killed end like this.
        loop.tasks.append(self)

    def __hash__(self) -> int:
        return self.number


class SimLoop(asyncio.AbstractEventLoop):
    """The loop; `now` is its time in seconds from 0, `turns` counts the callbacks it called."""

    def __init__(self, turns_max: int) -> None:
        self.now = 0.0
        self.turns = 0
        self.number = 0
        self.turns_max = turns_max
        self.ready: deque[Handle] = deque()
        self.faults: list[str] = []
        self.outside: dict[str, int] = {}
        """What agents did outside, by its idempotency key, and how often."""
        self.tasks: list[SimTask] = []
        self._timers: list[tuple[float, int, Handle]] = []
        self._timer_count = 0

    def run_while(self, is_wanted: Callable[[], bool], until: float) -> None:
        """Turn as long as it is wanted, until a time at the most, or until there is nothing to do.

        Whether it is wanted is asked when the time moves on.

        Raises:
            Stuck: More than `turns_max` turns.
        """
        ready, timers = self.ready, self._timers
        asyncio._set_running_loop(self)
        try:
            while True:
                if not ready:
                    if not timers or timers[0][0] > until or not is_wanted():
                        return
                    at, _, handle = heapq.heappop(timers)
                    self.now = max(self.now, at)
                    ready.append(handle)
                handle = ready.popleft()
                if handle.is_cancelled:
                    continue
                process = handle.context.get(PROCESS)
                if process is not None:
                    if not process.is_alive:
                        continue
                    if process.is_paused:
                        process.backlog.append(handle)
                        continue
                self.turns += 1
                if self.turns > self.turns_max:
                    raise Stuck(f"{self.turns} turns, and it is {self.now:.3f} s")
                try:
                    handle.context.run(handle.callback, *handle.args)
                except Exception as error:
                    self.faults.append(f"a callback raised {type(error).__name__}: {error}")
        finally:
            asyncio._set_running_loop(None)

    def dispose(self) -> None:
        """Let go of the tasks that never ended; what their coroutines do while they are closed reaches nobody."""
        for task in self.tasks:
            if not task.done():
                # It may await something while it is being closed.
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    task.get_coro().close()  # type: ignore[union-attr]
        self.tasks.clear()
        self.ready.clear()
        self._timers.clear()

    # --- What asyncio asks of a loop.

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Handle:  # type: ignore[override]
        handle = Handle(callback, args, context or contextvars.copy_context(), self.now)
        self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Handle:  # type: ignore[override]
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Handle:  # type: ignore[override]
        handle = Handle(callback, args, context or contextvars.copy_context(), when)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def time(self) -> float:
        return self.now

    def create_future(self) -> SimFuture:
        return SimFuture(self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> SimTask:  # type: ignore[override]
        return SimTask(coro, self, context, name)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        # What is never retrieved is told of when memory is freed, which is at no certain time: not part of a run.
        if "never retrieved" not in context.get("message", ""):
            self.faults.append(f"{context.get('message')}: {context.get('exception')!r}")
