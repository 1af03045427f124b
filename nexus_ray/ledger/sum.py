"""Checksums of a ledger's rows: what was written is what is read, or it is refused.

Law: a sum covers everything in a row that means something, but its number, which the ledger's density checks. They
find flipped bits and torn rows; they do not keep out somebody who can write to the ledger, which the audit log does.
"""

import zlib
from collections.abc import Sequence

from nexus_ray.core.errors import DataLossError
from nexus_ray.core.identity import MAIN_TENANT
from nexus_ray.ledger.goal import Goal


def entry_sum(goal_id: str, kind: str, at: float, step_key: str, body: bytes) -> int:
    """Return the sum of a journal's row, 32 bits without sign."""
    return zlib.crc32(body, zlib.crc32(f"{goal_id}\0{kind}\0{at!r}\0{step_key}".encode()))


def goal_sum(goal: Goal, headers: str) -> int:
    """Return the sum of what never changes in a goal's row; `headers` as they are stored."""
    texts: tuple[str, ...] = (goal.id, goal.type, goal.principal, goal.parent, headers, goal.idempotency_key)
    if goal.tenant != MAIN_TENANT:  # Rows from before there were tenants have the sum of those of the main one.
        texts += (goal.tenant,)
    return row_sum((*texts, goal.accepted_at, goal.deadline_at))


def row_sum(fields: Sequence[str | float | int | bytes | None]) -> int:
    """Return the sum of some fields in their order."""
    total = 0
    for field in fields:
        packed = field if isinstance(field, bytes) else b"\1" if field is None else repr(field).encode()
        total = zlib.crc32(packed, zlib.crc32(b"\0", total))
    return total


def check_sum(stored: int, computed: int, what: str, name: str) -> None:
    """Refuse a row whose sum is not what was stored with it.

    Raises:
        DataLossError: With what it is and its name.
    """
    if stored != computed:
        raise DataLossError(f"{what} {name} in the ledger is damaged: its checksum does not fit", record=name)
