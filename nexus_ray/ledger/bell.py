"""A bell that wakes everybody who waits for news, on whatever event loop they wait.

Law: whoever starts to wait before a ring is woken by it. The bell carries no news; the woken look for themselves.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from nexus_ray.core.errors import UnavailableError


class Bell:
    """Wakes waiting calls; may be rung from any thread."""

    def __init__(self, waiters_max: int, retry_after_s: float) -> None:
        self._waiters_max = waiters_max
        self._retry_after_s = retry_after_s
        self._lock = threading.Lock()
        # Guarded by `_lock`: filled by waiting tasks, emptied by whoever rings.
        self._waiting: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    async def wait(self, is_due: Callable[[], bool], wait_s: float) -> None:
        """Return when the bell rings, when `wait_s` seconds have passed, or at once if `is_due()`.

        Raises:
            UnavailableError: Too many are waiting; `details["retry_after_s"]` says when to come back.
        """
        if wait_s <= 0 or is_due():
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if len(self._waiting) >= self._waiters_max:
                raise UnavailableError(
                    "too many calls wait for changes", waiters=len(self._waiting), retry_after_s=self._retry_after_s
                )
            self._waiting[future] = loop
        try:
            # Asked again after taking a place: what happened between the question and the place would be slept over.
            if not is_due():
                await asyncio.wait([future], timeout=wait_s)
        finally:
            with self._lock:
                self._waiting.pop(future, None)
            future.cancel()

    def ring(self) -> None:
        """Wake everybody who waits now."""
        if not self._waiting:
            return
        with self._lock:
            woken, self._waiting = self._waiting, {}
        by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for future, loop in woken.items():
            by_loop.setdefault(loop, []).append(future)
        for loop, futures in by_loop.items():
            call_soon(loop, _wake, futures)


def call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[Any], None], argument: Any) -> None:
    """Have `callback` called on `loop`; nothing if the loop is closed, for then nobody is left to be told."""
    try:
        loop.call_soon_threadsafe(callback, argument)
    except RuntimeError:
        if not loop.is_closed():
            raise


def _wake(futures: list["asyncio.Future[None]"]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
