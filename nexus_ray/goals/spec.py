"""How a goal type is declared: its name, its function, and the schemas of request and result; and all of an app."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from nexus_ray.agents.agent import Agent
from nexus_ray.agents.schema import Schema
from nexus_ray.agents.spec import AgentSpec
from nexus_ray.core.identity import check_type_name

GoalFunction = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class GoalSpec:
    """A declared goal type; `timeout_s` is the deadline that a request without one gets."""

    type: str
    function: GoalFunction
    payload: Schema
    result: Schema
    timeout_s: float | None
    summary: str


def goal_spec(function: GoalFunction, name: str | None, timeout_s: float | None) -> GoalSpec:
    """Read a goal function into its spec.

    Raises:
        TypeError: It is not `async def goal(request, team)`.
        InvalidArgumentError: The name is malformed.
    """
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"{function!r} is not an async function")
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) != 2:
        raise TypeError(f"goal {function.__name__} takes (request, team)")
    if timeout_s is not None and timeout_s <= 0:
        raise ValueError("timeout_s must be more than 0 seconds")
    type_name = name or function.__name__
    check_type_name(type_name)
    hints = get_type_hints(function)
    return GoalSpec(
        type=type_name,
        function=function,
        payload=Schema(hints.get(parameters[0].name, Any)),
        result=Schema(hints.get("return", Any)),
        timeout_s=timeout_s,
        summary=(inspect.getdoc(function) or "").partition("\n")[0],
    )


class Specs:
    """What the app declares, by name and by object."""

    def __init__(self, agents: Mapping[str, AgentSpec], goals: Mapping[str, GoalSpec]) -> None:
        self.agents = agents
        self.goals = goals
        self.agent_names: dict[type[Agent], str] = {spec.cls: name for name, spec in agents.items()}
        self.goal_names: dict[GoalFunction, str] = {spec.function: name for name, spec in goals.items()}
