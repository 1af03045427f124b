"""A mailbox: lets a bounded number of tasks into an agent, each goal's in the order they came, and refuses above that.

Law: goals take turns at an agent; see `turns`.
"""

import asyncio

from nexus_ray.agents.turns import Turns
from nexus_ray.core.errors import ResourceExhaustedError


class Mailbox:
    """The turnstile in front of one agent; used from one event loop only."""

    __slots__ = ("_concurrency", "_waiting", "_waiting_max", "running")

    def __init__(self, concurrency: int, waiting_max: int) -> None:
        self._concurrency = concurrency
        self._waiting_max = waiting_max
        # Made on first need: most agents never have a queue, and an empty one takes memory.
        self._waiting: Turns[asyncio.Future[None]] | None = None
        self.running = 0

    @property
    def waiting(self) -> int:
        """How many tasks wait for their turn."""
        return len(self._waiting) if self._waiting else 0

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing runs and nothing waits."""
        return self.running == 0 and not self._waiting

    def try_enter(self) -> bool:
        """Take a turn if there is one; the caller leaves as after `enter`."""
        if self.running >= self._concurrency or self._waiting:
            return False
        self.running += 1
        return True

    async def enter(self, lane: str = "") -> None:
        """Wait for a turn; first come, first served within a lane, and the lanes in turns.

        Raises:
            ResourceExhaustedError: `waiting_max` tasks wait already.
        """
        if self.try_enter():
            return
        if self._waiting is None:
            self._waiting = Turns()
        if len(self._waiting) >= self._waiting_max:
            raise ResourceExhaustedError("the agent's mailbox is full", waiting=len(self._waiting), retry_after_s=1.0)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(lane, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # The turn was given and is not taken: the next one has it.
            else:  # It may be gone, where a turn was given back in the same moment and passed it over.
                self._waiting.remove(lane, turn)
            raise

    def hold(self) -> None:
        """Take one turn more, for a thread that goes on after its task was let go; it leaves like any other."""
        self.running += 1

    def leave(self) -> None:
        """Give the turn to the next in line, if that does not make too many."""
        if self.running > self._concurrency:
            self.running -= 1
            return
        while self._waiting:
            turn = self._waiting.take()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
