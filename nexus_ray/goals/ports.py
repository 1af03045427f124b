"""What the coordinator needs from outside: somebody who gets tasks to agents, wherever those are."""

from typing import Protocol

from nexus_ray.agents.task import TaskOrder, TaskResult


class Dispatcher(Protocol):
    """Gets a task to the host that its agent belongs to, and brings the result back."""

    async def dispatch(self, order: TaskOrder) -> TaskResult:
        """Run a task where its agent is. Cancelling the call cancels the task.

        The result was recorded by the host that ran the task.

        Raises:
            UnavailableError: It is not known whether the task ran; look its step up before asking again.
            ResourceExhaustedError: The agent or its host is full; it did not run.
        """
        ...
