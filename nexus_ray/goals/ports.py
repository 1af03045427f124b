"""What coordination needs from outside: somebody who gets tasks to agents, and for a team, the run of its goal."""

from typing import Protocol

from nexus_ray.agents.agent import Agent
from nexus_ray.agents.promise import Promise
from nexus_ray.agents.spec import AgentSpec
from nexus_ray.agents.task import TaskOrder, TaskResult
from nexus_ray.core.clock import Clock
from nexus_ray.goals.limits import CoordinatorSettings
from nexus_ray.goals.spec import GoalFunction, GoalSpec
from nexus_ray.ledger.goal import Entry, EntryKind, Goal


class Dispatcher(Protocol):
    """Gets a task to the host that its agent belongs to, and brings the result back."""

    def dispatch(self, order: TaskOrder) -> Promise[TaskResult]:
        """Have a task run where its agent is; the promise brings the result. Cancelling it cancels the task.

        The result is in this host's write stream, or was recorded by the host that ran the task.

        Raises, through the promise:
            UnavailableError: It is not known whether the task ran; look its step up before asking again.
            ResourceExhaustedError: The agent or its host is full; it did not run.
        """
        ...

    async def forget_goal(self, goal_id: str) -> None:
        """Let the agents go that lived for a goal only, which has ended."""
        ...


class Run(Protocol):
    """What a team needs of the run of its goal."""

    goal: Goal
    clock: Clock
    settings: CoordinatorSettings
    traceparent: str
    is_stopped: bool
    """The goal was stopped before this run: what is not on record is not asked any more, it is only undone."""

    @property
    def may_go_on(self) -> bool:
        """Tell whether this host is to do anything more for the goal: it may be leaving it, or the goal may be over."""
        ...

    @property
    def undo_until(self) -> float:
        """The instant until which what was done may be undone, in wall-clock seconds."""
        ...

    def entry(self, step_key: str) -> Entry | None:
        """Return what stands under a key, as far as this run has read the journal."""
        ...

    async def look_for(self, step_key: str) -> Entry | None:
        """Return what stands under a key now."""
        ...

    async def record(self, step_key: str, kind: EntryKind, body: bytes) -> bool:
        """Write something under a key; true when it is durable, false if the key stands or the goal is not ours."""
        ...

    async def poked(self, wait_s: float) -> None:
        """Return when somebody says that there is news of the goal, or after a while."""
        ...

    def recorded(self, step_key: str) -> TaskResult | None:
        """Return the result that stands in the journal, as far as this run has read it."""
        ...

    async def look_up(self, step_key: str) -> TaskResult | None:
        """Return the result that stands in the journal now."""
        ...

    def dispatch(self, order: TaskOrder) -> Promise[TaskResult]:
        """Have a task run where its agent is; see `Dispatcher`."""
        ...

    async def sub_goal(self, spec: GoalSpec, step_key: str, payload: bytes, deadline_at: float) -> TaskResult:
        """Accept a goal of this goal, see it to its outcome and record that as a step."""
        ...

    def note(self, kind: EntryKind, body: bytes) -> None:
        """Tell followers something that decides nothing."""
        ...

    def check_may_ask(self, agent_type: str) -> None:
        """Refuse an agent type that whoever the goal acts for may not ask.

        Raises:
            PermissionDeniedError: Not allowed.
        """
        ...

    def agent_spec(self, name: str) -> AgentSpec | None:
        """Return an agent type by its name."""
        ...

    def goal_spec(self, name: str) -> GoalSpec | None:
        """Return a goal type by its name."""
        ...

    def agent_type(self, cls: type[Agent]) -> str | None:
        """Return the name under which a class was declared."""
        ...

    def goal_type(self, function: GoalFunction) -> str | None:
        """Return the name under which a function was declared."""
        ...
