"""A ledger's tables as rows, for whoever keeps ledgers safe: read as they were at one instant, or written at once.

Law: reading sees one instant, whoever writes meanwhile, and holds nobody up; rows come in the order of their keys.
Writing is one transaction into a ledger that is empty, so a restoration is whole or did not happen.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from nexus_ray.core.errors import AlreadyExistsError, DataLossError, FailedPreconditionError, NexusError, NotFoundError
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.marks import COLUMNS as MARK_COLUMNS
from nexus_ray.ledger.schema import SCHEMA_VERSION, open_writer, translated

COLUMNS: dict[str, tuple[str, ...]] = {
    "goals": (
        "id", "type", "principal", "parent", "accepted_at", "deadline_at", "headers", "idempotency_key",
        "accepted_seq", "sum", "status", "host", "cancel_by", "finished_seq", "finished_at", "failure", "answered_by",
        "standing_sum", "tenant",
    ),
    "journal": ("seq", "goal_id", "kind", "at", "step_key", "body", "sum"),
    "agent_states": ("type", "key", "version", "schema", "body", "sum"),
    "fenced": ("host",),
    "marks": MARK_COLUMNS,
}  # fmt: skip
"""The tables and their columns, the same in every ledger."""
_ORDERS = {"goals": "id", "journal": "seq", "agent_states": "type, key", "fenced": "host", "marks": "version"}
_PAGE_ROWS = 1000

Row = tuple[Any, ...]


class Tables(Protocol):
    """A ledger's rows."""

    adapter: str

    def head(self) -> tuple[int, int]:
        """Return the newest entry's number and the newest epoch."""
        ...

    def rows(self, table: str) -> Iterator[Row]:
        """Return the rows of a table, with the columns of `COLUMNS`, in the order of its key."""
        ...

    def faults(self) -> Iterator[str]:
        """Return what the store itself finds wrong with its files."""
        ...

    def write(self, tables: Iterable[tuple[str, Row]], seq: int, epoch: int) -> None:
        """Write rows into a ledger that is empty, all or none."""
        ...


class SqliteTables:
    """The embedded ledger's. Implements `Tables`."""

    adapter = "sqlite"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def head(self) -> tuple[int, int]:
        """Return the newest entry's number and the newest epoch."""
        row = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
        (epoch,) = self._connection.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        return (row[0] if row else 0), epoch

    def rows(self, table: str) -> Iterator[Row]:
        """Return the rows of a table."""
        yield from self._connection.execute(_select(table))

    def faults(self) -> Iterator[str]:
        """Return what SQLite's own check of the file finds."""
        for (told,) in self._connection.execute("PRAGMA integrity_check(20)"):
            if told != "ok":
                yield f"the file: {told}"

    def write(self, tables: Iterable[tuple[str, Row]], seq: int, epoch: int) -> None:
        """Write rows into an empty ledger."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for table, rows in _pages(tables):
            self._connection.executemany(_insert(table), rows)
        execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (epoch,))
        execute("INSERT OR IGNORE INTO sqlite_sequence(name, seq) VALUES ('journal', 0)")
        execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'journal'", (seq,))
        execute("COMMIT")


class PostgresTables:
    """A PostgreSQL ledger's. Implements `Tables`."""

    adapter = "postgresql"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def head(self) -> tuple[int, int]:
        """Return the newest entry's number and the newest epoch."""
        seq, epoch = self._connection.execute("SELECT seq, epoch FROM head").fetchone()
        return seq, epoch

    def rows(self, table: str) -> Iterator[Row]:
        """Return the rows of a table, fetched page by page."""
        with self._connection.cursor(name=table) as cursor:
            cursor.itersize = _PAGE_ROWS
            cursor.execute(_select(table))
            yield from cursor

    def faults(self) -> Iterator[str]:
        """Return nothing: PostgreSQL checks its pages when it reads them, and every row is read."""
        return iter(())

    def write(self, tables: Iterable[tuple[str, Row]], seq: int, epoch: int) -> None:
        """Write rows into an empty ledger."""
        for table, rows in _pages(tables):
            with self._connection.cursor().copy(f"COPY {table}({', '.join(COLUMNS[table])}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        self._connection.execute("UPDATE head SET seq = %s, epoch = %s", (seq, epoch))
        self._connection.execute("UPDATE head SET marks = (SELECT coalesce(max(version), 0) FROM marks)")
        self._connection.commit()


@contextlib.contextmanager
def reading(settings: LedgerSettings, path: Path) -> Iterator[Tables]:
    """Open a ledger to be read as it is at this instant: the embedded one at `path`, or the one that `url` names.

    Raises:
        NotFoundError: There is none.
        FailedPreconditionError: It has another schema, or cannot be had until somebody changes something.
        DataLossError: It is damaged, or no ledger.
        UnavailableError: It cannot be read now.
    """
    if settings.url:
        with _postgres(settings, "ISOLATION LEVEL REPEATABLE READ READ ONLY") as connection:
            yield PostgresTables(connection)
        return
    if not path.exists():
        raise NotFoundError(f"there is no ledger at {path}")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            connection.execute("BEGIN")
            (version,) = connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()
            if version != SCHEMA_VERSION:
                raise FailedPreconditionError(f"the ledger has schema {version}; this Nexus reads {SCHEMA_VERSION}")
            yield SqliteTables(connection)
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            raise DataLossError(f"{path} is a database, but not a ledger") from None
        raise translated(error) from None
    except sqlite3.Error as error:
        raise translated(error) from None


@contextlib.contextmanager
def writing(settings: LedgerSettings, path: Path) -> Iterator[Tables]:
    """Open an empty ledger to be filled: a new file at `path`, or the migrated and empty one that `url` names.

    Raises:
        AlreadyExistsError: There is a ledger with something in it.
        FailedPreconditionError: It cannot be had until somebody changes something.
        UnavailableError: It cannot be written now.
    """
    if settings.url:
        with _postgres(settings, "READ WRITE") as connection:
            (is_used,) = connection.execute("SELECT seq > 0 OR epoch > 0 FROM head FOR UPDATE").fetchone()
            if is_used:
                raise AlreadyExistsError("the ledger that ledger.url names is not empty: restore into a new database")
            yield PostgresTables(connection)
        return
    if path.exists():
        raise AlreadyExistsError(f"there is a ledger at {path} already: restore into another state folder")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.restoring")
    for leftover in path.parent.glob(f"{draft.name}*"):
        leftover.unlink()
    made = open_writer(draft, settings)
    try:
        yield SqliteTables(made)
        made.close()  # Copies the log into the file, and syncs it.
        draft.rename(path)
    except sqlite3.Error as error:
        raise translated(error) from None
    finally:
        made.close()
        for leftover in path.parent.glob(f"{draft.name}*"):
            leftover.unlink()


@contextlib.contextmanager
def _postgres(settings: LedgerSettings, how: str) -> Iterator[Any]:
    import psycopg

    from nexus_ray.ledger.postgres_link import translated as translated_postgres
    from nexus_ray.ledger.postgres_migrate import opened

    with opened(settings) as connection:
        try:
            connection.execute(f"SET TRANSACTION {how}")
            yield connection
        except NexusError:
            raise
        except psycopg.Error as error:
            raise translated_postgres(error) from None


def _select(table: str) -> str:
    return f"SELECT {', '.join(COLUMNS[table])} FROM {table} ORDER BY {_ORDERS[table]}"


def _insert(table: str) -> str:
    columns = COLUMNS[table]
    return f"INSERT INTO {table}({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


def _pages(tables: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, list[Row]]]:
    page: list[Row] = []
    of = ""
    for table, row in tables:
        if page and (table != of or len(page) >= _PAGE_ROWS):
            yield of, page
            page = []
        of = table
        page.append(row)
    if page:
        yield of, page
