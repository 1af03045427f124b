"""A disk with the ledger's tables: what is on it is durable, what is not is lost with the ledger's process.

Law: it keeps what it is given. It enforces nothing, not even that a key is unique, so that a ledger which forgets to
check is found out.
"""

from collections import defaultdict
from typing import Any

import orjson

from nexus_ray.agents.task import AgentState, Failure
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.entry import accepted_body, finished_body
from nexus_ray.ledger.goal import Entry, EntryKind, Goal, GoalQuery, GoalRecord, GoalStatus, Outcome
from nexus_ray.ledger.machine import LedgerMachine, Needs, Rows, Standing
from nexus_ray.ledger.ports import answer_key


class Disk:
    """The tables, and what can be read of them."""

    def __init__(self) -> None:
        self.journal: list[Entry] = []
        self.entries: defaultdict[str, list[Entry]] = defaultdict(list)
        self.keyed: dict[tuple[str, str], Entry] = {}
        self.goals: dict[str, Goal] = {}
        self.by_key: dict[tuple[str, str, str], str] = {}
        self.standings: dict[str, tuple[bool, str, str, str, Any]] = {}
        self.open: dict[str, None] = {}
        self.states: dict[tuple[str, str], AgentState] = {}
        self.fenced: set[str] = set()
        self.epoch = 0

    @property
    def seq(self) -> int:
        return len(self.journal)

    def write(self, rows: Rows, epoch: int) -> None:
        """Make rows durable, all at once."""
        self.epoch = epoch
        self.fenced.update(rows.fenced)
        first = self.seq + 1
        for at in range(0, len(rows.goals), 14):
            row = rows.goals[at : at + 14]
            # The payload stands in the journal, under the number that the goal's row names.
            self._add_goal(rows.journal[(row[9] - first) * 7 + 5], row)
        for at in range(0, len(rows.journal), 7):
            seq, goal_id, kind, when, step_key, body, _ = rows.journal[at : at + 7]
            assert seq == self.seq + 1, "the journal has a gap"
            entry = Entry(seq, goal_id, EntryKind(kind), when, body, step_key or "")
            self.journal.append(entry)
            self.entries[goal_id].append(entry)
            if step_key:
                self.keyed.setdefault((goal_id, step_key), entry)
        for goal_id, standing in rows.moved.items():
            self.standings[goal_id] = (
                standing.is_over, standing.status, standing.host, standing.cancel_by, standing.ended,
            )  # fmt: skip
            if standing.is_over:
                self.open.pop(goal_id, None)
        for (type_, key), (version, schema, body, _) in rows.states.items():
            self.states[type_, key] = AgentState(AgentId(type_, key), version, body, schema)

    def _add_goal(self, payload: bytes, row: list[Any]) -> None:
        id_, type_, tenant, principal, parent, accepted_at, deadline_at, headers, key, _, _, status, host, _ = row
        self.goals[id_] = Goal(
            id_, type_, payload, principal, accepted_at, deadline_at, orjson.loads(headers), key, parent, tenant
        )
        if key:
            self.by_key.setdefault((tenant, principal, key), id_)
        self.standings[id_] = (False, status, host, "", (None, None, None, ""))
        self.open[id_] = None

    # --- What a ledger loads into its machine.

    def load(self, machine: LedgerMachine, needs: Needs) -> None:
        """Tell a machine what it needs to know."""
        for goal_id in needs.goals:
            stored = self.standings.get(goal_id)
            if stored is not None:
                is_over, status, host, cancel_by, ended = stored
                steps = set() if is_over else {entry.step_key for entry in self.entries[goal_id] if entry.step_key}
                machine.load_standing(goal_id, Standing(is_over, status, host, cancel_by, steps, ended))
        for key in needs.keys:
            goal_id = self.by_key.get(key, "")
            if goal_id:
                goal = self.goals[goal_id]
                machine.keyed[key] = (goal_id, goal.type, goal.payload)
        for agent in needs.agents:
            if agent in self.states:
                machine.versions[agent] = self.states[agent].version

    # --- What can be read.

    def record(self, goal_id: str) -> GoalRecord | None:
        goal = self.goals.get(goal_id)
        if goal is None:
            return None
        is_over, status, host, cancel_by, (seq, at, failure, answered_by) = self.standings[goal_id]
        outcome = None
        if is_over:
            stored = None if failure is None else Failure.from_json(orjson.loads(failure))
            outcome = Outcome(GoalStatus(status), at, self.journal[seq - 1].body, stored, answered_by)
        return GoalRecord(goal, GoalStatus(status), host, outcome, cancel_by)

    def records(self, query: GoalQuery) -> list[GoalRecord]:
        found = []
        for goal_id in sorted(self.goals, reverse=True):
            record = self.record(goal_id)
            assert record is not None
            if (
                query.status in ("", record.status)
                and query.type in ("", record.goal.type)
                and query.principal in ("", record.goal.principal)
                and query.parent in ("", record.goal.parent)
                and (not query.before or goal_id < query.before)
            ):
                found.append(record)
        return found

    def unfinished(self, after: str) -> list[GoalRecord]:
        return [record for goal_id in sorted(self.open) if goal_id > after and (record := self.record(goal_id))]

    def told(self, goal_id: str, after_seq: int) -> list[Entry]:
        return [self._worded(entry) for entry in self.entries.get(goal_id, ()) if entry.seq > after_seq]

    def _worded(self, entry: Entry) -> Entry:
        if entry.kind is EntryKind.ACCEPTED:
            body = accepted_body(self.goals[entry.goal_id])
        elif entry.kind is EntryKind.FINISHED:
            record = self.record(entry.goal_id)
            assert record is not None and record.outcome is not None
            body = finished_body(record.outcome)
        else:
            return entry
        return Entry(entry.seq, entry.goal_id, entry.kind, entry.at, body)

    def questions(self, after_seq: int) -> list[Entry]:
        return [
            entry
            for entry in self.journal[max(0, after_seq) :]
            if entry.kind is EntryKind.ASKED
            and entry.goal_id in self.open
            and (entry.goal_id, answer_key(entry.step_key)) not in self.keyed
        ]
