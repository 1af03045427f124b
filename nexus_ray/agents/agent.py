"""What a user writes: an agent is a class with a `handle` method; a task is what it is handed.

An agent is virtual: `(type, key)` always exists, is activated on first use and passivated when idle.
"""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from nexus_ray.agents.effects import EffectFunction, perform, perform_in_thread
from nexus_ray.core.context import CallContext, Headers
from nexus_ray.core.deadline import Deadline
from nexus_ray.core.errors import FailedPreconditionError
from nexus_ray.core.identity import AgentId, Session

if TYPE_CHECKING:
    from nexus_ray.agents.ports import Effects


@dataclass(frozen=True, slots=True)
class Task:
    """One agent's share of a goal, as the agent sees it; `attempt` counts from 1.

    The task may run again after a crash with the same `idempotency_key`: give it to whatever happens outside.
    """

    goal_id: str
    step_key: str
    agent: AgentId
    attempt: int
    headers: Headers = field(repr=False)
    effects: "Effects | None" = field(default=None, repr=False, compare=False)

    @property
    def context(self) -> CallContext:
        """Who asks, until when, under which trace."""
        return CallContext.from_headers(self.headers)

    @property
    def idempotency_key(self) -> str:
        """A key that is the same however often this task runs."""
        return f"{self.goal_id}/{self.own_key}"

    @property
    def own_key(self) -> str:
        """What the step keys of all tries of this task have in common: a saga tries what undoes a step repeatedly."""
        return self.step_key.partition("#")[0]

    @property
    def deadline(self) -> Deadline:
        """The instant after which the answer is of no use."""
        return self.context.deadline

    @property
    def session(self) -> Session:
        """Who asked for the goal."""
        return self.context.session

    async def effect(self, name: str, function: EffectFunction, *, idempotent: bool = False) -> Any:
        """Do something outside of Nexus, once, and return what came of it (a JSON value).

        That it is about to be done is on disk before `function` is called, and what it returned before this returns.
        Where both stand, from an attempt or a host before, the recorded result is returned and nothing is done. Where
        only the first stands (a crash, an error, a timeout, in between), nobody knows whether it was done:
        `EffectUnknownError`, unless it is `idempotent`; then it is done again under the same key.

        What `function` raises is passed on, and leaves the outcome unknown too: a request whose answer was lost may
        have been carried out. Only `NotDoneError` says that nothing happened; then a later attempt may try again.

        Args:
            name: Names the effect within this task; the same name is the same effect.
            function: Async or plain (then it runs in a thread). An argument without a default gets the
                idempotency key, which is the same however often the effect is tried.
            idempotent: Doing it twice under one key is as good as once.

        Raises:
            EffectUnknownError: It was begun before, and whether it was done is not known. It is not retried.
        """
        return await perform(self._effects(), self, name, function, idempotent=idempotent)

    def run_effect(self, name: str, function: EffectFunction, *, idempotent: bool = False) -> Any:
        """Do something outside of Nexus, once: `effect` for a plain `def handle`; `function` runs in this thread.

        Raises:
            EffectUnknownError: It was begun before, and whether it was done is not known. It is not retried.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return perform_in_thread(self._effects(), self, name, function, idempotent=idempotent)
        raise RuntimeError("an async agent says `await task.effect(…)`: run_effect would hold up everybody here")

    def _effects(self) -> "Effects":
        if self.effects is None:
            raise FailedPreconditionError("no host runs this task, so there is nowhere to record an effect")
        return self.effects


class Agent:
    """The base of every agent: define `handle(self, payload, task)`, as `async def` or as plain `def`.

    A plain `def` runs in a thread. `start` is called at activation, before the first task, and `stop` at passivation.
    A class-level annotation `state: SomeType` makes the state durable: it is loaded at activation and committed
    with the task that changed it. Other attributes live as long as the agent is active. When the state's shape
    changes, count `state_version` up and define `upgrade`.
    """

    id: AgentId
    state_version: ClassVar[int] = 1

    @classmethod
    def upgrade(cls, state: Any, version: int) -> Any:
        """Return a state in today's shape from one (a JSON value) that was stored when `state_version` was `version`.

        What it raises quarantines the state: the agent refuses tasks, and what is stored stays as it is.
        """
        raise NotImplementedError(f"{cls.__name__} has no upgrade from version {version} of its state")

    async def start(self) -> None:
        """Get ready; an error here fails the task that activated the agent."""

    async def stop(self) -> None:
        """Let go of what `start` took; an error here is logged."""

    def __repr__(self) -> str:
        return f"<agent {getattr(self, 'id', type(self).__name__)}>"


AgentClass = type[Any]
