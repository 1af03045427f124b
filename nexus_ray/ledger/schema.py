"""The SQLite ledger's file: its tables, how it is opened, how its rows become records, and its errors ours.

Law: the journal holds every payload and result once; the table of goals is its index, and is what is looked up.
So an `accepted` entry's body is the goal's payload as it came, a `finished` one's the result, and what the port calls
their bodies is made from both when they are read.
"""

import os
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson

from nexus_ray.agents.task import AgentState, Failure
from nexus_ray.core.errors import (
    DataLossError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NexusError,
    NotFoundError,
    UnavailableError,
)
from nexus_ray.core.identity import MAIN_TENANT, AgentId
from nexus_ray.ledger.entry import accepted_body, finished_body
from nexus_ray.ledger.goal import Entry, EntryKind, Goal, GoalQuery, GoalRecord, GoalStatus, Outcome
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.log import Log, read_log
from nexus_ray.ledger.sum import check_sum, entry_sum, goal_sum, row_sum

_APPLICATION_ID = 0x4E585259  # "NXRY": tells our file from any other SQLite file.
SCHEMA_VERSION = 3
_PAGE_BYTES = 4096
# A checkpoint syncs the whole file; at 16 MiB of log it is rare, and the log is still read back in milliseconds.
_LOG_PAGES = 4096

# Goals are WITHOUT ROWID: they are looked up by id only, and so are one tree instead of two. Their columns that grow
# (payload, result) are in the journal, so that an update of a status does not rewrite them.
_TABLES = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('schema_version', 3), ('epoch', 0);
CREATE TABLE journal(
  seq INTEGER PRIMARY KEY AUTOINCREMENT, goal_id TEXT NOT NULL, kind TEXT NOT NULL, at REAL NOT NULL,
  step_key TEXT, body BLOB NOT NULL, sum INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX journal_steps ON journal(goal_id, step_key);
CREATE INDEX journal_questions ON journal(seq) WHERE kind = 'asked';
CREATE TABLE goals(
  id TEXT PRIMARY KEY, type TEXT NOT NULL, principal TEXT NOT NULL, parent TEXT NOT NULL,
  accepted_at REAL NOT NULL, deadline_at REAL NOT NULL, headers TEXT NOT NULL, idempotency_key TEXT NOT NULL,
  accepted_seq INTEGER NOT NULL, sum INTEGER NOT NULL, status TEXT NOT NULL, host TEXT NOT NULL,
  cancel_by TEXT NOT NULL DEFAULT '', finished_seq INTEGER, finished_at REAL, failure TEXT,
  answered_by TEXT NOT NULL DEFAULT '', standing_sum INTEGER NOT NULL, tenant TEXT NOT NULL DEFAULT 'main'
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX goals_idempotency ON goals(tenant, principal, idempotency_key) WHERE idempotency_key != '';
CREATE INDEX goals_tenant ON goals(tenant, id) WHERE tenant <> 'main';
CREATE INDEX goals_unfinished ON goals(id) WHERE finished_seq IS NULL;
CREATE INDEX goals_parent ON goals(parent, id) WHERE parent != '';
CREATE INDEX goals_principal ON goals(principal, id);
CREATE INDEX goals_ended_badly ON goals(status, id)
  WHERE status = 'failed' OR status = 'cancelled' OR status = 'expired';
CREATE TABLE agent_states(
  type TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, schema INTEGER NOT NULL, body BLOB NOT NULL,
  sum INTEGER NOT NULL, PRIMARY KEY (type, key)
) STRICT;
CREATE TABLE fenced(host TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
"""
_MARKS = """
CREATE TABLE marks(
  version INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, at REAL NOT NULL, until REAL NOT NULL,
  body BLOB NOT NULL, sum INTEGER NOT NULL, UNIQUE (kind, name)
) STRICT;
"""
# From schema 2, which knew neither tenants nor marks: what was there belongs to the main tenant.
_UPGRADE = f"""
ALTER TABLE goals ADD COLUMN tenant TEXT NOT NULL DEFAULT 'main';
DROP INDEX goals_idempotency;
CREATE UNIQUE INDEX goals_idempotency ON goals(tenant, principal, idempotency_key) WHERE idempotency_key != '';
CREATE INDEX goals_tenant ON goals(tenant, id) WHERE tenant <> 'main';
{_MARKS}
UPDATE meta SET value = 3 WHERE name = 'schema_version';
"""

RECORD_COLUMNS = (
    "g.id, g.type, a.body, g.principal, g.accepted_at, g.deadline_at, g.headers, g.idempotency_key, g.parent,"
    " g.tenant, g.status, g.host, g.cancel_by, g.finished_at, f.body, g.failure, g.answered_by, g.sum,"
    " g.standing_sum, a.sum, f.sum"
)
ENTRY_COLUMNS = "seq, goal_id, kind, at, body, step_key, sum"
RECORD_TABLES = "goals g LEFT JOIN journal a ON a.seq = g.accepted_seq LEFT JOIN journal f ON f.seq = g.finished_seq"


def page_of_goals(query: GoalQuery, mark: str) -> tuple[str, list[Any]]:
    """Return the statement for a page of records, and its values but for the last, the limit.

    Args:
        query: Which goals; a status that there is not matches none.
        mark: What stands for a value, `?` or `%s`.
    """
    conditions, values = ["true"], []
    if query.status:
        if query.status not in list(GoalStatus):
            conditions.append("false")
        else:
            # Written out, not bound: a partial index is used only for what the planner sees. It is a closed set.
            conditions.append(f"g.status = '{GoalStatus(query.status).value}'")
            if not GoalStatus(query.status).is_terminal:
                conditions.append("g.finished_seq IS NULL")
    if query.tenant and query.tenant != MAIN_TENANT:
        conditions.append("g.tenant <> 'main'")
    if query.parent:
        conditions.append("g.parent <> ''")
    # There is no index by type: of a few types each is frequent, so a walk from the newest soon fills a page.
    for column in ("type", "principal", "parent", "tenant"):
        if value := getattr(query, column):
            conditions.append(f"g.{column} = {mark}")
            values.append(value)
    if query.before:
        conditions.append(f"g.id < {mark}")
        values.append(query.before)
    where = " AND ".join(conditions)
    return f"SELECT {RECORD_COLUMNS} FROM {RECORD_TABLES} WHERE {where} ORDER BY g.id DESC LIMIT {mark}", values


def open_writer(path: Path, settings: LedgerSettings) -> sqlite3.Connection:
    """Open the ledger's file for writing; make it, readable by its owner alone, where there is none.

    Raises:
        NotFoundError: The folder does not exist.
        DataLossError: The file is not a ledger, or is damaged.
        FailedPreconditionError: A newer Nexus wrote it.
        UnavailableError: It cannot be opened.
    """
    try:
        # SQLite gives its log and its shared memory the mode of the file, so it must be right before the first write.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
        sync_folder(path.parent)
        log = read_log(path)
    except FileNotFoundError as error:
        raise NotFoundError("the ledger's folder does not exist", path=str(path)) from error
    except OSError as error:
        raise UnavailableError(f"the ledger cannot be opened: {error.strerror}", path=str(path)) from error
    try:
        connection = sqlite3.connect(
            path, timeout=settings.busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            _check_log(connection, log, path)
            _prepare(connection, settings, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise translated(error) from error
    return connection


def open_reader(path: Path, settings: LedgerSettings) -> sqlite3.Connection:
    """Open the ledger's file for reading, beside its writer.

    Raises:
        UnavailableError: It cannot be opened.
    """
    try:
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=settings.busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
    except sqlite3.Error as error:
        raise translated(error) from error


def _check_log(connection: sqlite3.Connection, log: Log, path: Path) -> None:
    """Refuse a log of which SQLite drops what was acknowledged; it has read the log by now, and changed nothing."""
    if not log.commits:
        return
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    frames = _frames_taken(path)
    if lost := log.lost_after(frames):
        raise DataLossError(
            f"the ledger's log is damaged after frame {frames}: {lost} acknowledged transactions would be lost. Keep "
            f"{path}* as they are, and restore a backup into another folder: `nexus ledger restore`",
            path=str(path), frames=frames, lost=lost,
        )  # fmt: skip


def _frames_taken(path: Path) -> int:
    """Return how many frames of the log SQLite holds good, which the index beside it says (mxFrame, at byte 16)."""
    with path.with_name(f"{path.name}-shm").open("rb") as file:
        return int.from_bytes(file.read(20)[16:20], sys.byteorder)


def _prepare(connection: sqlite3.Connection, settings: LedgerSettings, path: Path) -> None:
    connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id != _APPLICATION_ID and (application_id or tables):
        raise DataLossError("the file is a database, but not a ledger", path=str(path))
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {4 * _LOG_PAGES * _PAGE_BYTES}")
    connection.execute(f"PRAGMA max_page_count = {settings.file_bytes_max // _PAGE_BYTES}")
    if not tables:
        # In one transaction: a crash leaves either no ledger or a whole one.
        script = f"{_TABLES} {_MARKS} PRAGMA application_id = {_APPLICATION_ID};"
        connection.executescript(f"BEGIN IMMEDIATE; {script} COMMIT;")
    (version,) = connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()
    if version == 2:
        connection.executescript(f"BEGIN IMMEDIATE; {_UPGRADE} COMMIT;")
    elif version != SCHEMA_VERSION:
        raise FailedPreconditionError(
            f"the ledger {path} was written by another version of Nexus (its schema is {version}, this one's "
            f"{SCHEMA_VERSION}): use that version, or another state folder (NEXUS_STATE_DIR)", schema_version=version,
        )  # fmt: skip


def sync_folder(folder: Path) -> None:
    """Have the kernel put on disk which files a folder holds."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def translated(error: Exception) -> NexusError:
    """Return our error for one of SQLite's or of the conversion to its types."""
    if isinstance(error, NexusError):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    name = str(getattr(error, "sqlite_errorname", type(error).__name__))
    if code == sqlite3.SQLITE_FULL:
        return UnavailableError("the ledger's disk or file is full; nothing of this call was kept", sqlite=name)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DataLossError("the ledger's file is damaged or not a ledger", sqlite=name)
    if is_bad_argument(error):
        return InvalidArgumentError("the ledger cannot store this call; nothing of it was kept", error_type=name)
    if isinstance(error, sqlite3.Error):
        return UnavailableError(f"the ledger failed ({name}); nothing of this call was kept", sqlite=name)
    return InternalError("the ledger failed; nothing of this call was kept", error_type=name)


def is_bad_argument(error: Exception) -> bool:
    """Tell whether the fault is in a value that was to be stored, such as text that is not Unicode, or NaN."""
    return isinstance(
        error,
        (ValueError, OverflowError, TypeError, sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError),
    )


RowT = TypeVar("RowT")


def read_rows(rows: Sequence[tuple[Any, ...]], read: Callable[[tuple[Any, ...]], RowT]) -> list[RowT]:
    """Make records from rows.

    Raises:
        DataLossError: One of them cannot be read back.
    """
    try:
        return [read(row) for row in rows]
    except DataLossError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise DataLossError("a record of the ledger cannot be read back", error_type=type(error).__name__) from error


def to_record(row: tuple[Any, ...]) -> GoalRecord:
    """Make a record from a row of `RECORD_COLUMNS`.

    Raises:
        DataLossError: A checksum does not fit.
    """
    (id_, type_, payload, principal, accepted_at, deadline_at, headers, key, parent, tenant, *standing) = row
    status, host, cancel_by, finished_at, result, failure, answered_by, *sums = standing
    if payload is None:
        raise ValueError("the goal's entry is not in the journal")
    given = orjson.loads(headers)
    goal = Goal(id_, type_, payload, principal, accepted_at, deadline_at, given, key, parent, tenant)
    outcome = None
    stored_sum, standing_sum, payload_sum, result_sum = sums
    check_sum(stored_sum, goal_sum(goal, headers), "goal", id_)
    computed = row_sum((id_, status, host, cancel_by, finished_at, failure, answered_by))
    check_sum(standing_sum, computed, "the standing of goal", id_)
    check_sum(payload_sum, entry_sum(id_, "accepted", accepted_at, "", payload), "the payload of goal", id_)
    status = GoalStatus(status)
    if status.is_terminal:
        check_sum(result_sum, entry_sum(id_, "finished", finished_at, "", result), "the result of goal", id_)
        outcome = Outcome(
            status,
            float(finished_at),
            bytes(result),
            None if failure is None else Failure.from_json(orjson.loads(failure)),
            answered_by,
        )
    return GoalRecord(goal, status, host, outcome, cancel_by)


def to_entry(row: tuple[Any, ...]) -> Entry:
    """Make an entry from a row of `ENTRY_COLUMNS`.

    Raises:
        DataLossError: Its checksum does not fit.
    """
    seq, goal_id, kind, at, body, step_key, stored_sum = row
    check_sum(stored_sum, entry_sum(goal_id, kind, at, step_key or "", body), "entry", f"{seq} of goal {goal_id}")
    return Entry(seq, goal_id, EntryKind(kind), at, body, step_key or "")


def to_state(agent: AgentId, row: tuple[Any, ...]) -> AgentState:
    """Make an agent's state from a row of `version, schema, body, sum`.

    Raises:
        DataLossError: Its checksum does not fit.
    """
    version, schema, body, stored_sum = row
    check_sum(stored_sum, row_sum((*agent, version, schema, body)), "the state of agent", str(agent))
    return AgentState(agent, version, body, schema)


def with_body(entry: Entry, record: GoalRecord) -> Entry:
    """Return an entry as the port tells it; see the law above."""
    if entry.kind is EntryKind.ACCEPTED:
        body = accepted_body(record.goal)
    elif entry.kind is EntryKind.FINISHED and record.outcome is not None:
        body = finished_body(record.outcome)
    else:
        return entry
    return Entry(entry.seq, entry.goal_id, entry.kind, entry.at, body)
