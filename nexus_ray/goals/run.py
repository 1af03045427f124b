"""One run of a goal's function: what its team asks for, answered from the journal or by the fleet."""

import asyncio
from typing import TYPE_CHECKING

from nexus_ray.agents.agent import Agent
from nexus_ray.agents.spec import AgentSpec
from nexus_ray.agents.task import Failure, TaskOrder, TaskResult
from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import UnavailableError
from nexus_ray.core.ids import digest
from nexus_ray.goals.goal import EntryKind, Goal, Note, Outcome, Step
from nexus_ray.goals.ledger import Ledger
from nexus_ray.goals.spec import GoalFunction, GoalSpec
from nexus_ray.goals.step import step_body, step_result

if TYPE_CHECKING:
    from nexus_ray.goals.coordinator import Coordinator

_PAGE_ENTRIES = 5000
_ASK_AGAIN_FIRST_S = 0.05
_ASK_AGAIN_CEILING_S = 1.0


async def read_steps(ledger: Ledger, goal_id: str) -> dict[str, TaskResult]:
    """Read the finished steps of a goal from its journal."""
    steps: dict[str, TaskResult] = {}
    seq = 0
    while True:
        entries = await ledger.journal(goal_id, seq, _PAGE_ENTRIES)
        for entry in entries:
            if entry.kind is EntryKind.STEP:
                steps[entry.step_key] = step_result(entry.step_key, entry.body)
        if len(entries) < _PAGE_ENTRIES:
            return steps
        seq = entries[-1].seq


class GoalRun:
    """Implements `team.Run` for one goal on one host."""

    def __init__(
        self, coordinator: "Coordinator", goal: Goal, traceparent: str, steps: dict[str, TaskResult]
    ) -> None:
        self._coordinator = coordinator
        self._steps = steps
        self.goal = goal
        self.traceparent = traceparent
        self.clock: Clock = coordinator.clock

    def recorded(self, step_key: str) -> TaskResult | None:
        """Return the result that stood in the journal when this run began."""
        return self._steps.get(step_key)

    async def look_up(self, step_key: str) -> TaskResult | None:
        """Return the result that stands in the journal now."""
        return (await read_steps(self._coordinator.ledger, self.goal.id)).get(step_key)

    def dispatch(self, order: TaskOrder) -> "asyncio.Future[TaskResult]":
        """Have a task run where its agent is."""
        return self._coordinator.dispatcher.dispatch(order)

    async def sub_goal(self, spec: GoalSpec, step_key: str, payload: bytes, deadline_at: float) -> TaskResult:
        """Accept a goal of this goal, see it to its outcome and record that as a step."""
        started_at = self.clock.now()
        child = Goal(
            # The id follows from parent and step: a parent that runs again finds the same child.
            id=f"{self.goal.id}.{digest(step_key.encode())[:12]}",
            type=spec.type,
            payload=payload,
            principal=self.goal.principal,
            accepted_at=started_at,
            deadline_at=min(deadline_at, started_at + spec.timeout_s) if spec.timeout_s else deadline_at,
            headers={**self.goal.headers, "traceparent": self.traceparent},
            parent=self.goal.id,
        )
        outcome = await self._outcome(child)
        result = TaskResult(
            step_key=step_key,
            value=outcome.result,
            failure=_sub_goal_failure(child, outcome),
            host=self._coordinator.host,
            attempts=1,
            started_at=started_at,
            ended_at=self.clock.now(),
        )
        body = step_body(f"goal:{spec.type}/{child.id}", result)
        self._coordinator.stream.write(Step(self.goal.id, step_key, result.ended_at, body), is_awaited=False)
        return result

    async def _outcome(self, child: Goal) -> Outcome:
        delay_s = _ASK_AGAIN_FIRST_S
        while True:
            try:
                return await self._coordinator.sub_goal(child)
            except UnavailableError:
                # Accepting is idempotent and the child goes on meanwhile, wherever it is.
                if child.deadline_at <= self.clock.now() + delay_s:
                    raise
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _ASK_AGAIN_CEILING_S)

    def note(self, kind: EntryKind, body: bytes) -> None:
        """Tell followers something; a run that replays says it again, which harms nobody."""
        self._coordinator.stream.write(Note(self.goal.id, self.clock.now(), body, kind), is_awaited=False)

    def agent_spec(self, name: str) -> AgentSpec | None:
        """Return an agent type by its name."""
        return self._coordinator.specs.agents.get(name)

    def goal_spec(self, name: str) -> GoalSpec | None:
        """Return a goal type by its name."""
        return self._coordinator.specs.goals.get(name)

    def agent_type(self, cls: type[Agent]) -> str | None:
        """Return the name under which a class was declared."""
        return self._coordinator.specs.agent_names.get(cls)

    def goal_type(self, function: GoalFunction) -> str | None:
        """Return the name under which a function was declared."""
        return self._coordinator.specs.goal_names.get(function)


def _sub_goal_failure(child: Goal, outcome: Outcome) -> Failure | None:
    if outcome.failure is None:
        return None
    inner = outcome.failure
    return Failure(
        code=inner.code,
        message=f"goal {child.type} ({child.id}) {outcome.status}: {inner.message}",
        error_type=outcome.status.value,
        agent=inner.agent or f"goal:{child.type}",
        host=inner.host,
        attempts=inner.attempts or 1,
        step=inner.step,
    )
