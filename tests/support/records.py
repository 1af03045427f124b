"""Goals, steps and outcomes as short as a test wants them."""

from typing import Any

from nexus_ray.agents.task import AgentState, Failure
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.goal import Finish, Goal, GoalStatus, Outcome, Step

COUNTER = AgentId("counter", "k")


def a_goal(goal_id: str = "goal-1", **fields: Any) -> Goal:
    given: dict[str, Any] = {
        "type": "audit", "payload": b'{"n":1}', "principal": "ann", "accepted_at": 10.0, "deadline_at": 99.0,
        "headers": {"traceparent": "t"},
    }  # fmt: skip
    return Goal(goal_id, **{**given, **fields})


def a_step(key: str = "s-1", goal_id: str = "goal-1", version: int = 0, body: bytes = b"{}") -> Step:
    """A step; with a `version` it brings the state of `COUNTER`."""
    state = AgentState(COUNTER, version, b'{"n":%d}' % version) if version else None
    return Step(goal_id, key, 11.0, body, state)


def a_finish(goal_id: str = "goal-1", status: GoalStatus = GoalStatus.SUCCEEDED, result: bytes = b"1") -> Finish:
    failure = None if status is GoalStatus.SUCCEEDED else Failure("unknown", "it broke", attempts=2)
    return Finish(goal_id, Outcome(status, 12.0, b"" if failure else result, failure, "ask"))
