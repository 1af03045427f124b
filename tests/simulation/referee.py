"""The referee: what must hold, checked against what is on the disk and what clients were told.

Law: it knows nothing of the ledger's machine or the hosts' memory; only durable rows, fences as they became durable,
and answers that left a process. Its complaints are the only verdict of a run.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from nexus_ray.ledger.goal import Claim, EntryKind, Finish, Outcome, Release
from nexus_ray.ledger.machine import Accept, Append, Call, Fence, NextEpoch
from nexus_ray.runtime.placement import Membership
from tests.simulation.app import EXPECTED
from tests.simulation.disk import Disk

_COUNTING = ("counter/", "clumsy/")
_MAY_FAIL = {("pay", "EffectUnknownError"), ("trip", "SagaFailedError")}
_COMPLAINTS_MAX = 20


class Referee:
    """Watches one run."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.complaints: list[str] = []
        self._accepted: set[str] = set()
        self._cancelled: set[str] = set()
        self._told: dict[str, Outcome] = {}
        self._fenced: set[str] = set()
        self._holders: dict[str, str] = {}
        self._epoch = 0
        self._published: dict[int, Membership] = {}

    def complain(self, what: str) -> None:
        if len(self.complaints) < _COMPLAINTS_MAX:
            self.complaints.append(what)

    # --- While it runs.

    def committed(self, calls: Sequence[Call], answers: Sequence[Any]) -> None:
        """These calls are durable now, in this order."""
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, Exception):
                continue
            match call:
                case Fence(host):
                    self._fenced.add(host)
                case NextEpoch():
                    if answer <= self._epoch:
                        self.complain(f"epoch {answer} was drawn after {self._epoch}")
                    self._epoch = answer
                case Accept(goals, holder):
                    self._check_writer(holder, len(goals))
                    for goal, acceptance in zip(goals, answer, strict=True):
                        if acceptance.is_new:
                            self._holders[goal.id] = holder
                case Append(writer, writes):
                    self._check_writer(writer, len(writes))
                    for write, took_effect in zip(writes, answer, strict=True):
                        if took_effect and isinstance(write, Claim):
                            self._check_claim(write.goal_id, writer)
                        elif took_effect and isinstance(write, Release):
                            self._holders[write.goal_id] = ""
                        elif took_effect and isinstance(write, Finish) and self._holders[write.goal_id] != writer:
                            self.complain(f"{writer} ended {write.goal_id}, which it did not hold")

    def _check_writer(self, writer: str, writes: int) -> None:
        if writes and writer in self._fenced:
            self.complain(f"{writer} committed {writes} writes after it was fenced")

    def _check_claim(self, goal_id: str, writer: str) -> None:
        holder = self._holders.get(goal_id, "")
        if holder not in ("", writer) and holder not in self._fenced:
            self.complain(f"{writer} claimed {goal_id} from {holder}, which is not fenced")
        self._holders[goal_id] = writer

    def published(self, membership: Membership) -> None:
        """The directory said this to somebody."""
        if self._published.setdefault(membership.epoch, membership) != membership:
            self.complain(f"epoch {membership.epoch} means two memberships")

    def accepted(self, goal_id: str) -> None:
        """Somebody was told that a goal is accepted."""
        self._accepted.add(goal_id)

    def cancelled(self, goal_id: str) -> None:
        """A goal was asked to stop, so that it may end as anything."""
        self._cancelled.add(goal_id)

    def told(self, goal_id: str, outcome: Outcome) -> None:
        """A client was told an outcome; it must be the one on record, and be there already."""
        before = self._told.setdefault(goal_id, outcome)
        if before != outcome:
            self.complain(f"{goal_id} was said to have {before.status} and to have {outcome.status}")
        record = self._disk.record(goal_id)
        if record is None or record.outcome != outcome:
            stands = "nothing" if record is None or record.outcome is None else record.outcome.status.value
            self.complain(f"{goal_id} was said to have {outcome.status}, on record is {stands}")

    def same_goal(self, first: str, second: str) -> None:
        """Two submissions under one key were answered with these."""
        if first != second:
            self.complain(f"one idempotency key named {first} and {second}")

    # --- When all is over.

    def check(self, outside: Mapping[str, int]) -> None:
        """Look at everything that is on the disk, and at how often each effect was done outside."""
        disk = self._disk
        for goal_id in sorted(self._accepted - disk.goals.keys()):
            self.complain(f"{goal_id} was accepted and is lost")
        for goal_id, outcome in self._told.items():
            record = disk.record(goal_id)
            if record is None or record.outcome != outcome:
                self.complain(f"{goal_id} was said to have {outcome.status}; on record it is another")
        for goal_id in disk.goals:
            self._check_goal(goal_id)
        keys = Counter((goal.principal, goal.idempotency_key) for goal in disk.goals.values() if goal.idempotency_key)
        for (_, key), number in keys.items():
            if number > 1:
                self.complain(f"{key} stands for {number} goals")
        self._check_states()
        for effect, times in outside.items():
            if times > 1 and effect.endswith("!once"):
                self.complain(f"effect {effect} was done {times} times")

    def _check_goal(self, goal_id: str) -> None:
        disk = self._disk
        record = disk.record(goal_id)
        assert record is not None
        entries = disk.entries[goal_id]
        ends = [entry for entry in entries if entry.kind is EntryKind.FINISHED]
        if record.outcome is None:
            self.complain(f"{goal_id} ({record.goal.type}) has not ended; {record.host or 'nobody'} holds it")
            return
        if len(ends) != 1:
            self.complain(f"{goal_id} has {len(ends)} outcomes")
        if ends and entries[-1] is not ends[-1]:
            self.complain(f"{goal_id} goes on after its end, with {entries[-1].kind}")
        keyed = Counter(entry.step_key for entry in entries if entry.step_key)
        for key, number in keyed.items():
            if number > 1:
                self.complain(f"step {key} of {goal_id} is recorded {number} times")
        self._check_outcome(goal_id, record.outcome)

    def _check_outcome(self, goal_id: str, outcome: Outcome) -> None:
        goal = self._disk.goals[goal_id]
        line = [goal_id]
        while parent := self._disk.goals[line[-1]].parent:
            line.append(parent)
            if parent not in self._disk.goals:
                self.complain(f"{parent} has a goal of its own, and is lost")
                return
        if self._cancelled & set(line):
            return
        statuses, result = EXPECTED[goal.type]
        if goal.parent and "late" in self._disk.goals[line[-1]].type:
            return
        failure = outcome.failure.error_type if outcome.failure else ""
        if outcome.status == "failed" and (goal.type, failure) in _MAY_FAIL:
            return
        expected = None if result is None else result(orjson.loads(goal.payload))
        if outcome.status not in statuses or (expected is not None and outcome.result != orjson.dumps(expected)):
            why = outcome.failure.message if outcome.failure else outcome.result.decode()
            self.complain(f"{goal_id} ({goal.type}) {outcome.status}: {why}; expected {statuses[0]} {expected}")

    def _check_states(self) -> None:
        """Each agent that counts has counted exactly what is on record."""
        counted: defaultdict[str, list[int]] = defaultdict(list)
        for entry in self._disk.journal:
            if entry.kind is EntryKind.STEP:
                body = orjson.loads(entry.body)
                if body["agent"].startswith(_COUNTING) and "value" in body:
                    counted[body["agent"]].append(body["value"])
        for (type_, key), state in self._disk.states.items():
            if type_ == "seat":
                self._check_seat(key, orjson.loads(state.body)["goals"])
                continue
            values = counted.pop(f"{type_}/{key}", [])
            stored = orjson.loads(state.body)["n"]
            if sorted(values) != list(range(1, len(values) + 1)) or stored != len(values) or state.version != stored:
                self.complain(
                    f"{type_}/{key} stands at {stored} in version {state.version}; on record are {sorted(values)}"
                )
        for agent, values in counted.items():
            self.complain(f"{agent} has no state, but {len(values)} steps on record")

    def _check_seat(self, key: str, booked: list[str]) -> None:
        """Who has a seat is who got all of them."""
        for goal_id, goal in self._disk.goals.items():
            record = self._disk.record(goal_id)
            if goal.type != "trip" or record is None or record.outcome is None:
                continue
            if record.outcome.status == "succeeded" and goal_id not in booked:
                self.complain(f"{goal_id} succeeded, and has no seat {key}")
            if record.outcome.status == "failed" and goal_id in booked:
                self.complain(f"{goal_id} failed, and has seat {key} still")
