"""Time as a dependency: a driver gets a clock, a machine gets `now`.

Law: nothing but `SystemClock` reads the machine's time.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> float:
        """Return wall-clock seconds since 1970; comparable between hosts, may step."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back; comparable only within one process."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        """Return wall-clock seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Return the machine's monotonic seconds."""
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to, for tests and the simulator."""

    def __init__(self, at: float = 1_000_000.0) -> None:
        self._at = at
        self._jumped_s = 0.0

    def now(self) -> float:
        """Return the instant that was set."""
        return self._at + self._jumped_s

    def monotonic(self) -> float:
        """Return the instant that was set."""
        return self._at

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`, which must not be negative."""
        if seconds < 0:
            raise ValueError("a clock only moves forward")
        self._at += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forwards or back by `seconds`; monotonic time does not see it."""
        self._jumped_s += seconds
