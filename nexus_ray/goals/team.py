"""The team: what a goal sees of the agents. Every call on it is a step that is recorded once.

A step that stands in the journal is answered from there. One that does not is asked, and asked again while nobody
knows whether it ran, until the deadline.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from nexus_ray.agents.agent import Agent
from nexus_ray.agents.promise import Promise
from nexus_ray.agents.runner import private_key
from nexus_ray.agents.schema import dump_json
from nexus_ray.agents.spec import AgentSpec
from nexus_ray.agents.task import TaskOrder
from nexus_ray.core.deadline import Deadline
from nexus_ray.core.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from nexus_ray.core.identity import AgentId, check_key
from nexus_ray.goals import strategies
from nexus_ray.goals.asking import Asked, settle, task_failed
from nexus_ray.goals.ports import Run
from nexus_ray.goals.questions import Approval, question_key
from nexus_ray.goals.saga import SagaStep, saga
from nexus_ray.goals.spec import GoalFunction
from nexus_ray.goals.step import StepKeys
from nexus_ray.goals.strategies import Call
from nexus_ray.goals.waiting import approval, is_answered, is_due, sleep_until
from nexus_ray.ledger.goal import EntryKind

T = TypeVar("T")

AgentRef = type[Agent] | str
GoalRef = GoalFunction | str


class Prepared(NamedTuple):
    """A question that was checked, and is not asked yet."""

    spec: AgentSpec
    key: str
    body: bytes

    @property
    def name(self) -> str:
        """Whom it is for."""
        return f"{self.spec.type}/{self.key}"


class Team:
    """The agents of a fleet, as one goal sees them."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._keys = StepKeys()
        self._specs: dict[AgentRef, AgentSpec] = {}  # What was asked before, so that each ask is one look-up.
        self._allowed: set[str] = set()  # Agent types that may be asked.
        self._asking: set[asyncio.Future[Any]] = set()  # What is waited for now.
        self._headers = {**run.goal.headers, "traceparent": run.traceparent}
        self._questions: set[str] = set()  # The keys of what people were asked.
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
            PermissionDeniedError: Whoever submitted the goal may not ask it.
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
            PermissionDeniedError: Whoever submitted the goal may not ask it.
        """
        prepared = self.prepare(agent, payload, key)
        spec, _, body = prepared
        step_key = self._keys.next(spec.type, key, body)
        return self.put(prepared, step_key, self._deadline_at(timeout_s))

    def prepare(self, agent: AgentRef, payload: Any, key: str) -> Prepared:
        """Check what is to be asked, without asking it; raises what `begin` raises."""
        spec = self._agent_spec(agent)
        check_key(key)
        return Prepared(spec, key, spec.payload.encode(payload, f"payload for {spec.type}/{key}"))

    def step_key(self, target: str, body: bytes) -> str:
        """Return the name of one more step that is no agent's."""
        return self._keys.next(target, "", body)

    def put(
        self, prepared: Prepared, step_key: str, deadline_at: float, *, undoes: bool = False
    ) -> "asyncio.Future[Any]":
        """Ask under a step key, unless its answer stands; `undoes` is asked even for a goal that was stopped."""
        spec, key, body = prepared
        result = self._run.recorded(step_key)
        if result is not None:
            answer: Promise[Any] = Promise()
            settle(answer, spec, result)
            return answer
        if self._is_closed or (self._run.is_stopped and not undoes):
            return self._not_asked()
        if spec.type not in self._allowed:
            self.check_may_ask(spec.type)
        is_private = spec.options.scope == "goal"
        order = TaskOrder(
            self.goal_id,
            step_key,
            AgentId(spec.type, private_key(self.goal_id, key) if is_private else key).of(self._run.goal.tenant),
            body,
            self._headers,
            deadline_at,
            is_private,
        )
        return Asked(self._run, spec, order, self._asking)

    def check_may_ask(self, agent_type: str) -> None:
        """Refuse an agent type that the goal may not ask; once for all asks of a run.

        Raises:
            PermissionDeniedError: Its submitter lacks `agent:ask` for it.
        """
        self._run.check_may_ask(agent_type)
        self._allowed.add(agent_type)

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
            result = await self._wait_for(self._run.sub_goal(spec, step_key, body, self._deadline_at(timeout_s)))
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

    async def sleep(self, seconds: float, *, key: str = "main") -> None:
        """Wait for a length of time that goes on over restarts: it is counted from the first time it was asked for.

        Raises:
            InvalidArgumentError: It would end after the goal's deadline.
        """
        if not 0 <= seconds < math.inf:
            raise InvalidArgumentError("a goal sleeps for 0 seconds or more")
        step_key = self._keys.next("timer:sleep", key, repr(float(seconds)).encode())
        await self._until(step_key, self._run.clock.now() + seconds)

    async def sleep_until(self, at: float | datetime, *, key: str = "main") -> None:
        """Wait for an instant (wall-clock seconds since 1970, or a datetime with a time zone).

        The instant of the first run counts, whatever a run after a crash works out. If the wall clock jumps forwards
        past it, it has come; if it jumps back, the wait takes no longer than it would have, except after a restart.

        Raises:
            InvalidArgumentError: It is after the goal's deadline.
        """
        if isinstance(at, datetime):
            if at.tzinfo is None:
                raise InvalidArgumentError("an instant has a time zone: datetime.now(UTC), for example")
            at = at.timestamp()
        await self._until(self._keys.next("timer:until", key, b""), at)

    async def _until(self, step_key: str, due_at: float) -> None:
        if not is_due(self._run, step_key):
            await self._wait_for(sleep_until(self._run, step_key, due_at))

    async def approval(
        self, question: str, *, key: str = "main", to: str = "", timeout_s: float | None = None
    ) -> Approval:
        """Ask a person, and wait for the answer for as long as it takes, over restarts.

        The person answers by `POST /v1/goals/ID/questions/KEY` or `nexus goal answer ID KEY --yes`; the first answer
        stands.

        Args:
            question: What is asked, as text.
            key: Names the question within the goal, where it asks several.
            to: The role, or the principal, that may answer; whoever may answer questions at all where not given.
            timeout_s: Seconds from the first time it was asked; until the goal's deadline where not given.

        Raises:
            DeadlineExceededError: Nobody answered in time.
            InvalidArgumentError: A question of this key was asked before, or it is malformed.
        """
        step_key = question_key(key)
        if key in self._questions:
            raise InvalidArgumentError(f"question {key!r} was asked already: give each its own key")
        self._questions.add(key)
        waiting = approval(self._run, step_key, key, question, to, self._deadline_at(timeout_s))
        return await (waiting if is_answered(self._run, step_key) else self._wait_for(waiting))

    async def saga(self, steps: Sequence[SagaStep]) -> list[Any]:
        """Ask for actions in order; if one fails, or the goal is cancelled or expires, undo the others, last first.

        A compensation is tried until it is done, for `goals.stop_grace_s` after the goal's end at the longest. One
        that fails for good does not keep the others from being tried. An action of which nobody knows whether it was
        done is undone too: a compensation has to bear that there is nothing to undo.

        Raises:
            SagaFailedError: `details` name the action that `failed`, what was `compensated` and `not_compensated`.
            InvalidArgumentError, NotFoundError: A step is malformed; nothing was begun.
            PermissionDeniedError: An action or a compensation may not be asked; nothing was begun.
        """
        return await saga(self, self._run, steps)

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

    async def _wait_for(self, waiting: Coroutine[Any, Any, T]) -> T:
        """Wait for something that ends with the goal's function at the latest."""
        if self._is_closed or self._run.is_stopped:
            waiting.close()
            answer: T = await self._not_asked()
            return answer
        child = asyncio.ensure_future(waiting)
        self._asking.add(child)
        child.add_done_callback(self._asking.discard)
        return await child

    def _not_asked(self) -> "asyncio.Future[Any]":
        """Return what is never answered, where the goal goes on elsewhere, and cancelled where it was stopped.

        Raises:
            FailedPreconditionError: The goal has ended.
        """
        if self._run.is_stopped and not self._is_closed:
            stopped: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            stopped.cancel()
            return stopped
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
