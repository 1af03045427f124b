"""The lines between the runner and a contender: JSON, one value a line; the runner asks, the contender answers.

    contender  {"ready": "2.60.0"}
    runner     {"goals_max": 20000, "concurrency": 8, "seconds": 1.0, "width": 32}
    contender  {"wall_s": 1.004, "latencies_s": [0.0081, …]}
    runner     (closes the pipe: the contender leaves)

Whoever cannot go on says `{"failed": "why"}` and leaves. Rates and percentiles are worked out by the reader, the same
way for everybody, and the CPU time is read by the runner, because a contender is often several processes.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

LINE_BYTES_MAX = 16 * 1024 * 1024  # 20,000 latencies are 0.3 MiB.
GOALS_MAX = 20_000  # For one round; the fastest does 6,000 a second.
CONCURRENCY_MAX = 1_000
WIDTH_MAX = 1_000
SECONDS_MAX = 60.0


class ProtocolError(ValueError):
    """A line that the protocol does not know; or the other side says that it failed."""


@dataclass(frozen=True, slots=True)
class Order:
    """Run goals of `width` agents, `concurrency` at a time, until `seconds` are over or `goals_max` are begun."""

    concurrency: int
    seconds: float
    width: int
    goals_max: int = GOALS_MAX

    def __post_init__(self) -> None:
        for name, most in (("concurrency", CONCURRENCY_MAX), ("width", WIDTH_MAX), ("goals_max", GOALS_MAX)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ProtocolError(f"{name} is to be a whole number from 1 to {most:,}")
        if not _is_seconds(self.seconds) or not 0 < self.seconds <= SECONDS_MAX:
            raise ProtocolError(f"seconds is to be more than 0 and at most {SECONDS_MAX:.0f}")


@dataclass(frozen=True, slots=True)
class Answer:
    """One round: seconds until the last goal was done, and the seconds that each goal took."""

    wall_s: float
    latencies_s: list[float]

    def __post_init__(self) -> None:
        if type(self.latencies_s) is not list or not 1 <= len(self.latencies_s) <= GOALS_MAX + CONCURRENCY_MAX:
            raise ProtocolError("a round has at least one goal, and no more than were asked for")
        if not all(_is_seconds(value) and value > 0 for value in (self.wall_s, *self.latencies_s)):
            raise ProtocolError("times are to be finite seconds of more than 0")


@dataclass(frozen=True, slots=True)
class Ready:
    """The contender has done the job once; the version of the system it is."""

    ready: str


def encode(message: Order | Answer | Ready) -> str:
    """Return a message as a line, its end included."""
    return json.dumps(asdict(message)) + "\n"


def failed(why: str) -> str:
    """Return the line of a contender that cannot go on."""
    return json.dumps({"failed": why[:2_000]}) + "\n"


def decode_order(line: str) -> Order:
    """Raises ProtocolError."""
    return Order(**_fields(line, {"concurrency", "seconds", "width", "goals_max"}))


def decode_answer(line: str) -> Answer:
    """Raises ProtocolError."""
    return Answer(**_fields(line, {"wall_s", "latencies_s"}))


def decode_ready(line: str) -> Ready:
    """Raises ProtocolError."""
    return Ready(str(_fields(line, {"ready"})["ready"]))


def _fields(line: str, names: set[str]) -> dict[str, Any]:
    if len(line) > LINE_BYTES_MAX:
        raise ProtocolError("the line is too long")
    try:
        fields = json.loads(line)
    except ValueError:
        raise ProtocolError(f"not a line of the protocol: {line[:200]!r}") from None
    if isinstance(fields, dict) and set(fields) == {"failed"}:
        raise ProtocolError(str(fields["failed"]))
    if not isinstance(fields, dict) or set(fields) != names:
        raise ProtocolError(f"a line with {', '.join(sorted(names))} was to come: {line[:200]!r}")
    return fields


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
