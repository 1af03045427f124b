"""What the runner needs from outside: a record of what was done, and processes for agents that want their own."""

import asyncio
from typing import Protocol

from nexus_ray.agents.spec import AgentSpec
from nexus_ray.agents.task import AgentState, TaskOrder, TaskResult
from nexus_ray.core.identity import AgentId


class Effects(Protocol):
    """Where it becomes durable that something is about to happen outside, and how it ended.

    Both are written once under a key of a goal; the bodies are JSON. The writes are enqueued in the order of the calls.
    """

    host: str
    loop: asyncio.AbstractEventLoop  # Where everything here is called; threads have to go there.

    def begin(self, goal_id: str, step_key: str, body: bytes) -> "asyncio.Future[bool]":
        """Write that it is about to happen; true when that is durable, false if it stands already or the goal ended.

        Raises, through the future:
            FencedError: This host may not write any more.
            UnavailableError: It is not known whether it was written.
        """
        ...

    def end(self, goal_id: str, step_key: str, body: bytes) -> "asyncio.Future[bool]":
        """Write how it ended; as `begin`."""
        ...

    async def recorded(self, goal_id: str, step_key: str) -> tuple[bytes | None, bytes | None]:
        """Return what stands: that it was begun, and how it ended."""
        ...


class Recorder(Protocol):
    """Where results and agent states become durable, and what agents do outside is on record."""

    effects: Effects

    def record(self, order: TaskOrder, result: TaskResult, state: AgentState | None) -> "asyncio.Future[bool]":
        """Write the result, and the state with it, after everything that was recorded before.

        The future resolves when that is durable: true, or false if it did not take effect, because the step stands
        already, its goal has ended, or the state is not the successor of the stored one. It raises `FencedError`
        when this host may not write any more.
        """
        ...

    def keep(self, order: TaskOrder, result: TaskResult) -> None:
        """Write a result that nobody waits for, in its order; it may take some milliseconds, to go with what comes."""
        ...

    async def load(self, agent: AgentId) -> AgentState | None:
        """Return the last committed state of an agent, or None."""
        ...


class IsolatedAgent(Protocol):
    """An agent in a process of its own."""

    async def handle(self, order: TaskOrder, attempt: int, state: bytes) -> tuple[bytes, bytes]:
        """Run one task from `state`; return result and state as JSON.

        Raises:
            TaskFailedError: The agent raised; `details["error_type"]` says what.
            UnavailableError: The process died.
        """
        ...

    async def stop(self) -> None:
        """End the process, whatever it is doing."""
        ...


class Isolation(Protocol):
    """Makes processes for agents."""

    async def start(self, agent: AgentId, spec: AgentSpec) -> IsolatedAgent:
        """Start a process that runs one agent.

        Raises:
            UnavailableError: It cannot be started.
        """
        ...
