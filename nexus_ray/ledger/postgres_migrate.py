"""The schema of a PostgreSQL ledger from outside: brought up to what this Nexus knows, and looked at.

Law: a migration is one transaction under a lock, so it may be run twice, by two at once, and killed; it never takes
anything back. What was written by a newer Nexus is left alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config

from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.postgres_link import SCHEMA, SCHEMA_VERSION, check_version, parameters, refused, translated
from nexus_ray.ledger.status import COUNTS, GOAL_COUNTS, LedgerStatus

_LOCK = 0x4E585259  # Any number that nobody else takes for an advisory lock.
_WAIT_S = 60  # For another migration, or for fleets that use the tables; a long table takes its time beyond that.


def migrate(settings: LedgerSettings) -> tuple[int, int]:
    """Bring the database to this Nexus's schema; return the version before, 0 for none, and after.

    Raises:
        FailedPreconditionError: A newer Nexus wrote it, or the database does not let us; the message says which.
        UnavailableError: It cannot be reached now.
    """
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: _connect(settings), poolclass=sqlalchemy.NullPool
    )
    config = Config()
    config.set_main_option("script_location", "nexus_ray.ledger:migrations")
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            before = _version(lambda text: connection.exec_driver_sql(text).scalar())
            if before >= SCHEMA_VERSION:
                check_version(before)
                return before, before
            # Asked first: to make it takes a right that whoever prepared the database may have kept.
            if connection.exec_driver_sql(f"SELECT to_regnamespace('{SCHEMA}')").scalar() is None:
                connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except sqlalchemy.exc.DBAPIError as error:
        raise translated(error.orig or error) from None
    return before, SCHEMA_VERSION


def postgres_status(settings: LedgerSettings) -> LedgerStatus:
    """Look at a PostgreSQL ledger, whoever uses it.

    Raises:
        FailedPreconditionError: The database does not let us.
        UnavailableError: It cannot be reached now.
    """
    parts = urlsplit(settings.url)
    place = f"postgresql://{parts.netloc}{parts.path}"  # The rest is how to get there.
    with opened(settings) as connection:

        def scalar(text: str) -> Any:
            row = connection.execute(text).fetchone()
            return row[0] if row is not None else None

        version = _version(scalar)
        if version != SCHEMA_VERSION:
            return LedgerStatus("postgresql", place, version, SCHEMA_VERSION)
        head = connection.execute(
            "SELECT epoch, lease_holder, extract(epoch FROM greatest(lease_until, now()) - now())::float8 FROM head"
        ).fetchone()
        assert head is not None
        epoch, holder, lease_s = head
        tables = "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c WHERE c.relkind = 'r'"
        return LedgerStatus(
            "postgresql", place, version, SCHEMA_VERSION, dict(connection.execute(GOAL_COUNTS).fetchall()),
            **dict(connection.execute(COUNTS).fetchall()), epoch=epoch,
            size_bytes=int(scalar(f"{tables} AND c.relnamespace = '{SCHEMA}'::regnamespace")),
            lease_holder=holder if lease_s else "", lease_s=lease_s,
        )  # fmt: skip


def _version(scalar: Any) -> int:
    if scalar(f"SELECT to_regclass('{SCHEMA}.alembic_version')") is None:
        return 0
    return int(scalar(f"SELECT max(version_num) FROM {SCHEMA}.alembic_version") or 0)


def _connect(settings: LedgerSettings) -> psycopg.Connection[tuple[Any, ...]]:
    given = parameters(settings, "nexus ledger")
    given["options"] += f" -c statement_timeout=0 -c lock_timeout={_WAIT_S * 1000}"
    given["options"] += " -c idle_in_transaction_session_timeout=0"
    try:
        return psycopg.connect(**given)
    except psycopg.Error as error:
        raise refused(error, settings) from None


@contextmanager
def opened(settings: LedgerSettings) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Connect for as long as the block lasts, with no bound to how long a statement takes."""
    try:
        with _connect(settings) as connection:
            yield connection
    except psycopg.Error as error:
        raise translated(error) from None
