"""The one writer of a SQLite ledger: takes a batch of calls, has each decided, and commits them in one transaction.

Law: nothing is answered before the commit. What its machine remembers between batches (who holds a goal, which steps
stand, who is fenced) is true because it is the only writer, and is thrown away whenever a commit fails.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.machine import Call, LedgerMachine, Needs, Standing, weight
from nexus_ray.ledger.marks import PutMark, put
from nexus_ray.ledger.rows import GOALS, JOURNAL, STANDINGS, STATES
from nexus_ray.ledger.schema import is_bad_argument, translated


class LedgerWriter:
    """Commits calls; used from one thread.

    `head_seq` is the newest committed entry, `commits` counts transactions that wrote something.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        settings: LedgerSettings,
        committed: Callable[[str, int], None],
    ) -> None:
        """`committed(result, writes)` is told of every transaction: `ok` or `error`, and how many calls' writes."""
        self._connection = connection
        self._settings = settings
        self._committed = committed
        self._machine: LedgerMachine | None = None
        self.head_seq = 0
        self.commits = 0

    def load(self) -> LedgerMachine:
        """Read what must be known before the first call."""
        execute = self._connection.execute
        # Not the highest row: a number stays used after its row is gone, so nobody who follows the journal misses one.
        row = execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
        (epoch,) = execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        machine = LedgerMachine(row[0] if row else 0, epoch)
        machine.fenced = {host for (host,) in execute("SELECT host FROM fenced")}
        self.head_seq = machine.seq
        self._machine = machine
        return machine

    def commit(self, calls: Sequence[Call]) -> list[Any]:
        """Carry out calls in order in one transaction; for each, its answer or the error to raise."""
        connection = self._connection
        try:
            machine = self._machine or self.load()
            connection.execute("BEGIN IMMEDIATE")
            epoch = machine.epoch
            self._read(machine, machine.needs(calls))
            answers = [
                put(connection, call) if isinstance(call, PutMark) else machine.decide(call) for call in calls
            ]
            if machine.epoch != epoch:
                connection.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (machine.epoch,))
            wrote = self._write(machine)
            connection.execute("COMMIT")
        except Exception as error:  # Whatever it is, the transaction must end and every caller be told.
            self._roll_back()
            if is_bad_argument(error) and len(calls) > 1:
                # One call holds something that cannot be stored. Each alone, so that it fails without its neighbours.
                return [self.commit([call])[0] for call in calls]
            self._committed("error", 0)
            return [translated(error) for _ in calls]
        self.head_seq = machine.seq
        if wrote:
            self.commits += 1
            self._committed("ok", sum(weight(call) for call in calls))
        self._trim(machine)
        return answers

    def _roll_back(self) -> None:
        self._machine = None
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            # SQLite has rolled back by itself, or will when the next BEGIN fails on it; nothing was acknowledged.
            pass

    def _read(self, machine: LedgerMachine, needs: Needs) -> None:
        # One row each, however much is asked for; see `rows` on the interpreter lock.
        if needs.goals:
            self._read_standings(machine, needs.goals)
        if needs.keys:
            text = (
                "SELECT g.tenant, g.principal, g.idempotency_key, g.id, g.type, j.body FROM json_each(?) AS k"
                " CROSS JOIN goals g ON g.tenant = k.value ->> 0 AND g.principal = k.value ->> 1"
                " AND g.idempotency_key = k.value ->> 2"
                " JOIN journal j ON j.seq = g.accepted_seq WHERE g.idempotency_key != ''"
            )
            for tenant, principal, key, *earlier in self._connection.execute(text, (_json(needs.keys),)).fetchall():
                machine.keyed[tenant, principal, key] = tuple(earlier)
        if needs.agents:
            text = (
                "SELECT s.type, s.key, s.version FROM json_each(?) AS a"
                " CROSS JOIN agent_states s ON s.type = a.value ->> 0 AND s.key = a.value ->> 1"
            )
            for type_, key, version in self._connection.execute(text, (_json(needs.agents),)).fetchall():
                machine.versions[type_, key] = version

    def _read_standings(self, machine: LedgerMachine, goals: set[str]) -> None:
        text = (
            "SELECT g.id, g.finished_seq IS NOT NULL, g.status, g.host, g.cancel_by,"
            " CASE WHEN g.finished_seq IS NULL THEN (SELECT json_group_array(j.step_key) FROM journal j"
            " WHERE j.goal_id = g.id AND j.step_key IS NOT NULL) END"
            " FROM json_each(?) AS k CROSS JOIN goals g ON g.id = k.value"
        )
        for id_, is_over, status, host, cancel_by, steps in self._connection.execute(text, (_json(goals),)).fetchall():
            keys = set(orjson.loads(steps)) if steps else set()
            machine.load_standing(id_, Standing(bool(is_over), status, host, cancel_by, keys))

    def _write(self, machine: LedgerMachine) -> bool:
        connection = self._connection
        before = connection.total_changes
        rows = machine.take_rows()
        if rows.fenced:
            connection.executemany("INSERT OR IGNORE INTO fenced VALUES (?)", [(host,) for host in rows.fenced])
        if rows.journal:
            JOURNAL.write(connection, rows.journal)
        if rows.goals:
            GOALS.write(connection, rows.goals)
        if rows.moved:
            STANDINGS.write(connection, rows.standings())
        if rows.states:
            states: list[Any] = []
            for agent, state in rows.states.items():
                states += (*agent, *state)
            STATES.write(connection, states)
        return connection.total_changes != before

    def _trim(self, machine: LedgerMachine) -> None:
        """Forget the longest remembered until the limits hold; what is asked for again is read again."""
        settings = self._settings
        standings = machine.standings
        while standings and (
            len(standings) > settings.goals_cached_max or machine.steps_known > settings.steps_cached_max
        ):
            machine.steps_known -= len(standings.pop(next(iter(standings))).steps)
        while len(machine.versions) > settings.agents_cached_max:
            del machine.versions[next(iter(machine.versions))]
        machine.keyed.clear()  # They are in the table, with their payloads.


def _json(values: set[Any]) -> str:
    return orjson.dumps(list(values)).decode()
