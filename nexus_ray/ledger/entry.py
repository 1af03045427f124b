"""The bodies of the journal's entries that a ledger writes by itself; steps and notes bring their own.

Law: every ledger tells the same story in the same words, so these are the only places where it is worded.
"""

from typing import Any

import orjson

from nexus_ray.ledger.goal import Goal, Outcome


def accepted_body(goal: Goal) -> bytes:
    """Return `{"type", "payload", "deadline_at"}`."""
    return orjson.dumps({"type": goal.type, "payload": _json(goal.payload), "deadline_at": goal.deadline_at})


def claimed_body(host: str) -> bytes:
    """Return `{"host"}`."""
    return orjson.dumps({"host": host})


def released_body(host: str) -> bytes:
    """Return `{"host"}`."""
    return orjson.dumps({"host": host})


def cancel_requested_body(by: str) -> bytes:
    """Return `{"by"}`."""
    return orjson.dumps({"by": by})


def finished_body(outcome: Outcome) -> bytes:
    """Return `{"status", "result", "failure", "answered_by"}`; a result that there is not is null."""
    return orjson.dumps(
        {
            "status": outcome.status.value,
            "result": _json(outcome.result),
            "failure": None if outcome.failure is None else outcome.failure.to_json(),
            "answered_by": outcome.answered_by,
        }
    )


def _json(value: bytes) -> Any:
    # A fragment is copied as it is: a payload was checked once, at the edge, and may hold numbers orjson cannot.
    return orjson.Fragment(value) if value else None
