"""Deadlines: an instant that travels with a call, so that every wait on the way ends in time.

A deadline is an instant of the wall clock; a timeout is a length. Wall clock because it crosses hosts:
a skew of a second moves a deadline by a second, which `nexus doctor` checks.
"""

from dataclasses import dataclass

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
