"""The audit log as others see it, and what they get from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nexus_ray.audit.record import Entry, Record


@dataclass(frozen=True, slots=True)
class RecordQuery:
    """Which records; a text that is empty matches all. `after` and `before` are numbers, neither included.

    The newest come first, unless `is_oldest_first`. `is_open` finds intents without an outcome. `tenants` and
    `tenants_not` empty match all.
    """

    goal: str = ""
    principal: str = ""
    action: str = ""
    decision: str = ""
    operation: str = ""
    tenants: tuple[str, ...] = ()
    tenants_not: tuple[str, ...] = ()
    is_open: bool = False
    after: int = -1
    before: int = 2**62
    limit: int = 100
    is_oldest_first: bool = False


@dataclass(frozen=True, slots=True)
class Proof:
    """That a record stands in the log: the hashes `path` lead from it to the root of a signed checkpoint."""

    record: Record
    path: tuple[bytes, ...]
    checkpoint: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Keeps records in clear whatever their age: those whose `field` (goal, principal, tenant) is `value`."""

    name: str
    field: str
    value: str
    reason: str = ""
    by: str = ""
    at: float = 0.0


class AuditLog(Protocol):
    """What is promised by every audit log.

    A call that writes returns after what it wrote is on disk. It may be repeated: an entry stands once, named by its
    operation and kind. Errors: `UnavailableError` (cannot write or read now; not known whether it was written),
    `InvalidArgumentError` (cannot be kept), `DataLossError` (the log is not what was signed).
    """

    async def append(self, entries: Sequence[Entry]) -> list[int]:
        """Write entries, together and in order; return their numbers."""
        ...

    async def records(self, query: RecordQuery) -> list[Record]:
        """Return a page of records."""
        ...

    async def key(self) -> str:
        """Return the key that checkpoints are verified with, as one line."""
        ...

    async def checkpoint(self) -> str:
        """Return a signed checkpoint of all that is in the log now."""
        ...

    async def checkpoints(self, after_size: int, limit: int) -> list[str]:
        """Return the signed checkpoints of more than `after_size` records, oldest first."""
        ...

    async def prove(self, seq: int) -> Proof:
        """Return the proof that a record stands in the log; `NotFoundError` where there is none of this number."""
        ...

    async def consistency(self, old_size: int) -> tuple[list[bytes], str]:
        """Return the proof that the log begins with its first `old_size` records, and the checkpoint that it leads to.

        `InvalidArgumentError` where it never had as many.
        """
        ...

    async def retain(self, now: float) -> int:
        """Empty the records whose time is over and that nothing holds; return how many."""
        ...

    async def hold(self, hold: Hold, entry: Entry) -> None:
        """Keep records from being emptied, and write down who wanted that; `AlreadyExistsError` for a second name."""
        ...

    async def release(self, name: str, entry: Entry) -> None:
        """Let go of a hold, and write down who did; `NotFoundError` where there is none."""
        ...

    async def holds(self) -> list[Hold]:
        """Return the holds, by name."""
        ...

    async def close(self) -> None:
        """Sign a last checkpoint and let go; idempotent."""
        ...
