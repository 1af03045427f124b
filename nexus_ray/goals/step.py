"""Steps: the key that names a call of a coordination by what it asks, and the body that records how it ended.

A step's key is derived from agent type, agent key, payload and occurrence, not from its position. So a coordination
that changed between two runs asks for what is not there yet, and finds what is.
"""

import hashlib
from typing import Any

import orjson

from nexus_ray.agents.schema import load_json
from nexus_ray.agents.task import Failure, TaskResult
from nexus_ray.core.errors import NexusError


class StepKeys:
    """Names the steps of one run; equal asks are told apart by how often they were asked before."""

    __slots__ = ("_asked", "_begun")

    def __init__(self) -> None:
        self._asked: dict[str, int] = {}
        self._begun: dict[str, Any] = {}  # Targets to digests that go on with key and payload.

    def next(self, target: str, key: str, payload: bytes) -> str:
        """Return the step key of one more ask of `target` (an agent type or `goal:TYPE`) with `key`."""
        begun = self._begun.get(target)
        if begun is None:
            begun = self._begun[target] = hashlib.blake2b(f"{len(target)};{target}".encode(), digest_size=16)
        hasher = begun.copy()
        hasher.update(f"{len(key)};{key}".encode())
        hasher.update(payload)
        name = hasher.hexdigest()
        count = self._asked[name] = self._asked.get(name, 0) + 1
        return f"{name}-{count}"


def step_body(agent: str, result: TaskResult) -> bytes:
    """Return what the journal keeps of a result."""
    body: dict[str, Any] = {
        "agent": agent,
        "host": result.host,
        "attempts": result.attempts,
        "started_at": result.started_at,
        "ended_at": result.ended_at,
    }
    if result.failure is None:
        body["value"] = orjson.Fragment(result.value)
    else:
        body["failure"] = result.failure.to_json()
    return orjson.dumps(body)


def step_result(step_key: str, body: bytes) -> TaskResult:
    """Read back what `step_body` wrote.

    Raises:
        DataLossError: It cannot be read back.
    """
    fields = load_json(body, "step")
    failure = fields.get("failure")
    return TaskResult(
        step_key=step_key,
        value=b"" if failure else orjson.dumps(fields["value"]),
        failure=Failure.from_json(failure) if failure else None,
        host=fields["host"],
        attempts=fields["attempts"],
        started_at=fields["started_at"],
        ended_at=fields["ended_at"],
    )


def failure_of(error: NexusError) -> Failure:
    """Return an error as the journal keeps it."""
    details = error.details
    return Failure(
        code=str(details.get("failed_with") or error.code),
        message=error.message,
        error_type=str(details.get("error_type") or type(error).__name__),
        agent=str(details.get("agent", "")),
        host=str(details.get("host", "")),
        attempts=int(details.get("attempts", 0)),
        step=str(details.get("step", "")),
    )
