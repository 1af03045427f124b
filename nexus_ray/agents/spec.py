"""How an agent type is declared: its name, its class, its options and the schemas of what goes in and out."""

import inspect
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from nexus_ray.agents.agent import Agent, AgentClass
from nexus_ray.agents.schema import Schema
from nexus_ray.core.identity import check_type_name

_STATE_VERSION_MAX = 2**31 - 1  # What PostgreSQL's integer holds.


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How agents of a type are run.

    `concurrency` tasks of one agent run at a time, the rest wait in order, `mailbox_max` of them at the most.
    An agent without a task for `idle_s` seconds is passivated. A task that raises is tried `retries` times more.
    `isolation="process"` gives each agent a Ray actor of its own with `num_cpus`, `num_gpus` and `resources`.
    `scope="goal"` agents live for one goal only, beside it, on other hosts too where its own is busy, or from the
    first one on with `spread`, which is for CPU-bound work; `"fleet"` agents are shared by all goals.
    `timeout_s` bounds each task, where the goal's own deadline is not enough.
    """

    concurrency: int = 1
    mailbox_max: int = 4096
    idle_s: float = 300.0
    retries: int = 0
    isolation: Literal["shared", "process"] = "shared"
    scope: Literal["fleet", "goal"] = "fleet"
    spread: bool = False
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("concurrency", 1, 10_000), ("mailbox_max", 1, 1_000_000), ("retries", 0, 100)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be {low} to {high}, not {getattr(self, name)}")
        if self.idle_s <= 0 or (self.timeout_s is not None and self.timeout_s <= 0):
            raise ValueError("idle_s and timeout_s must be more than 0 seconds")
        if self.isolation not in ("shared", "process") or self.scope not in ("fleet", "goal"):
            raise ValueError("isolation is 'shared' or 'process', scope is 'fleet' or 'goal'")
        if self.spread and self.scope != "goal":
            raise ValueError("spread is for agents with scope='goal': those of the fleet are spread anyway")


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """A declared agent type. `state` is None for agents without durable state; `state_version` counts its shapes."""

    type: str
    cls: AgentClass
    options: AgentOptions
    payload: Schema
    result: Schema
    state: Schema | None
    state_type: Any
    state_version: int
    is_async: bool
    wants_task: bool


def agent_spec(cls: AgentClass, name: str | None, options: AgentOptions) -> AgentSpec:
    """Read an agent class into its spec.

    Raises:
        TypeError: It is not an `Agent`, its `handle` does not take a payload (and a task), or it has durable state
            and wants to run several tasks at once, or a `state_version` without an `upgrade`.
        InvalidArgumentError: The name is malformed.
    """
    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        raise TypeError(f"{cls!r} is not a subclass of nexus.Agent")
    handle = getattr(cls, "handle", None)
    if handle is None:
        raise TypeError(f"{cls.__name__} has no handle(self, payload, task) method")
    parameters = list(inspect.signature(handle).parameters.values())[1:]
    if not 1 <= len(parameters) <= 2:
        raise TypeError(f"{cls.__name__}.handle takes (self, payload) or (self, payload, task)")
    type_name = name or snake_case(cls.__name__)
    check_type_name(type_name)
    hints = get_type_hints(handle)
    state_type = get_type_hints(cls).get("state")
    if state_type is not None and options.concurrency > 1:
        # A task's changes would be committed by another one, and a failure would take back both.
        raise TypeError(f"{cls.__name__} has durable state, so it runs one task at a time: leave out concurrency")
    return AgentSpec(
        type=type_name,
        cls=cls,
        options=options,
        payload=Schema(hints.get(parameters[0].name, Any)),
        result=Schema(hints.get("return", Any)),
        state=None if state_type is None else Schema(state_type),
        state_type=state_type,
        state_version=_state_version(cls),
        is_async=inspect.iscoroutinefunction(handle),
        wants_task=len(parameters) == 2,
    )


def _state_version(cls: AgentClass) -> int:
    version = cls.state_version
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= _STATE_VERSION_MAX:
        raise TypeError(f"{cls.__name__}.state_version is a whole number from 1 on, not {version!r}")
    if version > 1 and getattr(cls.upgrade, "__func__", None) is getattr(Agent.upgrade, "__func__", None):
        raise TypeError(f"{cls.__name__} has state_version {version}: define upgrade(cls, state, version)")
    return version


def snake_case(name: str) -> str:
    """Return a class name as a type name: `SupplyReader` is `supply_reader`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
