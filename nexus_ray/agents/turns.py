"""Turns: what waits is taken in order within each lane, and the lanes one after the other.

Law: who waits in a lane of its own waits for one of each other lane at the most, however many stand in those.
Every goal has a lane, so one with ten thousand tasks does not starve one with three.
"""

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """What waits, by lane. True when anything does; its length is how much."""

    __slots__ = ("_count", "_lanes")

    def __init__(self) -> None:
        self._lanes: dict[str, deque[T]] = {}  # The lane whose turn is next stands first.
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, lane: str, item: T) -> None:
        """Stand in a lane, behind all that stand there."""
        waiting = self._lanes.get(lane)
        if waiting is None:
            waiting = self._lanes[lane] = deque()
        waiting.append(item)
        self._count += 1

    def take(self) -> T:
        """Return the first of the lane whose turn it is.

        Raises:
            IndexError: Nothing waits.
        """
        for lane, waiting in self._lanes.items():
            item = waiting.popleft()
            self._count -= 1
            if not waiting:
                del self._lanes[lane]
            elif len(self._lanes) > 1:
                del self._lanes[lane]
                self._lanes[lane] = waiting
            return item
        raise IndexError("nothing waits")

    def remove(self, lane: str, item: T) -> bool:
        """Let one leave its lane; tell whether it stood there."""
        waiting = self._lanes.get(lane)
        if waiting is None or item not in waiting:
            return False
        waiting.remove(item)
        self._count -= 1
        if not waiting:
            del self._lanes[lane]
        return True
