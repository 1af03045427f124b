"""Nexus runs fleets of agents in production on a Ray cluster.

What users import; everything is loaded on first use, and nothing here loads ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nexus_ray.agents.agent import Agent, Task
    from nexus_ray.app import App
    from nexus_ray.config import Settings
    from nexus_ray.core.errors import (
        EffectUnknownError,
        InvalidArgumentError,
        NexusError,
        NotDoneError,
        QuorumNotReachedError,
        SagaFailedError,
        TaskFailedError,
        UnavailableError,
    )
    from nexus_ray.goals.questions import Approval
    from nexus_ray.goals.saga import SagaStep
    from nexus_ray.goals.strategies import Call
    from nexus_ray.goals.team import Team
    from nexus_ray.runtime.client import connect

_HOMES = {
    "Agent": "nexus_ray.agents.agent",
    "App": "nexus_ray.app",
    "Approval": "nexus_ray.goals.questions",
    "Call": "nexus_ray.goals.strategies",
    "EffectUnknownError": "nexus_ray.core.errors",
    "InvalidArgumentError": "nexus_ray.core.errors",
    "NexusError": "nexus_ray.core.errors",
    "NotDoneError": "nexus_ray.core.errors",
    "QuorumNotReachedError": "nexus_ray.core.errors",
    "SagaFailedError": "nexus_ray.core.errors",
    "SagaStep": "nexus_ray.goals.saga",
    "Settings": "nexus_ray.config",
    "Task": "nexus_ray.agents.agent",
    "TaskFailedError": "nexus_ray.core.errors",
    "Team": "nexus_ray.goals.team",
    "UnavailableError": "nexus_ray.core.errors",
    "connect": "nexus_ray.runtime.client",
}

__version__ = "0.1.0"
__all__ = [
    "Agent",
    "App",
    "Approval",
    "Call",
    "EffectUnknownError",
    "InvalidArgumentError",
    "NexusError",
    "NotDoneError",
    "QuorumNotReachedError",
    "SagaFailedError",
    "SagaStep",
    "Settings",
    "Task",
    "TaskFailedError",
    "Team",
    "UnavailableError",
    "connect",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
