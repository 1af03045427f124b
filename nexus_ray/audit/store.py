"""The audit log in a database: its tables, what is written to them, and what is read and proved from them.

Law: every change is one transaction, under a lock that lets one writer in at a time; numbers, chain and tree go on
from the row `audit_head`, which that lock guards. What a database does differently is a `Database`.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nexus_ray.audit.checkpoint import BadCheckpoint, Checkpoint, open_checkpoint, sign_checkpoint
from nexus_ray.audit.ports import Proof, RecordQuery
from nexus_ray.audit.record import GENESIS, Entry, Kind, Record, seal
from nexus_ray.audit.tree import Peaks, complete_subtrees, consistency_stretches, inclusion_stretches, joined, root_of
from nexus_ray.core.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from nexus_ray.core.ids import digest

_TILE_LEVELS = 8  # Of the tree every eighth level is kept; a proof then reads some hundreds of hashes, a record 1/256.
_TABLES = (
    "CREATE TABLE IF NOT EXISTS audit_head(id {int} PRIMARY KEY, origin {text} NOT NULL, size {int} NOT NULL,"
    " last {blob} NOT NULL, peaks {blob} NOT NULL)",
    "CREATE TABLE IF NOT EXISTS audit_records(seq {int} PRIMARY KEY, operation {text} NOT NULL, kind {text} NOT NULL,"
    " at {real} NOT NULL, retention {text} NOT NULL, action {text} NOT NULL, principal {text} NOT NULL,"
    " tenant {text} NOT NULL, goal {text} NOT NULL, decision {text} NOT NULL, is_open {int} NOT NULL,"
    " hash {blob} NOT NULL, body {blob})",
    "CREATE UNIQUE INDEX IF NOT EXISTS audit_operations ON audit_records(operation, kind)",
    "CREATE INDEX IF NOT EXISTS audit_goals ON audit_records(goal) WHERE goal <> ''",
    "CREATE INDEX IF NOT EXISTS audit_open ON audit_records(seq) WHERE is_open = 1",
    "CREATE TABLE IF NOT EXISTS audit_nodes(level {int} NOT NULL, position {int} NOT NULL, hash {blob} NOT NULL,"
    " PRIMARY KEY (level, position))",
    "CREATE TABLE IF NOT EXISTS audit_checkpoints(size {int} PRIMARY KEY, text {text} NOT NULL)",
    "CREATE TABLE IF NOT EXISTS audit_holds(name {text} PRIMARY KEY, field {text} NOT NULL, value {text} NOT NULL,"
    " reason {text} NOT NULL, by {text} NOT NULL, at {real} NOT NULL)",
)
_INSERT = f"INSERT INTO audit_records VALUES ({', '.join('?' * 13)})"
_Row = tuple[Any, ...]


class Database(Protocol):
    """A connection, used from one thread. Statements have `?` for values.

    Raises only `UnavailableError`, `FailedPreconditionError`, `DataLossError` and, for a row that is there already,
    `KeyError`.
    """

    types: dict[str, str]

    def writing(self) -> AbstractContextManager[None]:
        """Hold the lock of the one writer; commit, durably, at the end, or undo everything."""
        ...

    def rows(self, statement: str, *values: Any) -> list[_Row]:
        """Return what a statement finds."""
        ...

    def execute(self, statement: str, *values: Any) -> int:
        """Carry out a statement; return how many rows it changed."""
        ...

    def insert(self, statement: str, rows: Sequence[_Row]) -> None:
        """Carry out a statement for each row."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


class AuditStore:
    """Writes and reads; used from one thread."""

    def __init__(self, database: Database, key: Ed25519PrivateKey, checkpoint_records: int) -> None:
        self.database = database
        self._key = key
        self._checkpoint_records = checkpoint_records
        self._origin = ""

    def open(self) -> None:
        """Make the tables where there are none; look whether the log is what was signed last.

        Raises:
            DataLossError: It is not.
            FailedPreconditionError: Another key signed it.
        """
        with self.database.writing():
            for text in _TABLES:
                self.database.execute(text.format(**self.database.types))
            if not self.database.rows("SELECT 1 FROM audit_head"):
                # Of the key and of chance: another log, by whomever, never has the same name.
                origin = f"nexus/audit/{digest(Ed25519PrivateKey.generate().public_key().public_bytes_raw())[:16]}"
                self.database.execute("INSERT INTO audit_head VALUES (1, ?, 0, ?, ?)", origin, GENESIS, b"")
            self._origin = str(self.database.rows("SELECT origin FROM audit_head")[0][0])
            self._check()

    @property
    def origin(self) -> str:
        """The name of this log."""
        return self._origin

    def append(self, entries: Sequence[Entry]) -> list[int]:
        """Write entries, which were checked, in one transaction; return their numbers."""
        try:
            with self.database.writing():
                return self.write(entries)
        except KeyError:  # One of them stands already: somebody repeats a call whose answer was lost.
            with self.database.writing():
                return self._write_new(entries)

    def write(self, entries: Sequence[Entry]) -> list[int]:
        """Write entries that are new, inside a transaction."""
        size, last, peaks = self._head()
        rows: list[_Row] = []
        nodes: list[_Row] = []
        ended: list[_Row] = []
        for seq, entry in enumerate(entries, size):
            record = seal(entry, seq, last)
            last = record.hash
            nodes += [node for node in peaks.add(last) if node[0] % _TILE_LEVELS == 0]
            if entry.kind is Kind.OUTCOME:
                ended.append((entry.operation,))
            rows.append((
                seq, entry.operation, entry.kind.value, entry.at, entry.retention.value, entry.action, entry.principal,
                entry.tenant, entry.goal, entry.decision, int(entry.kind is Kind.INTENT), last, record.body,
            ))  # fmt: skip
        self.database.insert(_INSERT, rows)
        if ended:
            closing = "UPDATE audit_records SET is_open = 0 WHERE operation = ? AND kind = 'intent'"
            self.database.insert(closing, ended)
        if nodes:
            self.database.insert("INSERT INTO audit_nodes VALUES (?, ?, ?)", nodes)
        self.database.execute("UPDATE audit_head SET size = ?, last = ?, peaks = ?", peaks.size, last, peaks.to_bytes())
        if peaks.size // self._checkpoint_records != size // self._checkpoint_records:
            self._sign(peaks)
        return list(range(size, peaks.size))

    def _write_new(self, entries: Sequence[Entry]) -> list[int]:
        known: dict[tuple[str, str], int] = {}
        new: dict[tuple[str, str], Entry] = {}
        for entry in entries:
            name = entry.operation, entry.kind.value
            found = self.database.rows("SELECT seq FROM audit_records WHERE operation = ? AND kind = ?", *name)
            if found:
                known[name] = int(found[0][0])
            else:
                new.setdefault(name, entry)
        known.update(zip(new, self.write(list(new.values())) if new else [], strict=True))
        return [known[entry.operation, entry.kind.value] for entry in entries]

    def checkpoint(self) -> str:
        """Return a signed checkpoint of the whole log."""
        newest = self.database.rows("SELECT size, text FROM audit_checkpoints ORDER BY size DESC LIMIT 1")
        if newest and newest[0][0] == self.database.rows("SELECT size FROM audit_head")[0][0]:
            return str(newest[0][1])
        with self.database.writing():
            return self._sign(self._head()[2])

    def checkpoints(self, after_size: int, limit: int) -> list[str]:
        """Return the checkpoints of more than so many records."""
        text = "SELECT text FROM audit_checkpoints WHERE size > ? ORDER BY size LIMIT ?"
        return [str(found) for (found,) in self.database.rows(text, after_size, limit)]

    def records(self, query: RecordQuery, limit_max: int) -> list[Record]:
        """Return a page of records."""
        conditions = ["seq > ?", "seq < ?"]
        values: list[Any] = [query.after, query.before]
        for column in ("goal", "principal", "action", "decision", "operation"):
            if value := getattr(query, column):
                conditions.append(f"{column} = ?")
                values.append(value)
        if query.goal:
            conditions.append("goal <> ''")  # So that the index of goals serves.
        for word, tenants in (("IN", query.tenants), ("NOT IN", query.tenants_not)):
            if tenants:
                conditions.append(f"tenant {word} ({', '.join('?' * len(tenants))})")
                values += tenants
        if query.is_open:
            conditions.append("is_open = 1")
        text = f"SELECT seq, hash, body FROM audit_records WHERE {' AND '.join(conditions)} ORDER BY seq"
        text += "" if query.is_oldest_first else " DESC"
        found = self.database.rows(f"{text} LIMIT ?", *values, max(0, min(query.limit, limit_max)))
        return [_record(row) for row in found]

    def prove(self, seq: int) -> Proof:
        """Return a record with the proof that it is in the log."""
        found = self.database.rows("SELECT seq, hash, body FROM audit_records WHERE seq = ?", seq)
        if not found:
            raise NotFoundError(f"there is no audit record {seq}")
        # The oldest that covers it: who asks twice gets the same.
        covering = "SELECT size, text FROM audit_checkpoints WHERE size > ? ORDER BY size LIMIT 1"
        if not self.database.rows(covering, seq):
            self.checkpoint()
        size, text = self.database.rows(covering, seq)[0]
        return Proof(_record(found[0]), tuple(self._stretches(inclusion_stretches(seq, size))), text)

    def consistency(self, old_size: int) -> tuple[list[bytes], str]:
        """Return the proof that the log begins with its first `old_size` records, and the checkpoint it leads to."""
        text = self.checkpoint()
        size = open_checkpoint(text, self._origin, self._key.public_key()).size
        try:
            stretches = consistency_stretches(old_size, size)
        except ValueError:
            raise InvalidArgumentError(f"the log has {size} records: give a size from 1 to that") from None
        return self._stretches(stretches), text

    def _head(self) -> tuple[int, bytes, Peaks]:
        size, last, peaks = self.database.rows("SELECT size, last, peaks FROM audit_head")[0]
        try:
            return size, bytes(last), Peaks.from_bytes(size, bytes(peaks))
        except ValueError:
            raise DataLossError("the audit log's head is damaged") from None

    def _sign(self, peaks: Peaks) -> str:
        text = sign_checkpoint(Checkpoint(self._origin, peaks.size, peaks.root()), self._key)
        self.database.execute("INSERT INTO audit_checkpoints VALUES (?, ?) ON CONFLICT DO NOTHING", peaks.size, text)
        return text

    def _check(self) -> None:
        size, last, peaks = self._head()
        (stretch,) = self._stretches([(0, size)])
        newest = self.database.rows("SELECT seq, hash, body FROM audit_records ORDER BY seq DESC LIMIT 1")
        is_whole = stretch == peaks.root() and (newest[0][0] + 1 if newest else 0) == size
        if not is_whole or (newest and bytes(newest[0][1]) != last):
            raise DataLossError("the audit log is not what was written: run `nexus audit verify` on a copy of it")
        signed = self.database.rows("SELECT text FROM audit_checkpoints ORDER BY size DESC LIMIT 1")
        if not signed:
            return
        try:
            checkpoint = open_checkpoint(signed[0][0], self._origin, self._key.public_key())
        except BadCheckpoint as error:
            raise FailedPreconditionError(
                f"the audit log's last checkpoint is not of this key ({error}): bring back the key that signed it, or "
                "put the log away in a safe place, and a new one is begun"
            ) from None
        if checkpoint.size > size or self._stretches([(0, checkpoint.size)]) != [checkpoint.root]:
            raise DataLossError("the audit log is not what was signed: records of it were changed or taken away")

    def _stretches(self, stretches: Sequence[tuple[int, int]]) -> list[bytes]:
        return [joined(self._subtrees(low, high)) for low, high in stretches]

    def _subtrees(self, low: int, high: int) -> Iterator[bytes]:
        for level, position in complete_subtrees(low, high):
            kept = level - level % _TILE_LEVELS
            first, count = position << (level - kept), 1 << (level - kept)
            if kept:
                text = "SELECT hash FROM audit_nodes WHERE level = ? AND position >= ? AND position < ?"
                found = self.database.rows(f"{text} ORDER BY position", kept, first, first + count)
            else:
                text = "SELECT hash FROM audit_records WHERE seq >= ? AND seq < ? ORDER BY seq"
                found = self.database.rows(text, first, first + count)
            if len(found) != count:
                raise DataLossError("the audit log has lost records")
            yield root_of([bytes(hash) for (hash,) in found])


def _record(row: _Row) -> Record:
    seq, hash, body = row
    return Record(int(seq), bytes(hash), None if body is None else bytes(body))
