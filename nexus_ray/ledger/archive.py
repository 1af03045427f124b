"""A ledger in a file, as lines of JSON: what `backup` writes, `restore` reads, and `export` shows.

Law: a backup is checked while it is written and again while it is read; one that is cut short or changed is refused
whole. It is the same whatever ledger it came from, so it is also the way from one kind to another.

First line: `{"nexus_ledger": 2, …}`. Then a line per row, `{"TABLE": {columns}}`, bodies as the JSON text they are.
Last line: `{"end": {"rows": n, "digest": "blake2b-256 of all lines before"}}`.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from nexus_ray.core.errors import AlreadyExistsError, DataLossError, NotFoundError, UnavailableError
from nexus_ray.core.identity import MAIN_TENANT
from nexus_ray.ledger.check import Check, Report
from nexus_ray.ledger.schema import sync_folder
from nexus_ray.ledger.tables import COLUMNS, Row, Tables

_FORMAT = 2
_WITHOUT_TENANTS = 1  # What a backup was before there were tenants: all of it belongs to the main one.
# A ledger that is restored is older than what hosts out there may know: no epoch of theirs may be given out again.
_EPOCHS_SKIPPED = 1 << 20

Progress = Callable[[Report], None]


def verify(tables: Tables, progress: Progress | None = None) -> Report:
    """Look at a whole ledger."""
    check = Check(tables.head()[0])
    for _ in check.passing(_all(tables), progress):
        pass
    return check.finish(tables.faults())


def lines(tables: Tables, check: Check) -> Iterator[bytes]:
    """Return a ledger as the lines of a file.

    Raises:
        DataLossError: A body is not text, so it cannot be told.
    """
    seq, epoch = tables.head()
    rows = 0
    hasher = hashlib.blake2b(digest_size=32)
    first = _line({"nexus_ledger": _FORMAT, "adapter": tables.adapter, "seq": seq, "epoch": epoch})
    hasher.update(first)
    yield first
    for table, row in check.passing(_all(tables)):
        line = _line({table: {name: _told(value) for name, value in zip(COLUMNS[table], row, strict=True)}})
        hasher.update(line)
        rows += 1
        yield line
    yield _line({"end": {"rows": rows, "digest": hasher.hexdigest()}})


def backup(tables: Tables, path: Path, progress: Progress | None = None) -> Report:
    """Write a ledger into a new file of mode 0600, whole and on disk, or not at all.

    Raises:
        AlreadyExistsError: There is a file of that name.
        DataLossError: The ledger is damaged; nothing is left behind.
        UnavailableError: The file cannot be written.
    """
    if path.exists():
        raise AlreadyExistsError(f"there is a file {path} already; a backup is written over nothing")
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    check = Check(tables.head()[0])
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=1 << 20) as file:
            for line in lines(tables, check):
                file.write(line)
                if progress is not None and check.report.entries % 10_000 == 0:
                    progress(check.report)
            file.flush()
            os.fsync(file.fileno())
        report = check.finish(tables.faults())
        if not report.is_sound:
            raise DataLossError(
                f"the ledger is damaged, so it is not backed up: {report.faults[0]}", faults=report.faults
            )
        os.link(draft, path)  # Not `replace`: whoever made a file of that name meanwhile keeps it.
        sync_folder(path.parent)
    except FileExistsError:
        raise AlreadyExistsError(f"there is a file {path} already; a backup is written over nothing") from None
    except OSError as error:
        raise UnavailableError(f"the backup {path} cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)
    return report


def restore(path: Path, tables: Tables, progress: Progress | None = None) -> Report:
    """Write a backup into an empty ledger, all of it or nothing.

    Raises:
        NotFoundError: There is no such file.
        DataLossError: It is no backup, or it is damaged or cut short.
    """
    look_through(path)  # Once in full before anything is written: most faults are then found at no cost.
    first, rows = _read(path)
    check = Check(first["seq"])
    tables.write(_checked(check, rows, progress), first["seq"], first["epoch"] + _EPOCHS_SKIPPED)
    return check.report


def look_through(path: Path, progress: Progress | None = None) -> Report:
    """Check a backup without restoring it.

    Raises:
        NotFoundError: There is no such file.
        DataLossError: It is no backup, or it is damaged or cut short.
    """
    first, rows = _read(path)
    check = Check(first["seq"])
    for _ in _checked(check, rows, progress):
        pass
    return check.report


def _checked(check: Check, rows: Iterator[tuple[str, Row]], progress: Progress | None) -> Iterator[tuple[str, Row]]:
    yield from check.passing(rows, progress)
    report = check.finish()
    if not report.is_sound:
        raise DataLossError(f"the backup is damaged: {report.faults[0]}", faults=report.faults)


def _read(path: Path) -> tuple[dict[str, Any], Iterator[tuple[str, Row]]]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise UnavailableError(f"the backup {path} cannot be read: {error.strerror}") from None
    line = file.readline()
    first = _parsed(line)
    is_known = first.get("nexus_ledger") in (_FORMAT, _WITHOUT_TENANTS)
    if not is_known or not all(isinstance(first.get(name), int) for name in ("seq", "epoch")):
        file.close()
        raise DataLossError(f"{path} is no backup of a ledger that this Nexus can read")
    return first, _rows(file, line, path, first["nexus_ledger"])


def _rows(file: Any, first: bytes, path: Path, form: int) -> Iterator[tuple[str, Row]]:
    hasher = hashlib.blake2b(first, digest_size=32)
    count = 0
    with file:
        for line in file:
            fields = _parsed(line)
            if "end" in fields:
                if fields["end"] != {"rows": count, "digest": hasher.hexdigest()} or file.readline():
                    raise DataLossError(f"the backup {path} was changed: its digest does not fit")
                return
            hasher.update(line)
            count += 1
            (table, row), *others = fields.items() or [("", {})]
            if form == _WITHOUT_TENANTS and table == "goals" and isinstance(row, dict):
                row = {"tenant": MAIN_TENANT, **row}
            if others or table not in COLUMNS or not isinstance(row, dict) or set(row) != set(COLUMNS[table]):
                raise DataLossError(f"line {count + 1} of the backup {path} is not a row of a ledger")
            yield table, tuple(_back(name, row[name]) for name in COLUMNS[table])
    raise DataLossError(f"the backup {path} is cut short after {count} rows")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise DataLossError("a line of the backup is not JSON: it was changed, or is no backup")
    return fields


def _all(tables: Tables) -> Iterable[tuple[str, Row]]:
    for table in COLUMNS:
        for row in tables.rows(table):
            yield table, row


def _told(value: Any) -> Any:
    if not isinstance(value, bytes | memoryview):
        return value
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        raise DataLossError("a body in the ledger is not text; `nexus ledger verify` says which") from None


def _back(name: str, value: Any) -> Any:
    return value.encode() if name == "body" and isinstance(value, str) else value


def _line(fields: dict[str, Any]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
