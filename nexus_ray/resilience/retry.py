"""Retry: whether to try again, and after how long. A machine: the caller sleeps and calls.

Law: bounded in number, and never beyond the deadline. Full jitter, so that many who failed together do not come back
together. Source: Brooker, Exponential Backoff and Jitter (2015).
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon to try again, and after which error codes.

    `attempts_max` counts the first attempt. The n-th pause is drawn from 0 to `base_s * factor**(n-1)`, at most
    `ceiling_s` seconds.
    """

    attempts_max: int = 3
    base_s: float = 0.05
    factor: float = 2.0
    ceiling_s: float = 2.0
    codes: frozenset[str] = frozenset({"unavailable"})

    def __post_init__(self) -> None:
        if self.attempts_max < 1 or self.base_s < 0 or self.factor < 1 or self.ceiling_s < 0:
            raise ValueError("attempts_max and factor are at least 1, base_s and ceiling_s at least 0")

    def next_delay_s(self, attempt: int, code: str, remaining_s: float, rng: random.Random) -> float | None:
        """Return the pause before the next attempt in seconds, or None to give up.

        Args:
            attempt: How many attempts were made, from 1.
            code: The error's canonical word.
            remaining_s: Seconds until the deadline; a pause that would reach it is not worth beginning.
            rng: Where the jitter comes from.
        """
        if attempt >= self.attempts_max or code not in self.codes:
            return None
        bound_s = min(self.ceiling_s, self.base_s * self.factor ** min(attempt - 1, 64))
        delay_s = rng.uniform(0.0, bound_s)
        return delay_s if delay_s < remaining_s else None
