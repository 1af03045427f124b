"""Deadlines: an instant that travels with a call, so that every wait on the way ends in time.

A deadline is an instant of the wall clock; a timeout is a length. Wall clock because it crosses hosts:
a skew of a second moves a deadline by a second, which `nexus doctor` checks.

What a wall clock that jumps means to those who wait: a jump forwards passes the instants that it passes, a jump
backwards puts off nothing that is waited for already.
"""

from dataclasses import dataclass

from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import DeadlineExceededError


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """The instant after which an answer is of no use any more, in wall-clock seconds since 1970."""

    at: float

    @classmethod
    def after(cls, timeout_s: float, now: float) -> "Deadline":
        """Return the deadline `timeout_s` seconds from `now`."""
        return cls(now + timeout_s)

    def remaining_s(self, now: float) -> float:
        """Return the seconds that are left, never less than zero."""
        return max(0.0, self.at - now)

    def is_over(self, now: float) -> bool:
        """Tell whether the instant has passed."""
        return now >= self.at

    def check(self, now: float, what: str) -> None:
        """Refuse to start what cannot end in time.

        Raises:
            DeadlineExceededError: The instant has passed.
        """
        if self.is_over(now):
            raise DeadlineExceededError(f"the deadline passed before {what}", late_s=round(now - self.at, 3))


class Countdown:
    """The wait for an instant by a clock that may jump while it lasts.

    It is over when the wall clock has come to the instant, or when as much time has gone by as it was away when the
    wait began, whichever is first. Whoever waits looks again now and then: a timer alone sees no jump.
    """

    __slots__ = ("_at", "_clock", "_ends")

    def __init__(self, clock: Clock, at: float) -> None:
        """`at` is in wall-clock seconds."""
        self._clock = clock
        self._at = at
        self._ends = clock.monotonic() + (at - clock.now())

    def remaining_s(self) -> float:
        """Return the seconds that are left, never less than zero."""
        return max(0.0, min(self._at - self._clock.now(), self._ends - self._clock.monotonic()))
