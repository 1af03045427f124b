"""What stands in requests and answers, in JSON."""

from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from nexus_ray.goals.goal import Entry, GoalRecord


class Submission(BaseModel):
    """A goal to be accepted."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"type": "review", "payload": {"paths": ["src"]}, "timeout_s": 600}]},
    )

    type: str = Field(min_length=1, max_length=63, description="A goal type of the app; see /v1/goal-types.")
    payload: Any = Field(default=None, description="What the goal type asks for.")
    timeout_s: float | None = Field(default=None, gt=0, description="Seconds until the goal expires.")


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
