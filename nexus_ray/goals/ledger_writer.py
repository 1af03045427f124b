"""The one writer of a SQLite ledger: takes a batch of calls, decides each, and commits them in one transaction.

Law: a call is decided in full before anything of it is noted, so a refused call leaves no trace and needs no
savepoint; and nothing is answered before the commit. What the writer remembers between batches (who holds a goal, which
steps stand, who is fenced) is true because it is the only writer, and is thrown away whenever a commit fails.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from nexus_ray.core.errors import AlreadyExistsError, FencedError, NexusError
from nexus_ray.goals.goal import (
    Claim,
    EntryKind,
    Finish,
    Goal,
    GoalStatus,
    Note,
    RequestCancel,
    Step,
    Write,
)
from nexus_ray.goals.ledger import Acceptance
from nexus_ray.goals.ledger_entry import cancel_requested_body, claimed_body
from nexus_ray.goals.ledger_limits import LedgerSettings
from nexus_ray.goals.ledger_rows import GOALS, JOURNAL, STANDINGS, STATES
from nexus_ray.goals.ledger_schema import is_bad_argument, translated


@dataclass(frozen=True, slots=True)
class Accept:
    """A call of `Ledger.accept`."""

    goals: Sequence[Goal]
    holder: str


@dataclass(frozen=True, slots=True)
class Append:
    """A call of `Ledger.append`."""

    writer: str
    writes: Sequence[Write]


@dataclass(frozen=True, slots=True)
class Fence:
    """A call of `Ledger.fence`."""

    host: str


@dataclass(frozen=True, slots=True)
class NextEpoch:
    """A call of `Ledger.next_epoch`."""


Call = Accept | Append | Fence | NextEpoch


@dataclass(slots=True)
class _Standing:
    """Where a goal stands; `ended` is (seq, at, failure, answered_by). A terminal goal's steps are forgotten."""

    is_over: bool
    status: str
    host: str
    cancel_by: str
    steps: set[str]
    ended: tuple[int | None, float | None, str | None, str] = (None, None, None, "")


class LedgerWriter:
    """Decides and commits calls; used from one thread.

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
        self.head_seq = 0
        self.commits = 0
        # What is remembered of committed state, and so only while `_is_fresh`.
        self._is_fresh = False
        self._seq = 0
        self._epoch = 0
        self._fenced: set[str] = set()
        self._standings: dict[str, _Standing] = {}
        self._steps_cached = 0
        self._versions: dict[tuple[str, str], int] = {}
        # What the transaction under way will write.
        self._journal: list[Any] = []
        self._goals: list[Any] = []
        self._moved: dict[str, _Standing] = {}
        self._states: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._keys: dict[tuple[str, str], Goal] = {}

    def load(self) -> None:
        """Read what must be known before the first call."""
        execute = self._connection.execute
        self._forget()
        self._fenced = {host for (host,) in execute("SELECT host FROM fenced")}
        (self._epoch,) = execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        # Not the highest row: a number stays used after its row is gone, so nobody who follows the journal misses one.
        row = execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
        self._seq = self.head_seq = row[0] if row else 0
        self._is_fresh = True

    def commit(self, calls: Sequence[Call]) -> list[Any]:
        """Carry out calls in order in one transaction; for each, its answer or the error to raise."""
        connection = self._connection
        try:
            if not self._is_fresh:
                self.load()
            connection.execute("BEGIN IMMEDIATE")
            answers = [self._decide(call) for call in calls]
            wrote = self._write()
            connection.execute("COMMIT")
        except Exception as error:  # Whatever it is, the transaction must end and every caller be told.
            self._is_fresh = False
            if is_bad_argument(error) and len(calls) > 1:
                # One call holds something that cannot be stored. Each alone, so that it fails without its neighbours.
                self._roll_back()
                return [self.commit([call])[0] for call in calls]
            answers = [translated(error) for _ in calls]
            self._roll_back()
            self._committed("error", 0)
            return answers
        self.head_seq = self._seq
        if wrote:
            self.commits += 1
            self._committed("ok", sum(_weight(call) for call in calls))
        self._trim()
        return answers

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            # SQLite has rolled back by itself, or will when the next BEGIN fails on it; nothing was acknowledged.
            pass
        self._forget()

    def _forget(self) -> None:
        self._standings.clear()
        self._versions.clear()
        self._steps_cached = 0
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._journal, self._goals = [], []
        self._moved, self._states, self._keys = {}, {}, {}

    def _decide(self, call: Call) -> Any:
        try:
            match call:
                case Append(writer, writes):
                    self._check_fenced(writer)
                    return [self._append(writer, write) for write in writes]
                case Accept(goals, holder):
                    self._check_fenced(holder)
                    return self._accept(goals, holder)
                case Fence(host):
                    self._connection.execute("INSERT OR IGNORE INTO fenced VALUES (?)", (host,))
                    self._fenced.add(host)
                case NextEpoch():
                    self._epoch += 1
                    self._connection.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (self._epoch,))
                    return self._epoch
            return None
        except NexusError as error:
            return error

    def _check_fenced(self, writer: str) -> None:
        if writer in self._fenced:
            raise FencedError("this host was declared dead and may not write", host=writer)

    def _accept(self, goals: Sequence[Goal], holder: str) -> list[Acceptance]:
        stand = self._accepted_before(goals)
        keyed = self._keyed_before(goals)
        new: dict[str, Goal] = {}
        answers: list[Acceptance] = []
        for goal in goals:
            key = (goal.principal, goal.idempotency_key)
            if goal.id in stand or goal.id in new:
                answers.append(Acceptance(goal.id, False))
            elif goal.idempotency_key and (earlier := keyed.get(key)):
                if earlier[1:] != (goal.type, goal.payload):
                    raise AlreadyExistsError("the idempotency key was used for another request", goal_id=earlier[0])
                answers.append(Acceptance(earlier[0], False))
            else:
                new[goal.id] = goal
                if goal.idempotency_key:
                    keyed[key] = (goal.id, goal.type, goal.payload)
                answers.append(Acceptance(goal.id, True))
        # Nothing was noted before this line, and nothing is refused after it.
        for goal in new.values():
            self._note_goal(goal, holder)
        return answers

    def _accepted_before(self, goals: Sequence[Goal]) -> set[str]:
        found = {goal.id for goal in goals if goal.id in self._standings}
        ids = [goal.id for goal in goals if goal.id not in found]
        text = "SELECT id FROM goals WHERE id IN (SELECT value FROM json_each(?))"
        found.update(id_ for (id_,) in self._connection.execute(text, (orjson.dumps(ids).decode(),)))
        return found

    def _keyed_before(self, goals: Sequence[Goal]) -> dict[tuple[str, str], tuple[str, str, bytes]]:
        asked = [(goal.principal, goal.idempotency_key) for goal in goals if goal.idempotency_key]
        if not asked:
            return {}
        text = (
            "SELECT g.principal, g.idempotency_key, g.id, g.type, j.body FROM json_each(?) AS k"
            " CROSS JOIN goals g ON g.principal = k.value ->> 0 AND g.idempotency_key = k.value ->> 1"
            " JOIN journal j ON j.seq = g.accepted_seq WHERE g.idempotency_key != ''"
        )
        rows = self._connection.execute(text, (orjson.dumps(asked).decode(),)).fetchall()
        found = {(row[0], row[1]): (row[2], row[3], row[4]) for row in rows}
        for key in asked:
            if key in self._keys:
                goal = self._keys[key]
                found[key] = (goal.id, goal.type, goal.payload)
        return found

    def _note_goal(self, goal: Goal, holder: str) -> None:
        status = GoalStatus.RUNNING if holder else GoalStatus.ACCEPTED
        self._tell(goal.id, EntryKind.ACCEPTED, goal.accepted_at, goal.payload)
        self._goals += (
            goal.id, goal.type, goal.principal, goal.parent, goal.accepted_at, goal.deadline_at,
            orjson.dumps(goal.headers).decode(), goal.idempotency_key, self._seq, status.value, holder,
        )  # fmt: skip
        self._standings[goal.id] = _Standing(False, status.value, holder, "", set())
        if goal.idempotency_key:
            self._keys[goal.principal, goal.idempotency_key] = goal
        if holder:
            self._tell(goal.id, EntryKind.CLAIMED, goal.accepted_at, claimed_body(holder))

    def _append(self, writer: str, write: Write) -> bool:
        goal_id = write.goal_id
        standing = self._standings.get(goal_id) or self._read_standing(goal_id)
        if standing is None or standing.is_over:
            return False
        match write:
            case Step():
                return self._step(standing, write)
            case Note(at=at, body=body, kind=kind):
                self._tell(goal_id, kind, at, body)
                return True
            case Claim(at=at):
                return self._claim(standing, writer, goal_id, at)
            case RequestCancel(at=at, by=by):
                if not standing.cancel_by:
                    standing.cancel_by = by
                    self._moved[goal_id] = standing
                    self._tell(goal_id, EntryKind.CANCEL_REQUESTED, at, cancel_requested_body(by))
                return True
            case Finish():
                return self._finish(standing, writer, write)

    def _step(self, standing: _Standing, step: Step) -> bool:
        steps = standing.steps
        if step.step_key in steps:
            return False
        state = step.state
        if state is not None:
            agent = (state.agent.type, state.agent.key)
            if state.version != self._version(agent) + 1:
                return False
            self._versions[agent] = state.version
            self._states[agent] = (state.version, state.body)
        steps.add(step.step_key)
        self._steps_cached += 1
        self._seq += 1
        self._journal += (self._seq, step.goal_id, "step", step.at, step.step_key, step.body)
        return True

    def _claim(self, standing: _Standing, writer: str, goal_id: str, at: float) -> bool:
        if not writer or (standing.host not in ("", writer) and standing.host not in self._fenced):
            return False
        if standing.host != writer:
            standing.host = writer
            standing.status = GoalStatus.RUNNING.value
            self._moved[goal_id] = standing
            self._tell(goal_id, EntryKind.CLAIMED, at, claimed_body(writer))
        return True

    def _finish(self, standing: _Standing, writer: str, finish: Finish) -> bool:
        if not writer or standing.host != writer:
            return False
        outcome = finish.outcome
        failure = None if outcome.failure is None else orjson.dumps(outcome.failure.to_json()).decode()
        self._tell(finish.goal_id, EntryKind.FINISHED, outcome.finished_at, outcome.result)
        standing.is_over = True
        standing.status = outcome.status.value
        standing.ended = (self._seq, outcome.finished_at, failure, outcome.answered_by)
        self._steps_cached -= len(standing.steps)
        standing.steps = set()
        self._moved[finish.goal_id] = standing
        return True

    def _tell(self, goal_id: str, kind: EntryKind, at: float, body: bytes) -> None:
        self._seq += 1
        self._journal += (self._seq, goal_id, kind.value, at, None, body)

    def _read_standing(self, goal_id: str) -> _Standing | None:
        text = "SELECT finished_seq IS NOT NULL, status, host, cancel_by FROM goals WHERE id = ?"
        row = self._connection.execute(text, (goal_id,)).fetchone()
        if row is None:
            return None
        is_over, status, host, cancel_by = row
        steps: set[str] = set()
        if not is_over:
            # One row, however many steps; see `ledger_rows` on the interpreter lock.
            text = "SELECT json_group_array(step_key) FROM journal WHERE goal_id = ? AND step_key IS NOT NULL"
            steps = set(orjson.loads(self._connection.execute(text, (goal_id,)).fetchone()[0]))
        standing = _Standing(bool(is_over), status, host, cancel_by, steps)
        self._standings[goal_id] = standing
        self._steps_cached += len(steps)
        return standing

    def _version(self, agent: tuple[str, str]) -> int:
        version = self._versions.get(agent)
        if version is None:
            text = "SELECT version FROM agent_states WHERE type = ? AND key = ?"
            row = self._connection.execute(text, agent).fetchone()
            version = self._versions[agent] = row[0] if row else 0
        return version

    def _write(self) -> bool:
        connection = self._connection
        before = connection.total_changes
        if self._journal:
            JOURNAL.write(connection, self._journal)
        if self._goals:
            GOALS.write(connection, self._goals)
        if self._moved:
            moved: list[Any] = []
            for goal_id, at in self._moved.items():
                moved += (goal_id, at.status, at.host, at.cancel_by, *at.ended)
            STANDINGS.write(connection, moved)
        if self._states:
            states: list[Any] = []
            for agent, state in self._states.items():
                states += (*agent, *state)
            STATES.write(connection, states)
        self._start_afresh()
        return connection.total_changes != before

    def _trim(self) -> None:
        """Forget the longest remembered until the limits hold; what is asked for again is read again."""
        settings = self._settings
        standings = self._standings
        while standings and (
            len(standings) > settings.goals_cached_max or self._steps_cached > settings.steps_cached_max
        ):
            self._steps_cached -= len(standings.pop(next(iter(standings))).steps)
        while len(self._versions) > settings.agents_cached_max:
            del self._versions[next(iter(self._versions))]


def _weight(call: Call) -> int:
    match call:
        case Append(_, writes):
            return len(writes)
        case Accept(goals, _):
            return len(goals)
    return 1
