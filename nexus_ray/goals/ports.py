"""What the coordinator needs from outside: somebody who gets tasks to agents, wherever those are."""

import asyncio
from typing import Protocol

from nexus_ray.agents.task import TaskOrder, TaskResult


class Dispatcher(Protocol):
    """Gets a task to the host that its agent belongs to, and brings the result back."""

    def dispatch(self, order: TaskOrder) -> "asyncio.Future[TaskResult]":
        """Have a task run where its agent is; the future brings the result. Cancelling it cancels the task.

        The result is in this host's write stream, or was recorded by the host that ran the task.

        Raises, through the future:
            UnavailableError: It is not known whether the task ran; look its step up before asking again.
            ResourceExhaustedError: The agent or its host is full; it did not run.
        """
        ...

    async def forget_goal(self, goal_id: str) -> None:
        """Let the agents go that lived for a goal only, which has ended."""
        ...
