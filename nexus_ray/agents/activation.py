"""An activation: one agent, awake. It loads the state, calls the user's code and turns what comes back into bytes.

Law: the state in memory is never ahead of what the last successful task left: a failed attempt puts it back.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from nexus_ray.agents.agent import Agent, Task
from nexus_ray.agents.mailbox import Mailbox
from nexus_ray.agents.ports import Effects, IsolatedAgent, Isolation, Recorder
from nexus_ray.agents.spec import AgentSpec
from nexus_ray.agents.state import read_state
from nexus_ray.agents.task import AgentState, TaskOrder
from nexus_ray.core.errors import (
    DeadlineExceededError,
    FencedError,
    InvalidArgumentError,
    TaskFailedError,
    UnavailableError,
)
from nexus_ray.core.identity import AgentId
from nexus_ray.observe.logs import get_logger

log = get_logger("agents.activation")

# What a user's code may raise. The last two would take the whole host with them: a Ray actor does not survive them.
_FAILURES = (Exception, SystemExit, KeyboardInterrupt)
_MESSAGE_CHARACTERS_MAX = 500  # An agent's error text ends up in the ledger, in logs and in answers.


class Surroundings(NamedTuple):
    """What all agents of a host share. `body_bytes_max` bounds each result and each state."""

    recorder: Recorder
    isolation: Isolation | None
    threads: ThreadPoolExecutor
    body_bytes_max: int


class Activation:
    """One awake agent; used from one event loop only."""

    __slots__ = ("_agent", "_around", "_body", "_id", "_isolated", "_version", "_waking", "mailbox", "spec", "used_at")

    def __init__(self, agent: AgentId, spec: AgentSpec, around: Surroundings) -> None:
        self._id = agent
        self.spec = spec
        self._around = around
        self.mailbox = Mailbox(spec.options.concurrency, spec.options.mailbox_max)
        self.used_at = 0.0
        self._agent: Any = None
        self._isolated: IsolatedAgent | None = None
        self._body = b""
        self._version = 0
        self._waking = asyncio.Lock() if spec.options.concurrency > 1 else None

    async def handle(self, order: TaskOrder, attempt: int, traceparent: str) -> tuple[bytes, AgentState | None]:
        """Run one attempt; return the result as JSON, and the state if the task changed it.

        Raises:
            TaskFailedError: The agent raised, or returned what cannot be written; `details["error_type"]`.
            UnavailableError: The agent's process died or could not be had.
            InvalidArgumentError: The payload does not fit, or the state that is left is over the limit.
            FencedError: The state cannot be had, or an effect could not be recorded here: it is to be asked again.
        DataLossError: The stored state cannot be read: quarantined.
        """
        if self._agent is None and self._isolated is None:
            await self._wake_once()
        if self._isolated is not None:
            value, body = await self._isolated.handle(order, attempt, self._body)
            self._check_size(value, "result")
            return value, self._changed(body)
        value = await self._call(order, attempt, traceparent)
        if self.spec.state is None:
            return value, None
        return value, self._changed(self.spec.state.encode(self._agent.state, "state"))

    async def after_failure(self, error: BaseException) -> None:
        """Put the state back to what was last good, and give up a process that hangs, died or was told to stop."""
        if self._isolated is None:
            self._restore()
        elif isinstance(error, DeadlineExceededError | UnavailableError) or (
            isinstance(error, asyncio.CancelledError) and self.spec.options.concurrency == 1
        ):
            await self.stop()

    async def stop(self) -> None:
        """Let the agent go; errors of its `stop` are logged."""
        agent, self._agent = self._agent, None
        isolated, self._isolated = self._isolated, None
        if isolated is not None:
            await isolated.stop()
        if agent is not None and type(agent).stop is not Agent.stop:
            try:
                await agent.stop()
            except _FAILURES as error:
                log.warning("agent.stop_failed", agent=str(self._id), error=f"{type(error).__name__}: {error}")

    async def _wake_once(self) -> None:
        if self._waking is None:
            await self._wake()
            return
        async with self._waking:  # Several tasks may come to an agent that sleeps; it is one agent all the same.
            if self._agent is None and self._isolated is None:
                await self._wake()

    async def _wake(self) -> None:
        spec = self.spec
        if spec.state is not None:
            stored = await self._stored()
            self._body = read_state(spec, stored) if stored else b""
            self._version = stored.version if stored else 0
        if spec.options.isolation == "process":
            if self._around.isolation is None:
                raise UnavailableError("there are no processes for isolated agents here")
            self._isolated = await self._around.isolation.start(self._id, spec)
            return
        try:
            agent = wake(spec, self._id, self._body)
            if spec.cls.start is not Agent.start:
                await agent.start()
        except TaskFailedError:
            raise
        except _FAILURES as error:
            raise _raised(self._id, error) from error
        if spec.state is not None and not self._body:
            self._body = spec.state.encode(agent.state, "state")
        self._agent = agent

    async def _stored(self) -> AgentState | None:
        try:
            return await self._around.recorder.load(self._id)
        except UnavailableError as error:
            # No failure of the agent's: it is asked again, here or elsewhere, and the ledger is back by then.
            raise FencedError(f"the state of {self._id} cannot be had now: {error.message}") from None

    async def _call(self, order: TaskOrder, attempt: int, traceparent: str) -> bytes:
        spec = self.spec
        payload = spec.payload.decode(order.payload)
        arguments: tuple[Any, ...] = (payload,)
        if spec.wants_task:
            arguments = (payload, task_of(order, attempt, traceparent, self._around.recorder.effects))
        try:
            if spec.is_async:
                result = await self._agent.handle(*arguments)
            else:
                result = await self._in_thread(arguments)
            value = spec.result.encode(result, "result")
            self._check_size(value, "result")
            return value
        except (TaskFailedError, FencedError):
            raise
        except _FAILURES as error:
            raise _raised(self._id, error) from error

    async def _in_thread(self, arguments: tuple[Any, ...]) -> Any:
        future = asyncio.get_running_loop().run_in_executor(self._around.threads, self._agent.handle, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # A thread cannot be stopped. The caller is let go; the turn is given back when the thread ends, so that
            # the agent still does one thing at a time.
            if not future.done():
                self.mailbox.hold()
                future.add_done_callback(self._thread_ended)
            raise

    def _thread_ended(self, future: "asyncio.Future[Any]") -> None:
        if not future.cancelled():
            future.exception()  # Looked at, so that asyncio does not complain; the task has failed already.
        self._restore()  # What it did since its task was let go is no part of any task.
        self.mailbox.leave()

    def _restore(self) -> None:
        if self.spec.state is not None and self._agent is not None:
            self._agent.state = self.spec.state.decode(self._body, "state")

    def _changed(self, body: bytes) -> AgentState | None:
        if self.spec.state is None or (body == self._body and self._version):
            return None
        self._check_size(body, "state")
        self._body = body
        self._version += 1
        return AgentState(self._id, self._version, body, self.spec.state_version)

    def _check_size(self, body: bytes, what: str) -> None:
        if len(body) > self._around.body_bytes_max:
            raise InvalidArgumentError(
                f"the {what} of {self._id} has {len(body)} bytes, over the limit of {self._around.body_bytes_max}"
            )


def wake(spec: AgentSpec, agent_id: AgentId, state: bytes) -> Any:
    """Make an agent from its stored state (JSON), or with a new one where there is none."""
    agent = spec.cls()
    agent.id = agent_id.bare
    if spec.state is not None:
        agent.state = spec.state.decode(state, "state") if state else spec.state_type()
    return agent


def task_of(order: TaskOrder, attempt: int, traceparent: str, effects: Effects) -> Task:
    """Return the order as the agent sees it."""
    headers = {**order.headers, "deadline": repr(order.deadline_at), "traceparent": traceparent}
    return Task(order.goal_id, order.step_key, order.agent.bare, attempt, headers, effects)


def task_failure(agent: AgentId, error: BaseException) -> TaskFailedError:
    """Return what a user's code raised as an error that can be stored: its class and its text, no traceback."""
    text = f"{type(error).__name__}: {error}"[:_MESSAGE_CHARACTERS_MAX]
    return TaskFailedError(f"{agent} failed: {text}", error_type=type(error).__name__)


def _raised(agent: AgentId, error: BaseException) -> TaskFailedError:
    log.warning("task.raised", agent=str(agent), exc_info=error)
    return task_failure(agent, error)
