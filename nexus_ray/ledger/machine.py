"""The ledger's decisions, as a machine: calls in, answers and rows to write out; shared by all ledgers that are real.

Law: a call is decided in full before anything of it is noted, so a refused call leaves no trace. The machine knows
what was loaded into it and what it decided since; a ledger loads what `needs` names before it asks for a decision,
and writes `rows` before anybody is told. It does no I/O.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from nexus_ray.core.errors import AlreadyExistsError, FencedError, NexusError
from nexus_ray.ledger.entry import cancel_requested_body, claimed_body, released_body
from nexus_ray.ledger.goal import (
    Claim,
    EntryKind,
    Finish,
    Goal,
    GoalStatus,
    Note,
    Release,
    RequestCancel,
    Step,
    Write,
)
from nexus_ray.ledger.marks import PutMark
from nexus_ray.ledger.ports import Acceptance
from nexus_ray.ledger.sum import entry_sum, goal_sum, row_sum


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


Call = Accept | Append | Fence | NextEpoch | PutMark


def weight(call: Call) -> int:
    """Return how many writes a call is."""
    match call:
        case Append(_, writes):
            return len(writes)
        case Accept(goals, _):
            return len(goals)
    return 1


@dataclass(slots=True)
class Standing:
    """Where a goal stands. `ended` is (seq, at, failure, answered_by); a terminal goal's steps are forgotten.

    `steps` are the keys that stand: all of them, or at least all that the calls to be decided name.
    """

    is_over: bool
    status: str
    host: str
    cancel_by: str
    steps: set[str]
    ended: tuple[int | None, float | None, str | None, str] = (None, None, None, "")


@dataclass(slots=True)
class Needs:
    """What must be loaded before calls can be decided, as far as it is not known yet."""

    goals: set[str] = field(default_factory=set)
    steps: set[tuple[str, str]] = field(default_factory=set)
    keys: set[tuple[str, str, str]] = field(default_factory=set)
    agents: set[tuple[str, str]] = field(default_factory=set)


@dataclass(slots=True)
class Rows:
    """What is to be written, in the columns' order; many rows' values one after the other in a flat list.

    `journal`: seq, goal_id, kind, at, step_key or None, body, sum.
    `goals`: id, type, tenant, principal, parent, accepted_at, deadline_at, headers, idempotency_key, accepted_seq,
    sum, status, host, standing_sum.
    `moved`: goals that stand elsewhere now. `states`: (type, key) to (version, schema, body, sum).
    """

    journal: list[Any] = field(default_factory=list)
    goals: list[Any] = field(default_factory=list)
    moved: dict[str, Standing] = field(default_factory=dict)
    states: dict[tuple[str, str], tuple[int, int, bytes, int]] = field(default_factory=dict)
    fenced: list[str] = field(default_factory=list)

    def standings(self) -> list[Any]:
        """Return `moved` flat: id, status, host, cancel_by, finished_seq, finished_at, failure, answered_by, sum."""
        flat: list[Any] = []
        for goal_id, at in self.moved.items():
            flat += (goal_id, at.status, at.host, at.cancel_by, *at.ended, standing_sum(goal_id, at))
        return flat


def standing_sum(goal_id: str, at: Standing) -> int:
    """Return the sum of what changes in a goal's row."""
    return row_sum((goal_id, at.status, at.host, at.cancel_by, *at.ended[1:]))


class LedgerMachine:
    """Decides calls; `seq` is the newest number given to an entry, `epoch` the newest epoch."""

    def __init__(self, seq: int = 0, epoch: int = 0) -> None:
        self.seq = seq
        self.epoch = epoch
        self.fenced: set[str] = set()
        self.standings: dict[str, Standing] = {}
        self.versions: dict[tuple[str, str], int] = {}
        self.keyed: dict[tuple[str, str, str], tuple[str, str, bytes]] = {}
        """(tenant, principal, idempotency key) to (goal id, type, payload)."""
        self.steps_known = 0
        self.rows = Rows()

    def needs(self, calls: Sequence[Call]) -> Needs:
        """Return what these calls are decided by and is not known here."""
        # Each is looked up by itself: to take all that is known from a set walks through all that is known.
        needs = Needs()
        standings, versions = self.standings, self.versions
        for call in calls:
            match call:
                case Accept(goals):
                    for goal in goals:
                        if goal.id not in standings:
                            needs.goals.add(goal.id)
                        if goal.idempotency_key and (key := _key(goal)) not in self.keyed:
                            needs.keys.add(key)
                case Append(_, writes):
                    for write in writes:
                        if write.goal_id not in standings:
                            needs.goals.add(write.goal_id)
                        if type(write) is Step:
                            needs.steps.add((write.goal_id, write.step_key))
                            if write.state is not None:
                                agent = (write.state.agent.type, write.state.agent.key)
                                if agent not in versions:
                                    needs.agents.add(agent)
        return needs

    def load_standing(self, goal_id: str, standing: Standing) -> None:
        """Learn where a goal stands."""
        self.standings[goal_id] = standing
        self.steps_known += len(standing.steps)

    def take_rows(self) -> Rows:
        """Return what is to be written since the last time."""
        rows, self.rows = self.rows, Rows()
        return rows

    def decide(self, call: Call) -> Any:
        """Return the answer to a call, or the error to raise; what it writes is in `rows` from then on."""
        try:
            match call:
                case Append(writer, writes):
                    self._check_fenced(writer)
                    return [self._append(writer, write) for write in writes]
                case Accept(goals, holder):
                    self._check_fenced(holder)
                    return self._accept(goals, holder)
                case Fence(host):
                    self.fenced.add(host)
                    self.rows.fenced.append(host)
                case NextEpoch():
                    self.epoch += 1
                    return self.epoch
            return None
        except NexusError as error:
            return error

    def _check_fenced(self, writer: str) -> None:
        if writer in self.fenced:
            raise FencedError("this host was declared dead and may not write", host=writer)

    def _accept(self, goals: Sequence[Goal], holder: str) -> list[Acceptance]:
        new: dict[str, Goal] = {}
        keyed: dict[tuple[str, str, str], tuple[str, str, bytes]] = {}
        answers: list[Acceptance] = []
        for goal in goals:
            key = _key(goal)
            if goal.id in self.standings or goal.id in new:
                answers.append(Acceptance(goal.id, False))
            elif goal.idempotency_key and (earlier := keyed.get(key) or self.keyed.get(key)):
                if earlier[1:] != (goal.type, goal.payload):
                    raise AlreadyExistsError("the idempotency key was used for another request", goal_id=earlier[0])
                answers.append(Acceptance(earlier[0], False))
            else:
                new[goal.id] = goal
                if goal.idempotency_key:
                    keyed[key] = (goal.id, goal.type, goal.payload)
                answers.append(Acceptance(goal.id, True))
        # Nothing was noted before this line, and nothing is refused after it.
        self.keyed.update(keyed)
        for goal in new.values():
            self._note_goal(goal, holder)
        return answers

    def _note_goal(self, goal: Goal, holder: str) -> None:
        status = GoalStatus.RUNNING if holder else GoalStatus.ACCEPTED
        self._tell(goal.id, EntryKind.ACCEPTED, goal.accepted_at, goal.payload)
        standing = Standing(False, status.value, holder, "", set())
        headers = orjson.dumps(goal.headers).decode()
        self.rows.goals += (
            goal.id, goal.type, goal.tenant, goal.principal, goal.parent, goal.accepted_at, goal.deadline_at, headers,
            goal.idempotency_key, self.seq, goal_sum(goal, headers), status.value, holder,
            standing_sum(goal.id, standing),
        )  # fmt: skip
        self.standings[goal.id] = standing
        if holder:
            self._tell(goal.id, EntryKind.CLAIMED, goal.accepted_at, claimed_body(holder))

    def _append(self, writer: str, write: Write) -> bool:
        goal_id = write.goal_id
        standing = self.standings.get(goal_id)
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
                    self.rows.moved[goal_id] = standing
                    self._tell(goal_id, EntryKind.CANCEL_REQUESTED, at, cancel_requested_body(by))
                return True
            case Release(at=at):
                return self._release(standing, writer, goal_id, at)
            case Finish():
                return self._finish(standing, writer, write)

    def _step(self, standing: Standing, step: Step) -> bool:
        steps = standing.steps
        if step.step_key in steps:
            return False
        state = step.state
        if state is not None:
            agent = (state.agent.type, state.agent.key)
            if state.version != self.versions.get(agent, 0) + 1:
                return False
            self.versions[agent] = state.version
            total = row_sum((*agent, state.version, state.schema, state.body))
            self.rows.states[agent] = (state.version, state.schema, state.body, total)
        steps.add(step.step_key)
        self.steps_known += 1
        self._tell(step.goal_id, step.kind, step.at, step.body, step.step_key)
        return True

    def _claim(self, standing: Standing, writer: str, goal_id: str, at: float) -> bool:
        if not writer or (standing.host not in ("", writer) and standing.host not in self.fenced):
            return False
        if standing.host != writer:
            standing.host = writer
            standing.status = GoalStatus.RUNNING.value
            self.rows.moved[goal_id] = standing
            self._tell(goal_id, EntryKind.CLAIMED, at, claimed_body(writer))
        return True

    def _release(self, standing: Standing, writer: str, goal_id: str, at: float) -> bool:
        if not writer or standing.host != writer:
            return False
        standing.host = ""
        standing.status = GoalStatus.ACCEPTED.value
        self.rows.moved[goal_id] = standing
        self._tell(goal_id, EntryKind.RELEASED, at, released_body(writer))
        return True

    def _finish(self, standing: Standing, writer: str, finish: Finish) -> bool:
        if not writer or standing.host != writer:
            return False
        outcome = finish.outcome
        failure = None if outcome.failure is None else orjson.dumps(outcome.failure.to_json()).decode()
        self._tell(finish.goal_id, EntryKind.FINISHED, outcome.finished_at, outcome.result)
        standing.is_over = True
        standing.status = outcome.status.value
        standing.ended = (self.seq, outcome.finished_at, failure, outcome.answered_by)
        self.steps_known -= len(standing.steps)
        standing.steps = set()
        self.rows.moved[finish.goal_id] = standing
        return True

    def _tell(self, goal_id: str, kind: EntryKind, at: float, body: bytes, step_key: str = "") -> None:
        self.seq += 1
        total = entry_sum(goal_id, kind.value, at, step_key, body)
        self.rows.journal += (self.seq, goal_id, kind.value, at, step_key or None, body, total)


def _key(goal: Goal) -> tuple[str, str, str]:
    return goal.tenant, goal.principal, goal.idempotency_key
