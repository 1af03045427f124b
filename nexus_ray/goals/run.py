"""One run of a goal's function: what its team asks for, answered from the journal or by the fleet."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from nexus_ray.agents.agent import Agent
from nexus_ray.agents.promise import Promise
from nexus_ray.agents.spec import AgentSpec
from nexus_ray.agents.task import Failure, TaskOrder, TaskResult
from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import ResourceExhaustedError, UnavailableError
from nexus_ray.core.ids import digest
from nexus_ray.goals.machine import GoalMachine
from nexus_ray.goals.spec import GoalFunction, GoalSpec
from nexus_ray.goals.step import step_body, step_result
from nexus_ray.ledger.goal import Entry, EntryKind, Goal, Note, Outcome, Step
from nexus_ray.ledger.ports import Ledger

if TYPE_CHECKING:
    from nexus_ray.goals.coordinator import Coordinator

_PAGE_ENTRIES = 5000
_KINDS = frozenset({EntryKind.STEP, EntryKind.TIMER, EntryKind.ASKED, EntryKind.ANSWERED})
_ASK_AGAIN_FIRST_S = 0.05
_ASK_AGAIN_CEILING_S = 1.0


async def read_entries(ledger: Ledger, goal_id: str) -> dict[str, Entry]:
    """Read what a goal's journal holds under keys; what agents did outside is theirs to know.

    Where the ledger is away, this waits for it: that is no failure of the goal's.
    """
    entries: dict[str, Entry] = {}
    seq = 0
    delay_s = _ASK_AGAIN_FIRST_S
    while True:
        try:
            page = await ledger.journal(goal_id, seq, _PAGE_ENTRIES)
        except UnavailableError:
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _ASK_AGAIN_CEILING_S)
            continue
        entries.update((entry.step_key, entry) for entry in page if entry.kind in _KINDS)
        if len(page) < _PAGE_ENTRIES:
            return entries
        seq = page[-1].seq


class GoalRun:
    """Implements `ports.Run` for one goal on one host."""

    def __init__(
        self,
        coordinator: "Coordinator",
        goal: Goal,
        machine: GoalMachine,
        traceparent: str,
        entries: Mapping[str, Entry],
        *,
        is_stopped: bool = False,
    ) -> None:
        self._coordinator = coordinator
        self._machine = machine
        self._entries = entries
        self._news: asyncio.Event | None = None
        self.goal = goal
        self.traceparent = traceparent
        self.clock: Clock = coordinator.clock
        self.settings = coordinator.settings
        self.is_stopped = is_stopped
        self.stopped_at: float | None = self.clock.now() if is_stopped else None

    @property
    def may_go_on(self) -> bool:
        """Tell whether this host is to do anything more for the goal."""
        return not (self._machine.is_over or self._machine.is_leaving or self._coordinator.is_closing)

    @property
    def undo_until(self) -> float:
        """The instant until which what was done may be undone."""
        since = self.goal.deadline_at if self.stopped_at is None else self.stopped_at
        return since + self.settings.stop_grace_s

    def entry(self, step_key: str) -> Entry | None:
        """Return what stood under a key when this run began."""
        return self._entries.get(step_key)

    async def look_for(self, step_key: str) -> Entry | None:
        """Return what stands under a key now."""
        return await self._coordinator.ledger.entry(self.goal.id, step_key)

    async def record(self, step_key: str, kind: EntryKind, body: bytes) -> bool:
        """Write something under a key; true when it is durable."""
        return await self._coordinator.stream.write(
            Step(self.goal.id, step_key, self.clock.now(), body, kind=kind)
        )

    async def poked(self, wait_s: float) -> None:
        """Return when somebody says that there is news of the goal, or after a while."""
        if self._news is None:
            self._news = asyncio.Event()
        try:
            async with asyncio.timeout(wait_s):
                await self._news.wait()
        except TimeoutError:
            pass

    def poke(self) -> None:
        """Say that there is news of the goal."""
        if self._news is not None:
            self._news.set()
            self._news = None

    def recorded(self, step_key: str) -> TaskResult | None:
        """Return the result that stood in the journal when this run began."""
        entry = self._entries.get(step_key)
        return None if entry is None else step_result(step_key, entry.body)

    async def look_up(self, step_key: str) -> TaskResult | None:
        """Return the result that stands in the journal now."""
        entry = await self.look_for(step_key)
        return None if entry is None else step_result(step_key, entry.body)

    def dispatch(self, order: TaskOrder) -> Promise[TaskResult]:
        """Have a task run where its agent is."""
        return self._coordinator.dispatcher.dispatch(order)

    async def sub_goal(self, spec: GoalSpec, step_key: str, payload: bytes, deadline_at: float) -> TaskResult:
        """Accept a goal of this goal, see it to its outcome and record that as a step."""
        # A child's id is its parent's and a part of its own.
        if self.goal.id.count(".") >= self.settings.depth_max:
            raise ResourceExhaustedError(
                f"goals of goals go {self.settings.depth_max} deep (goals.depth_max): does {spec.type} submit itself?"
            )
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
            tenant=self.goal.tenant,
        )
        if self._coordinator.rights is not None:
            child = self._coordinator.rights.handed_on(self.goal, child)
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
        self._coordinator.stream.tell(Step(self.goal.id, step_key, result.ended_at, body))
        return result

    async def _outcome(self, child: Goal) -> Outcome:
        delay_s = _ASK_AGAIN_FIRST_S
        while True:
            try:
                return await self._coordinator.sub_goal(child)
            except UnavailableError:
                # Accepting is idempotent and the child goes on meanwhile, wherever it is.
                if child.deadline_at + self.settings.stop_grace_s <= self.clock.now() + delay_s:
                    raise
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _ASK_AGAIN_CEILING_S)

    def note(self, kind: EntryKind, body: bytes) -> None:
        """Tell followers something; a run that replays says it again, which harms nobody."""
        self._coordinator.stream.tell(Note(self.goal.id, self.clock.now(), body, kind))

    def check_may_ask(self, agent_type: str) -> None:
        """Refuse an agent type that whoever the goal acts for may not ask."""
        if self._coordinator.rights is not None:
            self._coordinator.rights.may_ask(self.goal, agent_type)

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
    if inner.agent.startswith("goal:"):
        # It says already which goal it was; those between would only bury it.
        return replace(inner, error_type=outcome.status.value)
    return Failure(
        code=inner.code,
        message=f"goal {child.type} ({child.id}) {outcome.status}: {inner.message}",
        error_type=outcome.status.value,
        agent=inner.agent or f"goal:{child.type}",
        host=inner.host,
        attempts=inner.attempts or 1,
        step=inner.step,
    )
