"""Connections to the PostgreSQL that holds a ledger: how they are made, that they end in time, and their errors ours.

Law: no wait is without an end, whichever side hangs; a connection on which anything went wrong is not used again; no
password stands in a setting, a message or a log. A server that would acknowledge what it may lose is refused.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from nexus_ray.core.errors import (
    DataLossError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NexusError,
    UnavailableError,
)
from nexus_ray.ledger.limits import LedgerSettings

SCHEMA_VERSION = 2
"""The newest schema that this Nexus knows: the number of the newest file in `migrations/versions`."""
SCHEMA = "nexus"
"""Where the tables are, beside whatever else is in the database."""

_CONNECT_S = 5  # A server on this continent answers in well under one.
_KEEPALIVE = {"keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_TLS = ("require", "verify-ca", "verify-full")

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


def parameters(settings: LedgerSettings, name: str) -> dict[str, Any]:
    """Return what libpq is called with. `name` is what the server calls the connection: fencing ends it by that.

    Raises:
        FailedPreconditionError: The password's file cannot be read, or others can; or the way is not safe.
    """
    given: dict[str, Any] = dict(conninfo_to_dict(settings.url))
    host = str(given.get("host") or given.get("hostaddr") or os.environ.get("PGHOST") or "")
    if not all(one.startswith("/") or one in _LOOPBACK for one in filter(None, host.split(","))):
        # Not libpq's default: that takes what it gets, and speaks in clear with whoever answers.
        given.setdefault("sslmode", os.environ.get("PGSSLMODE") or "verify-full")
        if given["sslmode"] not in _TLS:
            raise FailedPreconditionError(
                f"refusing to speak to the ledger at {host} with sslmode={given['sslmode']}: leave it at verify-full "
                "(with sslrootcert=FILE), or write sslmode=require"
            )
    if settings.password_file is not None:
        given["password"] = _password(settings)
    milliseconds = round(settings.answer_s_max * 1000)
    # Every statement is keyed, so there is always an index; a plan made while a table was young must not ignore it.
    options = (
        f"{given.get('options', '')} -c search_path={SCHEMA} -c statement_timeout={milliseconds}"
        f" -c lock_timeout={milliseconds // 2} -c enable_seqscan=off -c jit=off"
        f" -c idle_in_transaction_session_timeout={round(settings.stall_s_max * 1000)}"
    )
    given.setdefault("target_session_attrs", "read-write")
    return {
        **_KEEPALIVE, "connect_timeout": _CONNECT_S, "tcp_user_timeout": milliseconds, **given,
        "application_name": name, "options": options.strip(), "client_encoding": "utf8",
    }  # fmt: skip


def _password(settings: LedgerSettings) -> str:
    path = settings.password_file
    assert path is not None
    try:
        if path.stat().st_mode & 0o077:
            raise FailedPreconditionError(f"others can read the password in {path}: chmod 600 {path}")
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", "") or "it is not text"
        raise FailedPreconditionError(f"ledger.password_file {path} cannot be read: {why}") from None


@contextlib.contextmanager
def bounded(connection: Connection, limit_s: float) -> Iterator[None]:
    """Hang up after a time, so that whatever waits for the server's answer fails at once.

    Not by cancelling: psycopg would then wait for the server to confirm it.
    """
    timer = asyncio.get_running_loop().call_later(limit_s, hang_up, connection)
    try:
        yield
    finally:
        timer.cancel()


def hang_up(connection: Connection) -> None:
    """End a connection on this side, whatever the other side does."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)


async def connect(settings: LedgerSettings, name: str) -> Connection:
    """Open a connection to a ledger that can be trusted.

    Raises:
        FailedPreconditionError: It cannot be had until somebody changes something; the message says what.
        UnavailableError: It cannot be had now.
    """
    given = parameters(settings, name)
    try:
        # Any text of a statement is prepared at once: there are some tens of them, used millions of times.
        connection = await psycopg.AsyncConnection.connect(**given, autocommit=True, prepare_threshold=0)
    except psycopg.Error as error:
        raise refused(error, settings) from None
    try:
        with bounded(connection, settings.answer_s_max):
            await _check_server(connection)
    except psycopg.Error as error:
        hang_up(connection)
        await connection.close()
        raise translated(error) from None
    except BaseException:
        hang_up(connection)
        await connection.close()
        raise
    return connection


async def _check_server(connection: Connection) -> None:
    names = ("fsync", "full_page_writes", "synchronous_commit")
    cursor = await connection.execute(
        f"SELECT {', '.join(f'current_setting({name!r})' for name in names)},"
        f" to_regclass('{SCHEMA}.alembic_version') IS NOT NULL"
    )
    row = await cursor.fetchone()
    assert row is not None
    *values, is_made = row
    off = [name for name, value in zip(names, values, strict=True) if value == "off"]
    if off:
        raise FailedPreconditionError(
            f"PostgreSQL runs with {off[0]}=off and would lose in a power cut what it has acknowledged: set it on"
        )
    version = 0
    if is_made:
        row = await (await connection.execute("SELECT max(version_num) FROM alembic_version")).fetchone()
        version = int(row[0] or 0) if row is not None else 0
    check_version(version)


def check_version(version: int) -> None:
    """Refuse a ledger of another schema.

    Raises:
        FailedPreconditionError: With what to do about it.
    """
    if version > SCHEMA_VERSION:
        raise FailedPreconditionError(
            f"the ledger was written by a newer Nexus: schema {version}; this one knows {SCHEMA_VERSION}"
        )
    if version < SCHEMA_VERSION:
        what = f"is of schema {version}, and this Nexus wants {SCHEMA_VERSION}" if version else "is not there yet"
        raise FailedPreconditionError(f"the ledger {what}: run `nexus ledger migrate`")


def refused(error: psycopg.Error, settings: LedgerSettings) -> NexusError:
    """Return our error for a connection that was not had."""
    # The server's own words: libpq does not pass its code on. They name user and database, never the password.
    words = (str(error).strip() or type(error).__name__).splitlines()[0].removeprefix("connection failed: ")
    pgconn = error.pgconn
    if pgconn is not None and (pgconn.needs_password or pgconn.used_password) and not _is_passing(words):
        hint = "check the user in ledger.url, and the password in ledger.password_file or PGPASSFILE"
        return FailedPreconditionError(f"PostgreSQL did not let us in ({words}): {hint}")
    if "does not exist" in words:
        return FailedPreconditionError(f"PostgreSQL refused ({words}): make it, then run `nexus ledger migrate`")
    return UnavailableError(f"the ledger's PostgreSQL cannot be reached ({words})")


def _is_passing(words: str) -> bool:
    return any(word in words for word in ("starting up", "shutting down", "recovery", "too many"))


def is_bad_argument(error: BaseException) -> bool:
    """Tell whether the fault is in a value that was to be stored, such as a number that is too large."""
    return isinstance(error, ValueError | OverflowError | TypeError | struct.error | psycopg.DataError)


def is_passing(error: BaseException) -> bool:
    """Tell whether the same call may do better at once: it collided with another, or the server went away."""
    if isinstance(error, UnavailableError):
        return not error.details.get("is_final")
    state = getattr(error, "sqlstate", None)
    # Unique: another committed the same key meanwhile. 40: deadlock, serialization. 55P03, 57014: a lock, a timeout.
    if not state:
        return isinstance(error, psycopg.OperationalError)  # The connection went away.
    return state[:2] in ("08", "40", "57") or state in ("23505", "55P03", "25P03", "25P02")


def translated(error: BaseException) -> NexusError:
    """Return our error for one of PostgreSQL's or of the conversion to its types."""
    if isinstance(error, NexusError):
        return error
    name = type(error).__name__
    state = str(getattr(error, "sqlstate", None) or "")
    if is_bad_argument(error):
        return InvalidArgumentError("the ledger cannot store this call; nothing of it was kept", error_type=name)
    if not isinstance(error, psycopg.Error):
        return InternalError("the ledger failed", error_type=name)
    if state == "53100":
        return UnavailableError("the ledger's disk is full; nothing of this call was kept", sqlstate=state)
    if state in ("XX001", "XX002"):
        return DataLossError("the ledger's database is damaged", sqlstate=state)
    if state in ("42P01", "3F000", "42501"):
        return FailedPreconditionError(
            f"the ledger's tables are not there, or not for this user ({name}): run `nexus ledger migrate`"
        )
    return UnavailableError(f"the ledger's PostgreSQL failed ({name}); the call may be repeated", sqlstate=state)


class Links:
    """A few connections, made when they are wanted and kept while they work; used from one event loop only."""

    def __init__(self, settings: LedgerSettings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._idle: list[Connection] = []
        self._turns = asyncio.Semaphore(settings.connections_max)
        self._wanting = 0
        self._is_closed = False

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """Lend a connection.

        Raises:
            UnavailableError: None can be had, or too many want one.
        """
        settings = self._settings
        if self._wanting >= settings.queue_reads_max:
            raise UnavailableError("too many calls wait for the ledger", retry_after_s=settings.retry_after_s)
        self._wanting += 1
        try:
            async with self._turns:
                connection = self._idle.pop() if self._idle else await connect(settings, self._name)
                try:
                    with bounded(connection, settings.answer_s_max):
                        yield connection
                except BaseException:
                    hang_up(connection)
                    await connection.close()
                    raise
                if self._is_closed:
                    await connection.close()
                else:
                    self._idle.append(connection)
        finally:
            self._wanting -= 1

    async def close(self) -> None:
        """Close them; those in use when they are given back."""
        self._is_closed = True
        while self._idle:
            await self._idle.pop().close()
