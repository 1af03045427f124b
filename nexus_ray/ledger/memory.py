"""The in-memory twin of the ledger: the same promises but durability, for tests and the simulator.

Law: it passes the contract suite of the real ledgers, and is so plain that it can be read as their specification.
Every call is carried out without an await in between, so calls are transactions and keep their order by themselves.
"""

from collections.abc import Sequence
from dataclasses import replace

from nexus_ray.agents.task import AgentState
from nexus_ray.core.errors import AlreadyExistsError, FencedError, UnavailableError
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.bell import Bell
from nexus_ray.ledger.entry import (
    accepted_body,
    cancel_requested_body,
    claimed_body,
    finished_body,
    released_body,
)
from nexus_ray.ledger.goal import (
    Claim,
    Entry,
    EntryKind,
    Finish,
    Goal,
    GoalQuery,
    GoalRecord,
    GoalStatus,
    Note,
    Release,
    RequestCancel,
    Step,
    Write,
)
from nexus_ray.ledger.limits import LedgerSettings, check_goals, check_writes
from nexus_ray.ledger.marks import Mark
from nexus_ray.ledger.ports import Acceptance, answer_key


class MemoryLedger:
    """A ledger that forgets everything when the process ends; used from one event loop."""

    def __init__(self, settings: LedgerSettings | None = None) -> None:
        self._settings = settings or LedgerSettings()
        self._records: dict[str, GoalRecord] = {}
        self._keys: dict[tuple[str, str, str], str] = {}
        self._entries: list[Entry] = []
        self._steps: dict[tuple[str, str], Entry] = {}
        self._states: dict[AgentId, AgentState] = {}
        self._fenced: set[str] = set()
        self._marks: dict[tuple[str, str], Mark] = {}
        self._marks_version = 0
        self._epoch = 0
        self._is_closed = False
        self._bell = Bell(self._settings.waiters_max, self._settings.retry_after_s)

    async def accept(self, goals: Sequence[Goal], holder: str = "") -> list[Acceptance]:
        """Accept goals; see `Ledger.accept`."""
        check_goals(goals, self._settings)
        self._check(holder)
        new: dict[str, Goal] = {}
        keys: dict[tuple[str, str, str], str] = {}
        answers: list[Acceptance] = []
        for goal in goals:
            key = (goal.tenant, goal.principal, goal.idempotency_key)
            if goal.id in self._records or goal.id in new:
                answers.append(Acceptance(goal.id, False))
                continue
            if goal.idempotency_key and (earlier_id := keys.get(key) or self._keys.get(key)):
                earlier = new.get(earlier_id) or self._records[earlier_id].goal
                if (earlier.type, earlier.payload) != (goal.type, goal.payload):
                    raise AlreadyExistsError("the idempotency key was used for another request", goal_id=earlier_id)
                answers.append(Acceptance(earlier_id, False))
                continue
            new[goal.id] = goal
            if goal.idempotency_key:
                keys[key] = goal.id
            answers.append(Acceptance(goal.id, True))
        self._keys.update(keys)
        for goal in new.values():
            self._records[goal.id] = GoalRecord(goal, GoalStatus.ACCEPTED)
            self._tell(goal.id, EntryKind.ACCEPTED, goal.accepted_at, accepted_body(goal))
            if holder:
                self._claim(holder, Claim(goal.id, goal.accepted_at))
        self._bell.ring()
        return answers

    async def append(self, writer: str, writes: Sequence[Write]) -> list[bool]:
        """Carry out writes; see `Ledger.append`."""
        check_writes(writes, self._settings)
        self._check(writer)
        answers = [self._carry_out(writer, write) for write in writes]
        self._bell.ring()
        return answers

    async def goal(self, goal_id: str) -> GoalRecord | None:
        """Return a goal and where it stands, or None."""
        self._check()
        return self._records.get(goal_id)

    async def goals(self, query: GoalQuery) -> list[GoalRecord]:
        """Return a page of goals, newest first."""
        self._check()
        found = [
            record
            for goal_id, record in sorted(self._records.items(), reverse=True)
            if query.status in ("", record.status)
            and query.type in ("", record.goal.type)
            and query.principal in ("", record.goal.principal)
            and query.tenant in ("", record.goal.tenant)
            and query.parent in ("", record.goal.parent)
            and (not query.before or goal_id < query.before)
        ]
        return found[: self._rows(query.limit)]

    async def unfinished(self, after: str, limit: int) -> list[GoalRecord]:
        """Return goals that are not terminal, in the order of their ids."""
        self._check()
        found = [
            record
            for goal_id, record in sorted(self._records.items())
            if goal_id > after and not record.status.is_terminal
        ]
        return found[: self._rows(limit)]

    async def journal(self, goal_id: str, after_seq: int, limit: int) -> list[Entry]:
        """Return a goal's entries above `after_seq`, in order."""
        self._check()
        found = [entry for entry in self._entries if entry.goal_id == goal_id and entry.seq > after_seq]
        return found[: self._rows(limit)]

    async def entry(self, goal_id: str, step_key: str) -> Entry | None:
        """Return what was recorded under a key, or None."""
        self._check()
        return self._steps.get((goal_id, step_key))

    async def questions(self, after_seq: int, limit: int, tenant: str = "") -> list[Entry]:
        """Return what was asked of people and is not answered; see `Ledger.questions`."""
        self._check()
        found = [
            entry
            for entry in self._entries[max(0, after_seq) :]
            if entry.kind is EntryKind.ASKED
            and tenant in ("", self._records[entry.goal_id].goal.tenant)
            and not self._records[entry.goal_id].status.is_terminal
            and (entry.goal_id, answer_key(entry.step_key)) not in self._steps
        ]
        return found[: self._rows(limit)]

    async def changes(self, after_seq: int, wait_s: float, limit: int) -> tuple[int, list[str]]:
        """Return which goals have news; see `Ledger.changes`."""
        self._check()
        if after_seq < 0:
            return len(self._entries), []
        await self._bell.wait(lambda: len(self._entries) > after_seq or self._is_closed, wait_s)
        self._check()
        if len(self._entries) <= after_seq:
            return len(self._entries), []
        # `seq` is the position in the list, counted from 1.
        seen = self._entries[after_seq : after_seq + self._rows(limit)]
        return after_seq + len(seen), list(dict.fromkeys(entry.goal_id for entry in seen))

    async def agent_state(self, agent: AgentId) -> AgentState | None:
        """Return the last committed state of an agent, or None."""
        self._check()
        return self._states.get(agent)

    async def put_mark(self, mark: Mark, only_new: bool = False) -> bool:
        """Write a mark; see `Ledger.put_mark`."""
        self._check()
        stands = self._marks.get((mark.kind, mark.name))
        if only_new and stands is not None and stands.until > mark.at:
            return False
        self._marks_version += 1
        self._marks[mark.kind, mark.name] = mark._replace(version=self._marks_version)
        return True

    async def marks(self, kinds: Sequence[str], after_version: int, limit: int) -> list[Mark]:
        """Return marks that changed, in the order of their versions."""
        self._check()
        found = [mark for mark in self._marks.values() if mark.kind in kinds and mark.version > after_version]
        return sorted(found, key=lambda mark: mark.version)[: self._rows(limit)]

    async def fence(self, host: str) -> None:
        """Refuse every later write of `host`."""
        if not host:
            raise ValueError("the front door cannot be fenced")
        self._check()
        self._fenced.add(host)

    async def next_epoch(self) -> int:
        """Return a number larger than every one before."""
        self._check()
        self._epoch += 1
        return self._epoch

    async def close(self) -> None:
        """Refuse every later call."""
        self._is_closed = True
        self._bell.ring()

    def _check(self, writer: str = "") -> None:
        if self._is_closed:
            raise UnavailableError("the ledger is closed")
        if writer in self._fenced:
            raise FencedError("this host was declared dead and may not write", host=writer)

    def _rows(self, limit: int) -> int:
        return max(0, min(limit, self._settings.read_rows_max))

    def _carry_out(self, writer: str, write: Write) -> bool:
        record = self._records.get(write.goal_id)
        if record is None or record.status.is_terminal:
            return False
        match write:
            case Claim():
                return self._claim(writer, write)
            case Step():
                return self._step(write)
            case Note(goal_id, at, body, kind):
                self._tell(goal_id, kind, at, body)
            case Release(goal_id, at):
                if not writer or record.host != writer:
                    return False
                self._records[goal_id] = replace(record, status=GoalStatus.ACCEPTED, host="")
                self._tell(goal_id, EntryKind.RELEASED, at, released_body(writer))
            case Finish(goal_id, outcome):
                if not writer or record.host != writer:
                    return False
                self._records[goal_id] = replace(record, status=outcome.status, outcome=outcome)
                self._tell(goal_id, EntryKind.FINISHED, outcome.finished_at, finished_body(outcome))
            case RequestCancel(goal_id, at, by):
                if not record.cancel_requested_by:
                    self._records[goal_id] = replace(record, cancel_requested_by=by)
                    self._tell(goal_id, EntryKind.CANCEL_REQUESTED, at, cancel_requested_body(by))
        return True

    def _claim(self, writer: str, claim: Claim) -> bool:
        record = self._records[claim.goal_id]
        if not writer or (record.host not in ("", writer) and record.host not in self._fenced):
            return False
        if record.host != writer:
            self._records[claim.goal_id] = replace(record, status=GoalStatus.RUNNING, host=writer)
            self._tell(claim.goal_id, EntryKind.CLAIMED, claim.at, claimed_body(writer))
        return True

    def _step(self, step: Step) -> bool:
        if (step.goal_id, step.step_key) in self._steps:
            return False
        if step.state is not None:
            stored = self._states.get(step.state.agent)
            if step.state.version != (stored.version if stored else 0) + 1:
                return False
            self._states[step.state.agent] = step.state
        self._tell(step.goal_id, step.kind, step.at, step.body, step.step_key)
        self._steps[step.goal_id, step.step_key] = self._entries[-1]
        return True

    def _tell(self, goal_id: str, kind: EntryKind, at: float, body: bytes, step_key: str = "") -> None:
        self._entries.append(Entry(len(self._entries) + 1, goal_id, kind, at, body, step_key))
