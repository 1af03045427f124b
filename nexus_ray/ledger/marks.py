"""Marks: small facts that hold until an instant, such as that an identity is suspended; kept beside the goals.

Law: every change of a mark has a version above those of all changes before, in the order of the commits. So whoever
has seen all up to a version, and asks for what is above it, misses nothing. A mark is taken back by a later one whose
`until` has passed; what has been over for a day may be forgotten.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

from nexus_ray.ledger.sum import check_sum, row_sum

FORGET_AFTER_S = 86_400.0
"""How long a mark is kept after it is over: whoever follows has long asked again."""
COLUMNS = ("version", "kind", "name", "at", "until", "body", "sum")

_PUT = """
INSERT INTO marks(version, kind, name, at, until, body, sum)
VALUES ((SELECT coalesce(max(version), 0) + 1 FROM marks), ?, ?, ?, ?, ?, ?)
ON CONFLICT(kind, name) DO UPDATE SET version = excluded.version, at = excluded.at, until = excluded.until,
  body = excluded.body, sum = excluded.sum
WHERE NOT ? OR marks.until <= excluded.at
"""


class Mark(NamedTuple):
    """That something holds of `name` until an instant; times are wall-clock seconds.

    `kind` is one of a few words, `body` is JSON for people, `version` is given by the ledger.
    """

    kind: str
    name: str
    at: float
    until: float
    body: bytes = b"{}"
    version: int = 0

    @property
    def sum(self) -> int:
        """The checksum of what is stored."""
        return row_sum((self.kind, self.name, self.at, self.until, self.body))


class PutMark(NamedTuple):
    """A call of `Ledger.put_mark`."""

    mark: Mark
    only_new: bool


def put(connection: sqlite3.Connection, call: PutMark) -> bool:
    """Write a mark within a transaction; see `Ledger.put_mark`."""
    mark = call.mark
    execute = connection.execute
    # The newest stays, whatever it says: the next version is counted from it.
    execute(
        "DELETE FROM marks WHERE until < ? AND version < (SELECT max(version) FROM marks)", (mark.at - FORGET_AFTER_S,)
    )
    return execute(_PUT, (*mark[:5], mark.sum, call.only_new)).rowcount > 0


def page_of_marks(kinds: Sequence[str], sign: str) -> str:
    """Return the statement for a page; its values are the version, the kinds and the limit. `sign` stands for one."""
    among = ", ".join([sign] * len(kinds))
    return (
        f"SELECT {', '.join(COLUMNS)} FROM marks WHERE version > {sign} AND kind IN ({among})"
        f" ORDER BY version LIMIT {sign}"
    )


def to_mark(row: tuple[Any, ...]) -> Mark:
    """Make a mark of a row of `COLUMNS`.

    Raises:
        DataLossError: Its checksum does not fit.
    """
    version, kind, name, at, until, body, stored_sum = row
    mark = Mark(kind, name, at, until, bytes(body), version)
    check_sum(stored_sum, mark.sum, f"the mark {kind}", name)
    return mark
