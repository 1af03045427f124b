"""The runner: holds many agents in one process, activates them on first use and runs their tasks.

Law: nothing that a user's agent does can raise out of `run`; it becomes a `Failure` in the result. What does raise
(`UnavailableError`, `ResourceExhaustedError`) says that the task did not run to an end here and may be asked again.
A result that leaves this process, or that changed an agent's state, leaves only after it is durable.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, Field

from nexus_ray.agents.activation import Activation, Surroundings, task_failure
from nexus_ray.agents.crew import Crew, Job
from nexus_ray.agents.ports import Isolation, Recorder
from nexus_ray.agents.promise import Promise
from nexus_ray.agents.spec import AgentSpec
from nexus_ray.agents.task import AgentState, Failure, TaskOrder, TaskResult
from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import (
    DataLossError,
    DeadlineExceededError,
    FencedError,
    InvalidArgumentError,
    NexusError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    TaskFailedError,
    UnavailableError,
)
from nexus_ray.core.identity import AgentId
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger
from nexus_ray.observe.operation import observe
from nexus_ray.resilience.expiry import expiry
from nexus_ray.resilience.retry import RetryPolicy

log = get_logger("agents.runner")

# What a task's failure says by its own code; anything else is a fault of ours.
_TOLD = (
    TaskFailedError, DeadlineExceededError, InvalidArgumentError, UnavailableError, NotFoundError, DataLossError,
    PermissionDeniedError,
)  # fmt: skip


class RunnerSettings(BaseModel):
    """Limits of one agent host."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agents_max: int = 200_000
    """Agents active at once; at 4 KiB each this is under 1 GiB."""
    threads_max: int = 16
    """Threads for plain `def handle`; more only queue behind the interpreter's lock."""
    passivate_every_s: float = 5.0
    """How often idle agents are looked for."""
    body_bytes_max: int = 4 * 1024 * 1024
    """Largest result of a task and largest state of an agent; a larger one belongs in a store."""
    memory_bytes_max: int = Field(default=2 * 1024**3, ge=64 * 1024**2)
    """Memory of a host's process above which the agents that were idle longest are passivated, ten of a hundred at a
    time; the most that a pod of a thousand agents is meant to take."""
    beside_tasks_max: int = Field(default=1000, ge=1)
    """Tasks under way on a host from which on agents that live for one goal are placed elsewhere too: a fan-out of
    the usual size stays beside its goal."""
    beside_lag_s: float = Field(default=0.05, gt=0)
    """Lag of a host's event loop, in seconds, from which on they are: longer than any burst of short tasks takes."""
    stop_s_max: float = 10.0
    """How long an agent's `stop` may take; then it is given up, so that one that hangs holds up no other."""


class AgentRunner:
    """Runs tasks on the agents of one host; used from one event loop only."""

    def __init__(
        self,
        specs: Mapping[str, AgentSpec],
        *,
        host: str,
        recorder: Recorder,
        clock: Clock,
        settings: RunnerSettings,
        isolation: Isolation | None = None,
        admit: Callable[[TaskOrder], None] = lambda order: None,
    ) -> None:
        """`admit` raises `PermissionDeniedError` for an order that its sender may not give."""
        self._admit = admit
        self._specs = specs
        self._host = host
        self._recorder = recorder
        self._clock = clock
        self._settings = settings
        self._active: dict[AgentId, Activation] = {}
        self._counts: Counter[str] = Counter()
        self._private: dict[str, list[AgentId]] = {}
        self._threads = ThreadPoolExecutor(settings.threads_max, thread_name_prefix="agent")
        self._around = Surroundings(recorder, isolation, self._threads, settings.body_bytes_max)
        self._policies = {
            name: RetryPolicy(attempts_max=spec.options.retries + 1, codes=frozenset({"unknown", "unavailable"}))
            for name, spec in specs.items()
        }
        self._random = random.Random()
        self._crew = Crew()
        self._is_draining = False

    def counts(self) -> dict[str, int]:
        """Return how many agents are active, by type."""
        return {name: count for name, count in self._counts.items() if count}

    def active(self, limit: int, tenant: str = "") -> list[tuple[AgentId, int, int]]:
        """Return active agents, of one tenant if it is given, with the tasks that run and wait, `limit` at the most."""
        rows: list[tuple[AgentId, int, int]] = []
        for agent, activation in self._active.items():
            if len(rows) >= limit:
                break
            if tenant and agent.tenant != tenant:
                continue
            rows.append((agent, activation.mailbox.running, activation.mailbox.waiting))
        return rows

    @property
    def under_way(self) -> int:
        """How many tasks wait or run here."""
        return self._crew.under_way

    def is_awake(self, agent: AgentId) -> bool:
        """Tell whether an agent is active here."""
        return agent in self._active

    def spreads(self, agent_type: str) -> bool:
        """Tell whether agents of a type are to be spread over the hosts, though they live for one goal only."""
        spec = self._specs.get(agent_type)
        return spec is not None and spec.options.spread

    def run(self, order: TaskOrder, *, is_local: bool) -> Promise[TaskResult]:
        """Run one task; record it here if the agent has durable state or who asks is here.

        Cancelling the promise cancels the task.

        The result of an agent without durable state that another host asked is recorded by that host, by `take_in`:
        in its stream, before the outcome that follows from it, and without waiting for the disk on the way.

        Args:
            order: What to run; `order.deadline_at` bounds waiting and running together.
            is_local: Who asks is in this process, so the result need not wait for its record, unless state changed.

        Raises, through the promise:
            UnavailableError: Draining, or the record did not take effect; look the step up before asking again.
            ResourceExhaustedError: The mailbox or the host is full.
        """
        return self._crew.start(self._run(order, is_local), order.deadline_at - self._clock.now(), order.goal_id)

    async def _run(self, order: TaskOrder, is_local: bool) -> TaskResult:
        job = self._crew.current
        assert job is not None  # Nothing was awaited yet.
        if self._is_draining:
            raise UnavailableError("the host is draining", host=self._host)
        spec = self._specs.get(order.agent.type)
        try:
            if spec is None:
                raise NotFoundError(f"there is no agent type {order.agent.type!r}")
            self._admit(order)
        except (NotFoundError, PermissionDeniedError) as error:
            now = self._clock.now()
            return TaskResult(order.step_key, b"", self._failure(order, error, 0), self._host, 0, now, now)
        activation = self._activation(order, spec)
        with observe(
            "agent.interaction", traceparent=order.headers.get("traceparent", ""), agent_type=spec.type
        ) as operation:
            if operation.is_kept:
                operation.set({"agent.id": str(order.agent), "goal.id": order.goal_id, "nexus.host": self._host})
            if not activation.mailbox.try_enter() and not await self._enter(activation, order, job):
                operation.result = "expired"
                return await self._expired_waiting(order, is_local)
            try:
                result, state = await self._attempts(activation, order, job, operation.traceparent)
                is_awaited = state is not None or (spec.state is not None and not is_local)
                if is_awaited:
                    pending = self._recorder.record(order, result, state)
                elif is_local:
                    self._recorder.keep(order, result)
            finally:
                activation.mailbox.leave()
            if result.failure is not None:
                operation.result = "expired" if result.failure.code == "deadline_exceeded" else "error"
                operation.set(
                    {
                        "agent.id": str(order.agent),
                        "goal.id": order.goal_id,
                        "error": result.failure.message,
                        "attempts": result.attempts,
                    }
                )
            if not is_awaited:
                return result
            return await self._durable(activation, order, result, pending)

    async def _enter(self, activation: Activation, order: TaskOrder, job: Job) -> bool:
        """Wait for a turn; False if the deadline passed before there was one."""
        try:
            await activation.mailbox.enter(order.goal_id)
        except asyncio.CancelledError:
            if not job.has_expired():
                raise
            return False
        except ResourceExhaustedError as error:
            metrics.count("nexus_mailbox_refusals_total", agent_type=order.agent.type)
            text = f"the mailbox of {order.agent} is full"
            raise ResourceExhaustedError(text, agent=str(order.agent), **error.details) from None
        return True

    async def _durable(
        self, activation: Activation, order: TaskOrder, result: TaskResult, pending: "asyncio.Future[bool]"
    ) -> TaskResult:
        try:
            took_effect = await pending
        except (FencedError, UnavailableError):
            self._drop(order.agent, activation)
            raise
        except NexusError as error:
            # The ledger will never take this result: then that is the result, else it would be asked for for ever.
            self._drop(order.agent, activation)
            result = result._replace(value=b"", failure=self._failure(order, error, result.attempts))
            took_effect = await self._recorder.record(order, result, None)
        if not took_effect:
            self._drop(order.agent, activation)
            raise UnavailableError("the result did not take effect: the agent or its goal is elsewhere now")
        return result

    def _activation(self, order: TaskOrder, spec: AgentSpec) -> Activation:
        agent = order.agent
        activation = self._active.get(agent)
        if activation is None:
            if len(self._active) >= self._settings.agents_max:
                raise ResourceExhaustedError("the host holds as many agents as it may", retry_after_s=1.0)
            activation = Activation(agent, spec, self._around)
            self._active[agent] = activation
            if order.private:
                self._private.setdefault(order.goal_id, []).append(agent)
            self._counts[spec.type] += 1
        return activation

    async def _attempts(
        self, activation: Activation, order: TaskOrder, job: Job, traceparent: str
    ) -> tuple[TaskResult, AgentState | None]:
        started_at = self._clock.now()
        timeout_s = activation.spec.options.timeout_s
        deadline_at = order.deadline_at if timeout_s is None else min(order.deadline_at, started_at + timeout_s)
        attempt = 0
        while True:
            attempt += 1
            error: NexusError
            try:
                if timeout_s is None:  # The order's own deadline is kept by the job.
                    value, state = await activation.handle(order, attempt, traceparent)
                else:
                    with expiry(deadline_at - self._clock.now()):
                        value, state = await activation.handle(order, attempt, traceparent)
                now = self._clock.now()
                activation.used_at = now
                return TaskResult(order.step_key, value, None, self._host, attempt, started_at, now), state
            except FencedError as fenced:
                await activation.after_failure(fenced)
                raise UnavailableError(fenced.message, host=self._host) from None
            except NexusError as raised:
                error = raised
            except (TimeoutError, asyncio.CancelledError) as ended:
                if isinstance(ended, TimeoutError) or job.has_expired():
                    late_s = deadline_at - started_at
                    error = DeadlineExceededError(f"{order.agent} did not answer within {late_s:.3g} s")
                elif job.is_cancelled:
                    await activation.after_failure(ended)
                    raise
                else:  # Nobody asked for it: the agent awaited something that was cancelled.
                    error = task_failure(order.agent, ended)
            await activation.after_failure(error)
            if isinstance(error, DataLossError):
                metrics.count("nexus_agents_quarantined_total", agent_type=order.agent.type)
                log.error("agent.quarantined", agent=str(order.agent), error=error.message)
            now = self._clock.now()
            activation.used_at = now
            policy = self._policies[order.agent.type]
            delay_s = policy.next_delay_s(attempt, error.code, deadline_at - now, self._random)
            if delay_s is None:
                failure = self._failure(order, error, attempt)
                return TaskResult(order.step_key, b"", failure, self._host, attempt, started_at, now), None
            await asyncio.sleep(delay_s)

    async def _expired_waiting(self, order: TaskOrder, is_local: bool) -> TaskResult:
        now = self._clock.now()
        error = DeadlineExceededError(f"the deadline passed while the task waited for {order.agent}")
        result = TaskResult(order.step_key, b"", self._failure(order, error, 0), self._host, 0, now, now)
        if is_local:
            self._recorder.keep(order, result)
        elif self._specs[order.agent.type].state is not None:
            await self._recorder.record(order, result, None)
        return result

    def take_in(self, order: TaskOrder, result: TaskResult) -> None:
        """Record a result that another host sent, where that is left to the host that asked."""
        spec = self._specs.get(order.agent.type)
        if spec is None or spec.state is None:
            self._recorder.keep(order, result)

    def _failure(self, order: TaskOrder, error: NexusError, attempts: int) -> Failure:
        return Failure(
            code=error.code if isinstance(error, _TOLD) else "internal",
            message=error.message,
            error_type=str(error.details.get("error_type", type(error).__name__)),
            agent=str(order.agent),
            host=self._host,
            attempts=attempts,
            step=order.step_key,
        )

    # --- Passivation. An agent that is asked again is simply activated again.

    async def passivate(self, *, idle_only: bool = True, keep: Callable[[AgentId], bool] | None = None) -> int:
        """Stop agents that nobody uses; return how many.

        Args:
            idle_only: Only those idle for longer than their type's `idle_s`; else every one without a task.
            keep: Tells of an agent whether it still belongs here; others go as soon as they are without a task.
        """
        now = self._clock.now()
        leaving = []
        for agent, activation in self._active.items():
            if not activation.mailbox.is_idle:
                continue
            is_old = now - activation.used_at >= activation.spec.options.idle_s
            if is_old or not idle_only or (keep is not None and not keep(agent)):
                leaving.append((agent, activation))
        return await self._let_go(leaving)

    async def make_room(self, memory_bytes: int) -> int:
        """Passivate the agents that were idle longest, where this process takes more memory than it may.

        Returns how many. A part of them only: whether that was enough is seen at the next look.
        """
        if memory_bytes <= self._settings.memory_bytes_max:
            return 0
        idle = [(agent, one) for agent, one in self._active.items() if one.mailbox.is_idle]
        idle.sort(key=lambda pair: pair[1].used_at)
        leaving = idle[: max(1, len(self._active) // 10)]
        log.warning("host.memory_short", memory_bytes=memory_bytes, agents=len(self._active), passivated=len(leaving))
        return await self._let_go(leaving)

    async def _let_go(self, leaving: "list[tuple[AgentId, Activation]]") -> int:
        for agent, activation in leaving:
            self._drop(agent, activation)
        await asyncio.gather(*(self._stop(agent, activation) for agent, activation in leaving))
        return len(leaving)

    async def forget_goal(self, goal_id: str) -> None:
        """Stop the agents that lived for one goal only."""
        for agent in self._private.pop(goal_id, ()):
            activation = self._active.get(agent)
            if activation is not None:
                self._drop(agent, activation)
                await self._stop(agent, activation)

    async def drain(self) -> None:
        """Take no more tasks; agents stop as their tasks end."""
        self._is_draining = True
        await self.passivate(idle_only=False)

    async def close(self) -> None:
        """Stop every agent, whatever it is doing."""
        self._is_draining = True
        await self._crew.close()
        await self._let_go(list(self._active.items()))
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _stop(self, agent: AgentId, activation: Activation) -> None:
        try:
            async with asyncio.timeout(self._settings.stop_s_max):
                await activation.stop()
        except TimeoutError:
            log.warning("agent.stop_given_up", agent=str(agent), after_s=self._settings.stop_s_max)

    def _drop(self, agent: AgentId, activation: Activation) -> None:
        if self._active.get(agent) is activation:
            del self._active[agent]
            self._counts[agent.type] -= 1

    def publish_counts(self, node: str) -> None:
        """Set `nexus_active_agents` for every type, the ones without agents included."""
        for name in self._specs:
            metrics.gauge("nexus_active_agents", self._counts[name], node=node, agent_type=name)



def private_key(goal_id: str, key: str) -> str:
    """Return the key under which an agent that lives for one goal is active."""
    return f"{goal_id}:{key}"
