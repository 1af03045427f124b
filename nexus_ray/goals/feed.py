"""The change feed of one process: wakes whoever waits for news of a goal.

Law: one long poll of the ledger per process, however many wait. News only says "look again"; nobody may miss one,
because a waiter looks at the ledger after it has begun to listen.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from nexus_ray.core.errors import NexusError, ResourceExhaustedError
from nexus_ray.ledger.ports import Ledger
from nexus_ray.observe.logs import get_logger

log = get_logger("goals.feed")

_POLL_S = 10.0
_PAGE_ENTRIES = 10_000
_AGAIN_AFTER_S = 0.5


class News(asyncio.Event):
    """Set when there are news of one of `goals` that somebody listens for."""

    def __init__(self) -> None:
        super().__init__()
        self.goals: set[str] = set()

    def clear(self) -> None:
        """Forget the news so far."""
        super().clear()
        self.goals.clear()

    async def come(self, wait_s: float) -> None:
        """Return when there are news, or after a while."""
        try:
            async with asyncio.timeout(wait_s):
                await self.wait()
        except TimeoutError:
            pass


class ChangeFeed:
    """Listens to the ledger for everybody in this process; used from one event loop only."""

    def __init__(self, ledger: Ledger, waiters_max: int = 20_000) -> None:
        self._ledger = ledger
        self._waiters_max = waiters_max
        self._waiting: dict[str, set[News]] = {}
        self._count = 0
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def listen(self, *goal_ids: str) -> AsyncIterator[News]:
        """Give an event that is set whenever one of the goals has news; clear it before looking.

        Raises:
            ResourceExhaustedError: `waiters_max` wait already, one for each goal that is listened for.
        """
        if self._count + len(goal_ids) > self._waiters_max:
            raise ResourceExhaustedError("too many are waiting for goals here", retry_after_s=1.0)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="change-feed")
        news = News()
        self._count += len(goal_ids)
        for goal_id in goal_ids:
            self._waiting.setdefault(goal_id, set()).add(news)
        try:
            yield news
        finally:
            self._count -= len(goal_ids)
            for goal_id in goal_ids:
                listeners = self._waiting[goal_id]
                listeners.discard(news)
                if not listeners:
                    del self._waiting[goal_id]

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        seq = -1
        while True:
            try:
                if seq < 0:
                    seq, _ = await self._ledger.changes(-1, 0, 1)
                    self._wake(list(self._waiting))  # What happened before the first look is news to them.
                seq, goals = await self._ledger.changes(seq, _POLL_S, _PAGE_ENTRIES)
            except NexusError as error:
                log.warning("feed.ledger_unavailable", error=str(error))
                seq = -1
                await asyncio.sleep(_AGAIN_AFTER_S)
            else:
                self._wake(goals)

    def _wake(self, goals: list[str]) -> None:
        for goal_id in goals:
            for news in self._waiting.get(goal_id, ()):
                news.goals.add(goal_id)
                news.set()
