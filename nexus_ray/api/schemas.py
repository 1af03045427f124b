"""What stands in requests and answers, in JSON.

Law: the models here describe the answers for the OpenAPI document; the answers themselves are put together from
bytes that were checked before, because validating every answer again would cost more than everything else.
"""

from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from nexus_ray.ledger.goal import Entry, EntryKind, GoalRecord, GoalStatus

GOAL_ID = "goal-01KAV9Q4M3T8XH2D5R7C6B1NPE"
_AT = "2026-01-31T12:00:00.000Z"


class Submission(BaseModel):
    """A goal to be accepted."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"type": "review", "payload": {"paths": ["src"]}, "timeout_s": 600}]},
    )

    type: str = Field(min_length=1, max_length=63, description="A goal type of the app; see /v1/goal-types.")
    payload: Any = Field(default=None, description="What the goal type asks for.")
    timeout_s: float | None = Field(default=None, gt=0, description="Seconds until the goal expires.")


class BatchLine(Submission):
    """A goal to be accepted, as one line of a batch."""

    idempotency_key: str = Field("", description="The same key gives the same goal.")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FailureAnswer(_Answer):
    """Why a goal or a step failed, where, and how often it was tried."""

    code: str = Field(description="The canonical word of the error; see the table of errors.")
    message: str = ""
    error_type: str = Field("", description="The class of what was raised.")
    agent: str = ""
    host: str = ""
    attempts: int = 0
    step: str = ""


class GoalAnswer(_Answer):
    """A goal and where it stands; the fields from `finished_at` on are there when they mean something."""

    id: str
    type: str
    status: GoalStatus
    principal: str = Field(description="Who submitted it.")
    payload: Any
    accepted_at: str = Field(description="RFC 3339, UTC.")
    deadline_at: str = Field(description="RFC 3339, UTC.")
    host: str = Field(description="The host that runs it, or ran it last; empty before.")
    parent: str = Field(description="The goal that asked for this one, or empty.")
    finished_at: str = Field("", description="RFC 3339, UTC.")
    duration_s: float = Field(0.0, description="Seconds from acceptance to outcome.")
    result: Any = None
    failure: FailureAnswer | None = Field(None, description="Why it did not succeed.")
    answered_by: str = Field("", description="The strategy that stood in for the one asked for.")


class AcceptedAnswer(_Answer):
    """A goal that was accepted and cannot be looked at right now."""

    id: str
    type: str
    status: GoalStatus


class GoalsAnswer(_Answer):
    """A page of goals, newest first."""

    goals: list[GoalAnswer]
    next: str | None = Field(description="The `before` of the page after; null on the last.")


class EntryAnswer(_Answer):
    """An entry of a goal's journal; `body` depends on `kind`."""

    seq: int = Field(description="Grows over all goals; what `after` and `Last-Event-ID` mean.")
    at: float = Field(description="Seconds since 1970.")
    kind: EntryKind
    body: Any
    step: str = Field("", description="The key of a step, where it is one.")


class JournalAnswer(_Answer):
    """Entries in order."""

    entries: list[EntryAnswer]


class SpanAnswer(_Answer):
    """A finished span; times are seconds since 1970."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    started_at: float
    ended_at: float
    status: str
    attributes: dict[str, Any]


class TraceAnswer(_Answer):
    """The spans of a goal, oldest first."""

    spans: list[SpanAnswer]


class AgentAnswer(_Answer):
    """An agent that is awake, with the tasks that it runs and that wait for it."""

    agent: str
    type: str
    key: str
    host: str
    running: int
    waiting: int


class AgentsAnswer(_Answer):
    """Agents that are awake."""

    agents: list[AgentAnswer]


class GoalTypeAnswer(_Answer):
    """A goal type that can be submitted."""

    type: str
    summary: str
    payload_schema: dict[str, Any] = Field(description="JSON schema; {} takes everything.")
    result_schema: dict[str, Any]
    timeout_s: float = Field(description="The deadline of a request that names none.")


class GoalTypesAnswer(_Answer):
    """The goal types of the app."""

    goal_types: list[GoalTypeAnswer]


class HealthAnswer(_Answer):
    """The process lives."""

    status: str


class ReadyAnswer(_Answer):
    """Which parts answer; `ready` when all do."""

    ready: bool
    keys: bool
    ledger: bool
    hosts: bool


class FieldProblem(_Answer):
    """What is wrong with one field."""

    field: str
    problem: str


class Problem(_Answer):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="The canonical word of the error.")
    errors: list[FieldProblem] = Field(default_factory=list, description="The fields, where there are fields.")


GOAL_EXAMPLE: dict[str, Any] = {
    "id": GOAL_ID,
    "type": "review",
    "status": "succeeded",
    "principal": "local-operator",
    "payload": {"paths": ["src"]},
    "accepted_at": _AT,
    "deadline_at": "2026-01-31T12:10:00.000Z",
    "host": "host-0",
    "parent": "",
    "finished_at": "2026-01-31T12:00:01.250Z",
    "duration_s": 1.25,
    "result": {"findings": 0},
}
ACCEPTED_EXAMPLE = {
    **{name: GOAL_EXAMPLE[name] for name in ("id", "type", "principal", "payload", "accepted_at", "deadline_at")},
    "status": "accepted",
    "host": "",
    "parent": "",
}
ENTRY_EXAMPLE = {"seq": 7, "at": 1769860800.0, "kind": "claimed", "body": {"host": "host-0"}}
EVENT_EXAMPLE = 'id: 7\r\nevent: claimed\r\ndata: {"seq":7,"at":1769860800.0,"kind":"claimed","body":{}}\r\n\r\n'
AGENT_EXAMPLE = {
    "agent": "reader/numpy", "type": "reader", "key": "numpy", "host": "host-0", "running": 1, "waiting": 0,
}  # fmt: skip
TYPE_EXAMPLE = {
    "type": "review", "summary": "Review packages.", "timeout_s": 3600.0,
    "payload_schema": {"type": "object"}, "result_schema": {},
}  # fmt: skip
READY_EXAMPLE = {"ready": True, "keys": True, "ledger": True, "hosts": True}


def goal_json(record: GoalRecord) -> dict[str, Any]:
    """Return a goal and where it stands as a JSON object."""
    goal, outcome = record.goal, record.outcome
    fields: dict[str, Any] = {
        "id": goal.id,
        "type": goal.type,
        "status": record.status.value,
        "principal": goal.principal,
        "payload": orjson.Fragment(goal.payload),
        "accepted_at": instant(goal.accepted_at),
        "deadline_at": instant(goal.deadline_at),
        "host": record.host,
        "parent": goal.parent,
    }
    if outcome is not None:
        fields["finished_at"] = instant(outcome.finished_at)
        fields["duration_s"] = round(outcome.finished_at - goal.accepted_at, 6)
        if outcome.result:
            fields["result"] = orjson.Fragment(outcome.result)
        if outcome.failure is not None:
            fields["failure"] = outcome.failure.to_json()
        if outcome.answered_by:
            fields["answered_by"] = outcome.answered_by
    return fields


def entry_json(entry: Entry) -> dict[str, Any]:
    """Return an entry of a journal as a JSON object."""
    fields = {"seq": entry.seq, "at": entry.at, "kind": entry.kind.value, "body": orjson.Fragment(entry.body)}
    return {**fields, "step": entry.step_key} if entry.step_key else fields


def instant(at: float) -> str:
    """Return wall-clock seconds as RFC 3339 in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
