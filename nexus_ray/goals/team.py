"""The team: what a goal sees of the agents. Every call on it is a step that is recorded once.

A step that stands in the journal is answered from there. One that does not is asked, and asked again while nobody
knows whether it ran, until the deadline.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nexus_ray.agents.agent import Agent
from nexus_ray.agents.runner import private_key
from nexus_ray.agents.schema import dump_json
from nexus_ray.agents.spec import AgentSpec
from nexus_ray.agents.task import Failure, TaskOrder, TaskResult
from nexus_ray.core.clock import Clock
from nexus_ray.core.deadline import Deadline
from nexus_ray.core.errors import (
    DeadlineExceededError,
    EffectUnknownError,
    FailedPreconditionError,
    InvalidArgumentError,
    NexusError,
    NotFoundError,
    ResourceExhaustedError,
    TaskFailedError,
    UnavailableError,
)
from nexus_ray.core.identity import AgentId, check_key
from nexus_ray.goals import strategies
from nexus_ray.goals.goal import EntryKind, Goal
from nexus_ray.goals.spec import GoalFunction, GoalSpec
from nexus_ray.goals.step import StepKeys
from nexus_ray.goals.strategies import Call

_ASK_AGAIN_FIRST_S = 0.05
_ASK_AGAIN_CEILING_S = 1.0
_FULL_TRIES_MAX = 8  # A mailbox that stays full for some seconds is a refusal, not a hiccup.

AgentRef = type[Agent] | str
GoalRef = GoalFunction | str


class Run(Protocol):
    """What a team needs of the run of its goal."""

    goal: Goal
    clock: Clock
    traceparent: str

    def recorded(self, step_key: str) -> TaskResult | None:
        """Return the result that stands in the journal, as far as this run has read it."""
        ...

    async def look_up(self, step_key: str) -> TaskResult | None:
        """Return the result that stands in the journal now."""
        ...

    def dispatch(self, order: TaskOrder) -> "asyncio.Future[TaskResult]":
        """Have a task run where its agent is; see `Dispatcher`."""
        ...

    async def sub_goal(self, spec: GoalSpec, step_key: str, payload: bytes, deadline_at: float) -> TaskResult:
        """Accept a goal of this goal, see it to its outcome and record that as a step."""
        ...

    def note(self, kind: EntryKind, body: bytes) -> None:
        """Tell followers something that decides nothing."""
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


class Team:
    """The agents of a fleet, as one goal sees them."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._keys = StepKeys()
        self._specs: dict[AgentRef, AgentSpec] = {}  # What was asked before, so that each ask is one look-up.
        self._asking: set[asyncio.Future[Any]] = set()  # What is waited for now.
        self._headers = {**run.goal.headers, "traceparent": run.traceparent}
        self._is_closed = False
        self._is_leaving = False

    @property
    def goal_id(self) -> str:
        """The id of the goal that this team works for."""
        return self._run.goal.id

    @property
    def deadline(self) -> Deadline:
        """The instant at which the goal expires."""
        return Deadline(self._run.goal.deadline_at)

    async def ask(
        self, agent: AgentRef, payload: Any = None, *, key: str = "main", timeout_s: float | None = None
    ) -> Any:
        """Ask one agent and return its answer.

        Raises:
            TaskFailedError: It failed for good; `details` say what failed, where and how often it was tried.
            InvalidArgumentError: The payload does not fit the agent.
            NotFoundError: There is no such agent type.
        """
        return await self.begin(agent, payload, key=key, timeout_s=timeout_s)

    def begin(
        self, agent: AgentRef, payload: Any = None, *, key: str = "main", timeout_s: float | None = None
    ) -> "asyncio.Future[Any]":
        """Ask one agent without waiting; the future brings the answer, or what `ask` raises.

        Cancelling the future cancels the task.

        Raises:
            InvalidArgumentError: The payload does not fit the agent.
            NotFoundError: There is no such agent type.
        """
        spec = self._agent_spec(agent)
        check_key(key)
        body = spec.payload.encode(payload, f"payload for {spec.type}/{key}")
        step_key = self._keys.next(spec.type, key, body)
        result = self._run.recorded(step_key)
        if result is not None:
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            _settle(answer, spec, result)
            return answer
        if self._is_closed:
            return self._not_asked()
        is_private = spec.options.scope == "goal"
        order = TaskOrder(
            self.goal_id,
            step_key,
            AgentId(spec.type, private_key(self.goal_id, key) if is_private else key),
            body,
            self._headers,
            self._deadline_at(timeout_s),
            is_private,
        )
        return _Question(self._run, spec, order, self._asking).answer

    async def goal(self, goal: GoalRef, payload: Any = None, *, timeout_s: float | None = None) -> Any:
        """Submit a goal of this goal, wait for its outcome and return its result.

        Raises:
            TaskFailedError: It did not succeed; `details["error_type"]` is its status.
            InvalidArgumentError: The payload does not fit.
            NotFoundError: There is no such goal type.
        """
        name = goal if isinstance(goal, str) else self._run.goal_type(goal)
        spec = self._run.goal_spec(name) if name else None
        if spec is None:
            raise NotFoundError(f"there is no goal type {goal!r} in this app")
        body = spec.payload.encode(payload, f"payload for goal {spec.type}")
        step_key = self._keys.next(f"goal:{spec.type}", "", body)
        result = self._run.recorded(step_key)
        if result is None:
            if self._is_closed:
                return await self._not_asked()
            deadline_at = self._deadline_at(timeout_s)
            child = asyncio.ensure_future(self._run.sub_goal(spec, step_key, body, deadline_at))
            self._asking.add(child)
            child.add_done_callback(self._asking.discard)
            result = await child
        if result.failure is not None:
            raise task_failed(result.failure)
        return spec.result.decode(result.value, f"result of goal {spec.type}")

    async def fan_out(
        self,
        agent: AgentRef,
        payloads: Sequence[Any],
        *,
        key: Callable[[Any], str] | None = None,
        quorum: float | int | None = None,
        timeout_s: float | None = None,
        return_errors: bool = False,
        concurrency: int = 1000,
    ) -> list[Any]:
        """Ask one agent per payload; see `strategies.fan_out`."""
        return await strategies.fan_out(
            self, agent, payloads, key=key, quorum=quorum, timeout_s=timeout_s,
            return_errors=return_errors, concurrency=concurrency,
        )  # fmt: skip

    async def map_reduce(
        self,
        mapper: AgentRef,
        payloads: Sequence[Any],
        reducer: AgentRef,
        *,
        key: Callable[[Any], str] | None = None,
        reduce_key: str = "main",
        arity: int = 64,
        timeout_s: float | None = None,
    ) -> Any:
        """Map payloads over agents and reduce the answers by tree; see `strategies.map_reduce`."""
        return await strategies.map_reduce(
            self, mapper, payloads, reducer, key=key, reduce_key=reduce_key, arity=arity, timeout_s=timeout_s
        )

    async def race(self, calls: Sequence[Call], *, timeout_s: float | None = None) -> Any:
        """Return the first good answer and cancel the rest; see `strategies.race`."""
        return await strategies.race(self, calls, timeout_s=timeout_s)

    async def hedge(
        self, agent: AgentRef, payload: Any, *, keys: Sequence[str], after_s: float, timeout_s: float | None = None
    ) -> Any:
        """Ask the next key whenever `after_s` passes without an answer; see `strategies.hedge`."""
        return await strategies.hedge(self, agent, payload, keys=keys, after_s=after_s, timeout_s=timeout_s)

    async def vote(
        self,
        agent: AgentRef,
        payload: Any,
        *,
        voters: int = 3,
        agree: int = 2,
        key: str = "voter",
        by: Callable[[Any], Any] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Return the answer that `agree` of `voters` agents give; see `strategies.vote`."""
        return await strategies.vote(
            self, agent, payload, voters=voters, agree=agree, key=key, by=by, timeout_s=timeout_s
        )

    async def pipeline(self, payload: Any, *stages: AgentRef, key: str = "main", timeout_s: float | None = None) -> Any:
        """Give each stage the answer of the one before; see `strategies.pipeline`."""
        return await strategies.pipeline(self, payload, *stages, key=key, timeout_s=timeout_s)

    def note(self, content: Any) -> None:
        """Tell whoever follows the goal something (a JSON value): progress, a thought. It decides nothing."""
        self._run.note(EntryKind.NOTE, dump_json(content, "note"))

    def plan(self, strategy: str, agent: AgentRef, tasks: int) -> None:
        """Tell followers how many tasks a strategy is about to ask for, so that they can draw a progress bar."""
        name = agent if isinstance(agent, str) else self._run.agent_type(agent) or agent.__name__
        self._run.note(EntryKind.PLANNED, dump_json({"strategy": strategy, "agent": name, "tasks": tasks}))

    def close(self) -> None:
        """Give up the questions that are under way, and refuse others: the goal's function has ended.

        A function may leave some behind, such as the rest of an `asyncio.gather` of which one has failed.
        """
        self._is_closed = True
        self._is_leaving = False
        for answer in list(self._asking):
            answer.cancel()

    async def quiesce(self) -> None:
        """Ask nothing more, and return when the agents that were asked have answered: the goal goes on elsewhere.

        Goals of this goal are not waited for: they are on record, and are found again.
        """
        self._is_closed = self._is_leaving = True
        asked = [answer for answer in self._asking if not isinstance(answer, asyncio.Task)]
        if asked:
            await asyncio.wait(asked)

    def _not_asked(self) -> "asyncio.Future[Any]":
        """Return what is never answered, where the goal goes on elsewhere; it is asked there.

        Raises:
            FailedPreconditionError: The goal has ended.
        """
        if not self._is_leaving:
            raise FailedPreconditionError(f"goal {self.goal_id} has ended: nobody is asked for it any more")
        never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asking.add(never)
        return never

    def _agent_spec(self, agent: AgentRef) -> AgentSpec:
        spec = self._specs.get(agent)
        if spec is None:
            name = agent if isinstance(agent, str) else self._run.agent_type(agent)
            spec = self._run.agent_spec(name) if name else None
            if spec is None:
                raise NotFoundError(f"there is no agent type {agent!r} in this app")
            self._specs[agent] = spec
        return spec

    def _deadline_at(self, timeout_s: float | None) -> float:
        if timeout_s is None:
            return self._run.goal.deadline_at
        if timeout_s <= 0:
            raise InvalidArgumentError("timeout_s must be more than 0 seconds")
        return min(self._run.goal.deadline_at, self._run.clock.now() + timeout_s)


class _Question:
    """One step under way: dispatched, and dispatched again while nobody knows whether it ran."""

    __slots__ = ("_asked", "_asking", "_is_last", "_order", "_run", "_spec", "answer")

    def __init__(self, run: Run, spec: AgentSpec, order: TaskOrder, asking: "set[asyncio.Future[Any]]") -> None:
        """`asking` holds the answer for as long as it is waited for."""
        self._run = run
        self._spec = spec
        self._order = order
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.answer.add_done_callback(self._ended)
        self._asking = asking
        asking.add(self.answer)
        self._is_last = False  # What comes is the last word: it has been asked as often as is worth it.
        self._asked = run.dispatch(order)
        self._asked.add_done_callback(self._came)

    def _ended(self, answer: "asyncio.Future[Any]") -> None:
        self._asking.discard(answer)
        if answer.cancelled():
            self._asked.cancel()

    def _came(self, asked: "asyncio.Future[TaskResult]") -> None:
        if self.answer.done():
            if not asked.cancelled():
                asked.exception()  # Looked at, so that asyncio does not complain of what nobody needs any more.
        elif asked.cancelled():
            self.answer.cancel()
        elif (error := asked.exception()) is None:
            _settle(self.answer, self._spec, asked.result())
        elif isinstance(error, UnavailableError | ResourceExhaustedError) and not self._is_last:
            self._is_last = True
            self._asked = asyncio.get_running_loop().create_task(self._again(error), name=str(self._order.agent))
            self._asked.add_done_callback(self._came)
        else:
            self.answer.set_exception(error)

    async def _again(self, refusal: UnavailableError | ResourceExhaustedError) -> TaskResult:
        order, clock = self._order, self._run.clock
        delay_s = _ASK_AGAIN_FIRST_S
        full_count = 0
        while True:
            if isinstance(refusal, ResourceExhaustedError):
                full_count += 1
                if full_count >= _FULL_TRIES_MAX:
                    raise refusal
            if order.deadline_at - clock.now() <= delay_s:
                raise DeadlineExceededError(
                    f"no answer from {order.agent} before the deadline: {refusal.message}", agent=str(order.agent)
                )
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _ASK_AGAIN_CEILING_S)
            known = await self._run.look_up(order.step_key)
            if known is not None:
                return known
            try:
                return await self._run.dispatch(order)
            except (UnavailableError, ResourceExhaustedError) as error:
                refusal = error


def _settle(answer: "asyncio.Future[Any]", spec: AgentSpec, result: TaskResult) -> None:
    """Give a result to whoever waits, decoded, or raised as the error that it is."""
    if result.failure is not None:
        answer.set_exception(task_failed(result.failure))
        return
    try:
        answer.set_result(spec.result.decode(result.value, "result"))
    except NexusError as error:
        answer.set_exception(error)


def task_failed(failure: Failure) -> TaskFailedError:
    """Return a stored failure as the error to raise."""
    is_unknown = failure.error_type == EffectUnknownError.__name__
    return (EffectUnknownError if is_unknown else TaskFailedError)(
        failure.message,
        failed_with=failure.code,
        error_type=failure.error_type,
        agent=failure.agent,
        host=failure.host,
        attempts=failure.attempts,
        step=failure.step,
    )
