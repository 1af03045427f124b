"""The audit log in PostgreSQL, which every process of a fleet writes to directly.

Law: an advisory lock, held to the end of each transaction, lets one writer in at a time: numbers have no gaps and
stand in the order of the commits. A connection on which anything went wrong is not used again.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg

from nexus_ray.core.errors import FailedPreconditionError, NexusError, UnavailableError

_LOCK = 0x4E585241  # Any number that nobody else takes for an advisory lock.
_OUTSIDE = ("42501", "3F000")  # No right to, or no such schema: somebody must change something.


class PostgresDatabase:
    """Implements `Database` over a connection of libpq; used from one thread."""

    types = {"int": "bigint", "text": "text", "real": "double precision", "blob": "bytea"}  # noqa: RUF012 - never changed

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        """Connect; `parameters` are libpq's, with the schema in the search path."""
        self._parameters = parameters
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._open()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """See `Database.writing`."""
        with self._translating():
            connection = self._open()
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                yield

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """See `Database.rows`."""
        with self._translating():
            return self._open().execute(_marked(statement), values).fetchall()

    def execute(self, statement: str, *values: Any) -> int:
        """See `Database.execute`."""
        with self._translating():
            return self._open().execute(_marked(statement), values).rowcount

    def insert(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """See `Database.insert`."""
        with self._translating(), self._open().cursor() as cursor:
            cursor.executemany(_marked(statement), rows)

    def close(self) -> None:
        """See `Database.close`."""
        if self._connection is not None:
            self._connection.close()

    def _open(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            with self._translating():
                self._connection = psycopg.connect(**self._parameters, autocommit=True, prepare_threshold=0)
        return self._connection

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except psycopg.errors.UniqueViolation:
            raise KeyError("a row is there already") from None
        except (psycopg.Error, OSError) as error:
            state = getattr(error, "sqlstate", None)
            if state is None and self._connection is not None:
                self._connection.close()
            raise _translated(error, state) from None


def _translated(error: Exception, state: str | None) -> NexusError:
    caused_by = f"{type(error).__name__}: {error}"
    if state in _OUTSIDE:
        return FailedPreconditionError("the ledger's database does not let us keep the audit log", caused_by=caused_by)
    return UnavailableError("the audit log cannot be used now", caused_by=caused_by)


def _marked(statement: str) -> str:
    return re.sub(r"\?", "%s", statement)
