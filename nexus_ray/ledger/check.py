"""Checks of a whole ledger: every sum, every number, and that each record has those that belong to it.

Law: it finds faults and mends none. What it lets pass was written by Nexus and is all there; that somebody who can
write to the ledger did not forge it is what the audit log proves, not this.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import orjson

from nexus_ray.core.errors import DataLossError
from nexus_ray.ledger.goal import Goal, GoalStatus
from nexus_ray.ledger.marks import to_mark
from nexus_ray.ledger.sum import check_sum, entry_sum, goal_sum, row_sum
from nexus_ray.ledger.tables import COLUMNS, Row

_FAULTS_MAX = 100  # More would only bury the first; the count goes on.
_TOLD_EVERY = 10_000


@dataclass
class Report:
    """What was looked at and what is wrong; `faults` are the first hundred, `faults_count` all."""

    goals: int = 0
    entries: int = 0
    states: int = 0
    faults: list[str] = field(default_factory=list)
    faults_count: int = 0

    @property
    def is_sound(self) -> bool:
        """Tell whether nothing is wrong."""
        return not self.faults_count

    def add(self, fault: str) -> None:
        """Note a fault."""
        self.faults_count += 1
        if len(self.faults) < _FAULTS_MAX:
            self.faults.append(fault)


@dataclass(slots=True)
class _Seen:
    accepted_seq: int
    finished_seq: int | None
    is_over: bool


class Check:
    """Looks at rows as they pass: goals first, then the journal, then states. `finish` says what is missing."""

    def __init__(self, head_seq: int) -> None:
        self.report = Report()
        self._head_seq = head_seq
        self._goals: dict[str, _Seen] = {}
        self._seq = 0

    def passing(
        self, rows: Iterable[tuple[str, Row]], progress: Callable[[Report], None] | None = None
    ) -> Iterator[tuple[str, Row]]:
        """Look at each row and hand it on."""
        report = self.report
        for table, row in rows:
            self.look(table, row)
            if progress is not None and (report.goals + report.entries + report.states) % _TOLD_EVERY == 0:
                progress(report)
            yield table, row

    def look(self, table: str, row: Row) -> None:
        """Look at one row."""
        try:
            if table == "goals":
                self._goal(row)
            elif table == "journal":
                self._entry(row)
            elif table == "agent_states":
                self._state(row)
            elif table == "marks":
                to_mark(row)
        except DataLossError as error:
            self.report.add(error.message)
        except (ValueError, TypeError, AttributeError) as error:
            self.report.add(f"a row of {table} cannot be read ({type(error).__name__}): {str(row[0])[:80]}")

    def finish(self, faults: Iterable[str] = ()) -> Report:
        """Say what is missing, after all rows have passed."""
        for fault in faults:
            self.report.add(fault)
        if self._seq != self._head_seq:
            self.report.add(f"entries {self._seq + 1} to {self._head_seq} of the journal are missing")
        for goal_id, seen in self._goals.items():
            if seen.accepted_seq:
                self.report.add(f"goal {goal_id} has no entry {seen.accepted_seq} that says it was accepted")
            if seen.finished_seq:
                self.report.add(f"goal {goal_id} has no entry {seen.finished_seq} that says how it ended")
        return self.report

    def _goal(self, row: Row) -> None:
        self.report.goals += 1
        of = dict(zip(COLUMNS["goals"], row, strict=True))
        goal = Goal(
            of["id"], of["type"], b"", of["principal"], of["accepted_at"], of["deadline_at"], {},
            of["idempotency_key"], of["parent"], of["tenant"],
        )  # fmt: skip
        is_over = GoalStatus(of["status"]).is_terminal
        self._goals[goal.id] = _Seen(of["accepted_seq"], of["finished_seq"], is_over)
        check_sum(of["sum"], goal_sum(goal, of["headers"]), "goal", goal.id)
        standing = (of["status"], of["host"], of["cancel_by"], of["finished_at"], of["failure"], of["answered_by"])
        check_sum(of["standing_sum"], row_sum((goal.id, *standing)), "the standing of goal", goal.id)
        orjson.loads(of["headers"])
        if is_over != (of["finished_seq"] is not None):
            self.report.add(f"goal {goal.id} is {of['status']}, and its end says otherwise")

    def _entry(self, row: Row) -> None:
        self.report.entries += 1
        seq, goal_id, kind, at, step_key, body, stored_sum = row
        if seq != self._seq + 1:
            gap = f"entries {self._seq + 1} to {seq - 1} of the journal are missing"
            self.report.add(gap if seq > self._seq + 1 else f"entry {seq} of the journal is there twice")
        self._seq = max(self._seq, seq)
        check_sum(
            stored_sum, entry_sum(goal_id, kind, at, step_key or "", bytes(body)), "entry", f"{seq} of goal {goal_id}"
        )
        seen = self._goals.get(goal_id)
        if seen is None:
            self.report.add(f"entry {seq} belongs to goal {goal_id}, which is not there")
        elif kind == "accepted" and seq == seen.accepted_seq:
            seen.accepted_seq = 0
        elif kind == "finished" and seq == seen.finished_seq:
            seen.finished_seq = None
        elif kind in ("accepted", "finished"):
            self.report.add(f"goal {goal_id} was {kind} once more by entry {seq}")

    def _state(self, row: Row) -> None:
        self.report.states += 1
        type_, key, version, schema, body, stored_sum = row
        check_sum(
            stored_sum, row_sum((type_, key, version, schema, bytes(body))), "the state of agent", f"{type_}/{key}"
        )
        if version < 1 or schema < 1:
            self.report.add(f"the state of agent {type_}/{key} has version {version} of schema {schema}")
