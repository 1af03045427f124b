"""A task is one agent's share of a goal: the order that is sent, the result that comes back.

Payloads and results are JSON in UTF-8 bytes here: checked and encoded once at the edge, decoded once by the agent.
What each task makes and sends is a named tuple: a third of a frozen dataclass's cost to make, and half to send.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from nexus_ray.core.context import Headers
from nexus_ray.core.identity import AgentId


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something failed, in a form that can be stored and shown; `code` is the error's canonical word.

    `error_type` is the class name of what was raised, `attempts` how often it was tried.
    """

    code: str
    message: str
    error_type: str = ""
    agent: str = ""
    host: str = ""
    attempts: int = 0
    step: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the failure as a JSON object, empty fields left out."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in fields.items() if value not in ("", 0)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Failure":
        """Read back what `to_json` wrote."""
        return cls(**value)


class TaskOrder(NamedTuple):
    """What a host is asked to run.

    `step_key` names the step within its goal and never changes over re-runs, so `goal_id/step_key` is the task's
    idempotency key. `private` agents live for this goal only, beside it.
    """

    goal_id: str
    step_key: str
    agent: AgentId
    payload: bytes
    headers: Headers
    deadline_at: float
    private: bool = False


class TaskResult(NamedTuple):
    """What came of an order: `value` (JSON) or `failure`, and where, when and how often it was tried.

    `started_at` and `ended_at` are wall-clock seconds.
    """

    step_key: str
    value: bytes
    failure: Failure | None
    host: str
    attempts: int
    started_at: float
    ended_at: float


class AgentState(NamedTuple):
    """An agent's durable state: `body` is JSON, `version` counts its commits from 1.

    `schema` is the version of the state's type, as the agent's class declares it, that `body` was written with.
    """

    agent: AgentId
    version: int
    body: bytes
    schema: int = 1
