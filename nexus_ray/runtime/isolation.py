"""Agents with a process of their own: one Ray actor each, behind the same port as everything else.

Law: the actor holds one agent and no state between tasks that is not handed to it; the host keeps the record.
"""

import asyncio
from typing import Any

import ray

from nexus_ray.agents.activation import task_failure, task_of, wake
from nexus_ray.agents.agent import Agent
from nexus_ray.agents.spec import AgentSpec
from nexus_ray.agents.task import TaskOrder
from nexus_ray.app import load_app
from nexus_ray.config import Settings
from nexus_ray.core.clock import SystemClock
from nexus_ray.core.errors import FencedError, NexusError, TaskFailedError
from nexus_ray.core.identity import AgentId
from nexus_ray.core.ids import new_id
from nexus_ray.goals.effects import EffectRecord, effects_from_afar
from nexus_ray.runtime.boot import configure_process
from nexus_ray.runtime.names import NAMESPACE
from nexus_ray.runtime.ray_errors import translate
from nexus_ray.runtime.which_ledger import open_ledger


class AgentProcess:
    """One agent in a process of its own."""

    def __init__(self, app_path: str, agent: AgentId, settings: Settings, host: str) -> None:
        configure_process(settings, f"agent-{agent.type}")
        self._host = host
        self._settings = settings
        self._effects: EffectRecord | None = None
        self._id = agent
        self._spec = load_app(app_path).agents[agent.type]
        self._agent: Any = None

    async def handle(self, order: TaskOrder, attempt: int, state: bytes) -> tuple[bytes, bytes]:
        """Run one task from `state`; return result and state as JSON."""
        spec = self._spec
        payload = spec.payload.decode(order.payload)
        try:
            if self._agent is None:
                self._agent = wake(spec, self._id, state)
                if spec.cls.start is not Agent.start:
                    await self._agent.start()
            elif spec.state is not None and state:
                self._agent.state = spec.state.decode(state, "state")
            if self._effects is None:
                # In the name of the host: where that was declared dead, nothing is begun here either.
                self._effects = effects_from_afar(self._host, open_ledger(self._settings, self._host), SystemClock())
            task = task_of(order, attempt, order.headers.get("traceparent", ""), self._effects)
            arguments = (payload, task) if spec.wants_task else (payload,)
            if spec.is_async:
                result = await self._agent.handle(*arguments)
            else:
                result = await asyncio.to_thread(self._agent.handle, *arguments)
            value = spec.result.encode(result, f"result of {self._id}")
            return value, b"" if spec.state is None else spec.state.encode(self._agent.state, "state")
        except (TaskFailedError, FencedError):
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            raise task_failure(self._id, error) from None


class RayIsolatedAgent:
    """Implements `IsolatedAgent` over an actor."""

    def __init__(self, actor: Any, agent: AgentId) -> None:
        self._actor = actor
        self._id = agent

    async def handle(self, order: TaskOrder, attempt: int, state: bytes) -> tuple[bytes, bytes]:
        """Run one task in the process."""
        try:
            value, body = await self._actor.handle.remote(order, attempt, state)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise translate(error, f"the process of {self._id}") from None
        return value, body

    async def stop(self) -> None:
        """End the process, whatever it is doing."""
        ray.kill(self._actor)


class RayIsolation:
    """Implements `Isolation` with Ray actors that take the resources which the agent's type asks for."""

    def __init__(self, app_path: str, settings: Settings, host: str) -> None:
        self._app_path = app_path
        self._settings = settings
        self._host = host

    async def start(self, agent: AgentId, spec: AgentSpec) -> RayIsolatedAgent:
        """Start a process; it is placed when its resources are free, which the task's deadline bounds."""
        options = spec.options
        try:
            actor = (
                ray.remote(AgentProcess)
                .options(
                    name=f"{agent.type}:{agent.key[:40]}:{new_id('process')[-6:]}",
                    namespace=NAMESPACE,
                    num_cpus=options.num_cpus,
                    num_gpus=options.num_gpus,
                    resources=options.resources or None,
                    max_restarts=0,
                    max_task_retries=0,
                    max_concurrency=options.concurrency,
                )
                .remote(self._app_path, agent, self._settings, self._host)
            )
        except NexusError:
            raise
        except Exception as error:
            raise translate(error, f"the process of {agent}") from None
        return RayIsolatedAgent(actor, agent)
