"""A promise: a future that tells one other party of its end at once, not when the loop has its next turn.

Law: whoever is told is told once, and does nothing that takes long: it is called in the middle of somebody else's work.
A callback through the loop costs 1 to 3 µs, and a task would have three on its way.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Promise(asyncio.Future[T]):
    """The future of an answer; used from one event loop only."""

    # As for all that inherit: a future's own dictionary is slow to make.
    __slots__ = ("_told",)

    def __init__(self) -> None:
        super().__init__()
        self._told: Callable[[Any], None] | None = None

    def tell(self, told: "Callable[[Any], None]") -> None:
        """Call `told` with this promise when it is done, which may be now."""
        self._told = told
        if self.done():
            self._tell()

    def resolve(self, value: Any, error: BaseException | None = None) -> None:
        """Say what the answer is, or why there is none."""
        if error is None:
            self.set_result(value)
        elif isinstance(error, asyncio.CancelledError):
            super().cancel()
        else:
            self.set_exception(error)
        if self._told is not None:
            self._tell()

    def _tell(self) -> None:
        told, self._told = self._told, None  # Let go, so that the two do not hold each other.
        assert told is not None
        try:
            told(self)
        except Exception as error:  # As the loop does with callbacks: it is no fault of who brings the answer.
            self.get_loop().call_exception_handler({"message": "nobody could be told", "exception": error})
