"""Samples: rounds of a closed loop, and the few numbers that stand for many."""

import asyncio
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

GOALS_MAX = 200_000  # For one round; nothing here comes near it.


@dataclass(frozen=True, slots=True)
class Summary:
    """What is kept of some samples; `p50` and `p99` by nearest rank, so each is a value that was measured."""

    n: int
    median: float
    p50: float
    p99: float
    min: float
    max: float


def summarise(samples: Sequence[float]) -> Summary:
    """Raises ValueError where there are no samples, or one is not a finite number."""
    if not samples or not all(math.isfinite(sample) for sample in samples):
        raise ValueError("a summary needs samples, all of them finite")
    ordered = sorted(samples)
    return Summary(
        n=len(ordered),
        median=statistics.median(ordered),
        p50=nearest_rank(ordered, 0.50),
        p99=nearest_rank(ordered, 0.99),
        min=ordered[0],
        max=ordered[-1],
    )


def nearest_rank(ordered: Sequence[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def pair_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Divide round by round: each pair was measured within seconds, so what slows the machine slows both."""
    return [our / their for our, their in zip(ours, theirs, strict=True)]


@dataclass(frozen=True, slots=True)
class Target:
    """What a row's median is to reach: `at_least` or `at_most`."""

    sense: str
    value: float

    def is_reached(self, value: float) -> bool:
        return value >= self.value if self.sense == "at_least" else value <= self.value


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `series` and `at` place it on a curve: who it is about, and how many of what."""

    section: str
    name: str
    unit: str
    summary: Summary
    target: Target | None = None
    series: str = ""
    at: int = 0

    @property
    def reached(self) -> bool | None:
        return None if self.target is None else self.target.is_reached(self.summary.median)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reached": self.reached}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Row":
        target = fields["target"]
        return cls(
            fields["section"], fields["name"], fields["unit"],
            Summary(**fields["summary"]), None if target is None else Target(**target), fields["series"], fields["at"],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Note:
    """What a section has to say beside its figures: who did not take part, and why; which version did."""

    section: str
    text: str


@dataclass(slots=True)
class Round:
    """What one round of a closed loop showed: wall seconds, CPU seconds, and the latency of each goal."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return len(self.latencies_s) / self.wall_s

    @property
    def cpu_us(self) -> float:
        """CPU microseconds for each goal: of this process, where nobody has counted more of them."""
        return self.cpu_s / len(self.latencies_s) * 1e6


async def closed_loop(
    one: Callable[[int], Awaitable[None]], concurrency: int, seconds: float, *, goals_max: int = GOALS_MAX
) -> Round:
    """Keep `concurrency` callers busy: each asks again when it is answered, none after `seconds`.

    The round ends with the last answer, and the rate is over all of it: nothing that was asked is left out.
    """
    result = Round()
    started, cpu_started = time.perf_counter(), time.process_time()
    ends_at = started + seconds

    asked = 0

    async def lane(number: int) -> None:
        nonlocal asked
        while (asked_at := time.perf_counter()) < ends_at and asked < goals_max:
            asked += 1
            await one(number)
            result.latencies_s.append(time.perf_counter() - asked_at)

    async with asyncio.TaskGroup() as lanes:
        for number in range(concurrency):
            lanes.create_task(lane(number))
    result.wall_s = time.perf_counter() - started
    result.cpu_s = time.process_time() - cpu_started
    return result
