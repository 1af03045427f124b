"""The statements by which a SQLite ledger writes many rows at once.

Law: one statement for many rows: sqlite3 gives up the interpreter lock at every step of a statement, and to get it
back from a busy event loop takes up to 5 ms each time.
"""

import sqlite3
from typing import Any


class Rows:
    """A statement over many rows, in pieces of a few sizes, so that each text is compiled once."""

    _SIZES = (256, 64, 16, 4, 1)  # At 16 columns the largest has 4,096 variables; SQLite takes 32,766.

    def __init__(self, width: int, text: str) -> None:
        """`text` has `{}` where the rows go."""
        self._width = width
        row = f"({', '.join('?' * width)})"
        self._texts = [(size, text.format(", ".join([row] * size))) for size in self._SIZES]

    def write(self, connection: sqlite3.Connection, values: list[Any]) -> None:
        """Write rows whose values stand one after the other in `values`."""
        at = 0
        for size, text in self._texts:
            span = size * self._width
            while len(values) - at >= span:
                connection.execute(text, values if span == len(values) else values[at : at + span])
                at += span


JOURNAL = Rows(7, "INSERT INTO journal(seq, goal_id, kind, at, step_key, body, sum) VALUES {}")
GOALS = Rows(
    14,
    "INSERT INTO goals(id, type, tenant, principal, parent, accepted_at, deadline_at, headers, idempotency_key,"
    " accepted_seq, sum, status, host, standing_sum) VALUES {}",
)
STANDINGS = Rows(
    9,
    "UPDATE goals SET status = v.column2, host = v.column3, cancel_by = v.column4, finished_seq = v.column5,"
    " finished_at = v.column6, failure = v.column7, answered_by = v.column8, standing_sum = v.column9"
    " FROM (VALUES {}) AS v WHERE goals.id = v.column1",
)
STATES = Rows(
    6,
    "INSERT INTO agent_states(type, key, version, schema, body, sum) VALUES {}"
    " ON CONFLICT DO UPDATE SET version = excluded.version, schema = excluded.schema, body = excluded.body,"
    " sum = excluded.sum",
)
