"""The statements by which a PostgreSQL ledger is read before a decision and written after it.

Law: what a batch needs is one statement for each table, and all it writes is one statement: it happens under the
ledger's lock or not at all, and two exchanges with the server are a transaction. Numbers in it count from the
batch's own beginning; the statement adds where that is.
"""

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

from nexus_ray.ledger.machine import LedgerMachine, Rows, standing_sum

CHANNEL = "nexus_ledger"
"""Where a commit is notified, with the newest number as the text."""

# Read first: a fence that comes later than this is seen by `fences` when the batch is written.
HEAD = (
    "SELECT w.batch, h.fences, h.lease_holder, ARRAY(SELECT host FROM fenced WHERE host = ANY(%s))"
    " FROM writers w, head h WHERE w.id = %s FOR UPDATE OF w"
)
# Locked in one order by everybody, and before agents and the head, so nobody waits in a circle.
GOALS = (
    "SELECT g.id, g.finished_seq IS NOT NULL, g.status, g.host, g.cancel_by,"
    " EXISTS (SELECT 1 FROM fenced f WHERE f.host = g.host)"
    " FROM goals g WHERE g.id = ANY(%s) ORDER BY g.id FOR NO KEY UPDATE OF g"
)
STEPS = (
    "SELECT j.goal_id, j.step_key FROM unnest(%s::text[], %s::text[]) AS k(goal_id, step_key)"
    " JOIN journal j USING (goal_id, step_key)"
)
AGENTS = (
    "SELECT s.type, s.key, s.version FROM unnest(%s::text[], %s::text[]) AS k(type, key)"
    " JOIN agent_states s USING (type, key) ORDER BY s.type, s.key FOR NO KEY UPDATE OF s"
)
KEYS = (
    "SELECT g.tenant, g.principal, g.idempotency_key, g.id, g.type, j.body"
    " FROM unnest(%s::text[], %s::text[], %s::text[]) AS k(tenant, principal, idempotency_key)"
    " JOIN goals g USING (tenant, principal, idempotency_key) JOIN journal j ON j.seq = g.accepted_seq"
    " WHERE g.idempotency_key <> ''"
)


_NULL = b"\xff\xff\xff\xff"


class Texts(tuple[str | None, ...]):
    """Values of a `text[]`."""


class Blobs(tuple[bytes | None, ...]):
    """Values of a `bytea[]`."""


class Numbers(tuple[int | None, ...]):
    """Values of a `bigint[]`."""


class Floats(tuple[float | None, ...]):
    """Values of a `double precision[]`."""


class _Packer(Dumper):
    """Packs an array as PostgreSQL's binary format has it; psycopg's own way costs many times as much."""

    format = Format.BINARY
    element_oid = 0

    def dump(self, obj: Any) -> Buffer:
        return struct.pack("!iiIii", 1, 1, self.element_oid, len(obj), 1) + self.pack(obj)

    def pack(self, values: Any) -> bytes:
        raise NotImplementedError


class BlobsDumper(_Packer):
    """Packs `Blobs`."""

    oid, element_oid = 1001, 17

    def pack(self, values: Sequence[bytes | None]) -> bytes:
        """Return each with its length before it."""
        return b"".join([_NULL if value is None else len(value).to_bytes(4, "big") + value for value in values])


class TextsDumper(BlobsDumper):
    """Packs `Texts`."""

    oid, element_oid = 1009, 25

    def pack(self, values: Sequence[Any]) -> bytes:
        """Return each with its length before it."""
        return super().pack([None if value is None else value.encode() for value in values])


class NumbersDumper(_Packer):
    """Packs `Numbers`."""

    oid, element_oid = 1016, 20
    _code = "q"

    def pack(self, values: Sequence[Any]) -> bytes:
        """Return each with its length before it.

        Raises:
            struct.error: One does not fit.
        """
        if None in values:
            one = struct.Struct(f"!i{self._code}").pack
            return b"".join([_NULL if value is None else one(8, value) for value in values])
        flat: list[Any] = [8] * (2 * len(values))
        flat[1::2] = values
        return struct.pack(f"!{f'i{self._code}' * len(values)}", *flat)


class FloatsDumper(NumbersDumper):
    """Packs `Floats`."""

    oid, element_oid = 1022, 701
    _code = "d"


DUMPERS = ((Texts, TextsDumper), (Blobs, BlobsDumper), (Numbers, NumbersDumper), (Floats, FloatsDumper))

_Columns = Sequence[tuple[str, type]]

# `+seq` marks a number that counts from the batch's beginning.
_JOURNAL: _Columns = (
    ("+seq", Numbers), ("goal_id", Texts), ("kind", Texts), ("at", Floats), ("step_key", Texts), ("body", Blobs),
    ("sum", Numbers),
)  # fmt: skip
_STANDING: _Columns = (
    ("status", Texts), ("host", Texts), ("cancel_by", Texts), ("+finished_seq", Numbers), ("finished_at", Floats),
    ("failure", Texts), ("answered_by", Texts), ("standing_sum", Numbers),
)  # fmt: skip
_GOAL: _Columns = (
    ("id", Texts), ("type", Texts), ("tenant", Texts), ("principal", Texts), ("parent", Texts),
    ("accepted_at", Floats), ("deadline_at", Floats), ("headers", Texts), ("idempotency_key", Texts),
    ("+accepted_seq", Numbers), ("sum", Numbers), *_STANDING,
)  # fmt: skip
_MOVED: _Columns = (("id", Texts), *_STANDING)
_STATE: _Columns = (
    ("type", Texts), ("key", Texts), ("version", Numbers), ("schema", Numbers), ("body", Blobs), ("sum", Numbers),
)  # fmt: skip
_GOAL_FIELDS = 14  # Of what the machine writes about a new goal; the last three are where it stands.
_SQL_TYPES: dict[Any, str] = {Texts: "text[]", Blobs: "bytea[]", Numbers: "bigint[]", Floats: "double precision[]"}


def _insert(table: str, columns: _Columns) -> str:
    names = [name.removeprefix("+") for name, _ in columns]
    values = [f"h.base + v.{name[1:]}" if name[0] == "+" else f"v.{name}" for name, _ in columns]
    return f"INSERT INTO {table}({', '.join(names)}) SELECT {', '.join(values)} FROM h, {_rows(columns)}"


def _update(table: str, columns: _Columns, keys: int) -> str:
    moved = [f"{name[1:]} = h.base + v.{name[1:]}" if name[0] == "+" else f"{name} = v.{name}"
             for name, _ in columns[keys:]]  # fmt: skip
    where = [f"{table}.{name} = v.{name}" for name, _ in columns[:keys]]
    return f"UPDATE {table} SET {', '.join(moved)} FROM h, {_rows(columns)} WHERE {' AND '.join(where)}"


def _rows(columns: _Columns) -> str:
    types = ", ".join(f"%s::{_SQL_TYPES[kind]}" for _, kind in columns)
    return f"unnest({types}) AS v({', '.join(name.removeprefix('+') for name, _ in columns)})"


@cache
def _text(parts: tuple[str, ...]) -> str:
    # Everything hangs on `h`: if a fence came since `HEAD` was read, or the lease went, nothing is written.
    head = (
        "UPDATE head SET seq = seq + %s WHERE fences = %s AND lease_holder = %s RETURNING seq - %s AS base, seq AS seq"
    )
    batch = "UPDATE writers SET batch = %s, seen_at = now() FROM h WHERE writers.id = %s"
    withs = [f"h AS ({head})", f"w AS ({batch})", *(f"{part} AS ({_PARTS[part]})" for part in parts)]
    return f"WITH {', '.join(withs)} SELECT pg_notify('{CHANNEL}', h.seq::text), h.seq FROM h"


_PARTS = {
    "written": _insert("journal", _JOURNAL),
    "accepted": _insert("goals", _GOAL),
    "moved": _update("goals", _MOVED, 1),
    "begun": _insert("agent_states", _STATE),
    "changed": _update("agent_states", _STATE, 2),
}


def writing(
    machine: LedgerMachine, rows: Rows, known: set[tuple[str, str]], fences: int, cluster: str, writer: str, batch: int
) -> tuple[str, list[Any]]:
    """Return the statement that writes a batch, and its values. `known` are the agents that had a state before.

    The state of an agent that had none is inserted and not merged, so that two firsts collide.
    """
    tables: dict[str, tuple[_Columns, list[tuple[Any, ...]]]] = {}
    if rows.journal:
        tables["written"] = _JOURNAL, _cut(rows.journal, len(_JOURNAL))
    accepted = _cut(rows.goals, _GOAL_FIELDS)
    if accepted:
        # As they stand at the end of the batch: one statement cannot move what it has just inserted.
        tables["accepted"] = _GOAL, [(*row[:-3], *_standing(machine, row[0])) for row in accepted]
    new = {row[0] for row in accepted}
    moved = [(goal_id, *_standing(machine, goal_id)) for goal_id in rows.moved if goal_id not in new]
    if moved:
        tables["moved"] = _MOVED, moved
    states = [(*agent, *state) for agent, state in rows.states.items()]
    if begun := [state for state in states if state[:2] not in known]:
        tables["begun"] = _STATE, begun
    if changed := [state for state in states if state[:2] in known]:
        tables["changed"] = _STATE, changed
    values: list[Any] = [machine.seq, fences, cluster, machine.seq, batch, writer]
    for columns, table in tables.values():
        values += (kind(column) for (_, kind), column in zip(columns, zip(*table, strict=True), strict=True))
    return _text(tuple(tables)), values


def _standing(machine: LedgerMachine, goal_id: str) -> tuple[Any, ...]:
    at = machine.standings[goal_id]
    return (at.status, at.host, at.cancel_by, *at.ended, standing_sum(goal_id, at))


def _cut(flat: list[Any], width: int) -> list[tuple[Any, ...]]:
    return list(zip(*[iter(flat)] * width, strict=True))
