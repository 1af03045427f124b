"""The audit log's SQLite file: one writer, synced at every commit."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nexus_ray.core.errors import AlreadyExistsError, DataLossError, NexusError, NotFoundError, UnavailableError

_APPLICATION_ID = 0x4E585241  # "NXRA": tells our file from any other SQLite file.


class SqliteDatabase:
    """Implements `Database` over a file of mode 0600; used from one thread."""

    types = {"int": "INTEGER", "text": "TEXT", "real": "REAL", "blob": "BLOB"}  # noqa: RUF012 - never changed

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            AlreadyExistsError: Another process has it open.
            NotFoundError: Its folder does not exist.
            DataLossError: The file is not an audit log.
            UnavailableError: It cannot be opened now.
        """
        self._lock = _locked(path)
        try:
            # SQLite gives its log the mode of the file, so it must be right before the first write.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path, isolation_level=None, cached_statements=64)
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "trusted_schema=OFF"):
                self._connection.execute(f"PRAGMA {pragma}")
            (identity,) = self._connection.execute("PRAGMA application_id").fetchone()
            (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if identity != _APPLICATION_ID:
                if tables:
                    raise DataLossError(f"{path} is not an audit log")
                self._connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        except (sqlite3.Error, OSError) as error:
            os.close(self._lock)
            raise _translated(error) from None
        except NexusError:
            os.close(self._lock)
            raise

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """See `Database.writing`."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise _translated(error) from None
        finally:
            if self._connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """See `Database.rows`."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _translated(error) from None

    def execute(self, statement: str, *values: Any) -> int:
        """See `Database.execute`."""
        return self._connection.execute(statement, values).rowcount

    def insert(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """See `Database.insert`."""
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.IntegrityError:
            raise KeyError("a row is there already") from None

    def close(self) -> None:
        """See `Database.close`."""
        self._connection.close()
        os.close(self._lock)


def _locked(path: Path) -> int:
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        raise NotFoundError(f"there is no folder {path.parent}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise AlreadyExistsError(f"the audit log {path} is open in another process") from None
    return lock


def _translated(error: Exception) -> NexusError:
    damaged = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
    if isinstance(error, sqlite3.DatabaseError) and getattr(error, "sqlite_errorname", "").startswith(damaged):
        return DataLossError("the audit log's file is damaged")
    return UnavailableError("the audit log cannot be used now", caused_by=f"{type(error).__name__}: {error}")
