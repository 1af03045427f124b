"""What a ledger holds, for `nexus ledger status`; and the SQLite one looked at beside the fleet that writes it.

Law: it reads and changes nothing, a ledger of another schema included, and says no password.
"""

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from nexus_ray.core.errors import NotFoundError
from nexus_ray.ledger.schema import SCHEMA_VERSION, translated


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """What stands where. `schema` is 0 where there is no ledger yet; `goals` are counts by status.

    `lease_holder` is the fleet that has a PostgreSQL ledger, for `lease_s` more seconds unless it renews.
    """

    adapter: str
    place: str
    schema: int
    schema_known: int
    goals: dict[str, int] = field(default_factory=dict)
    entries: int = 0
    agents: int = 0
    fenced: int = 0
    epoch: int = 0
    size_bytes: int = 0
    lease_holder: str = ""
    lease_s: float = 0.0

    @property
    def standing(self) -> str:
        """Return what the schema is to this Nexus: `current`, `older`, `newer` or `missing`."""
        if not self.schema:
            return "missing"
        if self.schema == self.schema_known:
            return "current"
        return "newer" if self.schema > self.schema_known else "older"


COUNTS = (
    "SELECT 'entries', count(*) FROM journal UNION ALL SELECT 'agents', count(*) FROM agent_states"
    " UNION ALL SELECT 'fenced', count(*) FROM fenced"
)
GOAL_COUNTS = "SELECT status, count(*) FROM goals GROUP BY status ORDER BY status"


def sqlite_status(path: Path) -> LedgerStatus:
    """Look at the embedded ledger.

    Raises:
        NotFoundError: There is none.
        DataLossError: It is damaged, or no ledger.
        UnavailableError: It cannot be read now.
    """
    if not path.exists():
        raise NotFoundError(f"there is no ledger at {path}: `nexus up` makes one")
    size_bytes = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
            version, epoch = int(meta["schema_version"]), int(meta["epoch"])
            if version != SCHEMA_VERSION:
                return LedgerStatus("sqlite", str(path), version, SCHEMA_VERSION, epoch=epoch, size_bytes=size_bytes)
            counts = dict(connection.execute(COUNTS).fetchall())
            goals = dict(connection.execute(GOAL_COUNTS).fetchall())
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise translated(error) from None
    return LedgerStatus(
        "sqlite", str(path), version, SCHEMA_VERSION, goals, epoch=epoch, size_bytes=size_bytes, **counts
    )
