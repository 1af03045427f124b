"""App: the user's agent types and goal types, by name.

An app lives in an importable module and is named `module:attribute`; every process of the fleet imports it itself.
"""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

from nexus_ray.agents.agent import Agent
from nexus_ray.agents.spec import AgentOptions, AgentSpec, agent_spec
from nexus_ray.core.errors import InvalidArgumentError
from nexus_ray.core.identity import check_type_name
from nexus_ray.goals.spec import GoalFunction, GoalSpec, goal_spec

A = TypeVar("A", bound=type[Agent])
F = TypeVar("F", bound=GoalFunction)


class App:
    """A fleet in plain Python: decorate agents with `@app.agent` and goals with `@app.goal`."""

    def __init__(self, name: str) -> None:
        check_type_name(name)
        self.name = name
        self.agents: dict[str, AgentSpec] = {}
        self.goals: dict[str, GoalSpec] = {}

    @overload
    def agent(self, cls: A, /) -> A: ...
    @overload
    def agent(
        self,
        name: str | None = None,
        /,
        *,
        concurrency: int = ...,
        mailbox_max: int = ...,
        idle_s: float = ...,
        retries: int = ...,
        isolation: Literal["shared", "process"] = ...,
        scope: Literal["fleet", "goal"] = ...,
        spread: bool = ...,
        num_cpus: float = ...,
        num_gpus: float = ...,
        resources: dict[str, float] = ...,
        timeout_s: float | None = ...,
    ) -> Callable[[A], A]: ...

    def agent(self, target: Any = None, /, **options: Any) -> Any:
        """Declare an agent type: bare, or with a name and `AgentOptions` as keywords."""
        if isinstance(target, type):
            return self._declare_agent(target, None, AgentOptions())
        chosen = AgentOptions(**options)
        return lambda cls: self._declare_agent(cls, target, chosen)

    @overload
    def goal(self, function: F, /) -> F: ...
    @overload
    def goal(self, name: str | None = None, /, *, timeout_s: float | None = None) -> Callable[[F], F]: ...

    def goal(self, target: Any = None, /, *, timeout_s: float | None = None) -> Any:
        """Declare a goal type: bare, or with a name and the default `timeout_s` of a request."""
        if callable(target):
            return self._declare_goal(target, None, None)
        return lambda function: self._declare_goal(function, target, timeout_s)

    def _declare_agent(self, cls: A, name: str | None, options: AgentOptions) -> A:
        spec = agent_spec(cls, name, options)
        if spec.type in self.agents:
            raise ValueError(f"the app {self.name} has an agent type {spec.type} already")
        self.agents[spec.type] = spec
        return cls

    def _declare_goal(self, function: F, name: str | None, timeout_s: float | None) -> F:
        spec = goal_spec(function, name, timeout_s)
        if spec.type in self.goals:
            raise ValueError(f"the app {self.name} has a goal type {spec.type} already")
        self.goals[spec.type] = spec
        return function


def load_app(path: str) -> App:
    """Import `module:attribute` and return the app there; the working directory is searched too.

    Raises:
        InvalidArgumentError: The path is malformed, the module does not import, or there is no app.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise InvalidArgumentError(f"{path!r} is not an app: write module:attribute, such as my_fleet:app")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InvalidArgumentError(
            f"the app {path!r} does not import: {type(error).__name__}: {error}", module=module_name
        ) from error
    app = getattr(module, attribute, None)
    if not isinstance(app, App):
        apps = [name for name, value in vars(module).items() if isinstance(value, App)]
        hint = f"; it has {', '.join(apps)}" if apps else "; make one with app = nexus.App('name')"
        raise InvalidArgumentError(f"{module_name} has no app called {attribute!r}{hint}")
    return app
