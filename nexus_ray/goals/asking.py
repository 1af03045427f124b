"""Asking: one step under way, from the order that is sent to the answer that somebody waits for.

Law: what nobody knows the end of is looked up, and asked again, until the deadline; what failed is an error to raise.
"""

import asyncio
from typing import Any

from nexus_ray.agents.promise import Promise
from nexus_ray.agents.spec import AgentSpec
from nexus_ray.agents.task import Failure, TaskOrder, TaskResult
from nexus_ray.core.errors import (
    DeadlineExceededError,
    EffectUnknownError,
    ResourceExhaustedError,
    TaskFailedError,
    UnavailableError,
)
from nexus_ray.goals.ports import Run

_ASK_AGAIN_FIRST_S = 0.05
_ASK_AGAIN_CEILING_S = 1.0
_FULL_TRIES_MAX = 8  # A mailbox that stays full for some seconds is a refusal, not a hiccup.


class Asked(Promise[Any]):
    """The answer of one step under way: dispatched, and dispatched again while nobody knows whether it ran.

    Cancelling it cancels the task.
    """

    __slots__ = ("_asked", "_asking", "_is_last", "_order", "_run", "_spec")

    def __init__(self, run: Run, spec: AgentSpec, order: TaskOrder, asking: "set[asyncio.Future[Any]]") -> None:
        """`asking` holds the answer for as long as it is waited for."""
        super().__init__()
        self._run = run
        self._spec = spec
        self._order = order
        self._asking = asking
        asking.add(self)
        self._is_last = False  # What comes is the last word: it has been asked as often as is worth it.
        self._asked: asyncio.Future[TaskResult]
        self._asked = promise = run.dispatch(order)
        promise.tell(self._came)

    def cancel(self, msg: Any = None) -> bool:
        """Have nobody answer."""
        if self.done():
            return False
        self._asking.discard(self)
        self.resolve(None, asyncio.CancelledError())
        self._asked.cancel()
        return True

    def _came(self, asked: "asyncio.Future[TaskResult]") -> None:
        if self.done():
            if not asked.cancelled():
                asked.exception()  # Looked at, so that asyncio does not complain of what nobody needs any more.
            return
        if asked.cancelled():
            self.cancel()
            return
        error = asked.exception()
        if isinstance(error, UnavailableError | ResourceExhaustedError) and not self._is_last:
            self._is_last = True
            self._asked = asyncio.get_running_loop().create_task(self._again(error), name=str(self._order.agent))
            self._asked.add_done_callback(self._came)
            return
        self._asking.discard(self)
        if error is not None:
            self.resolve(None, error)
        else:
            settle(self, self._spec, asked.result())

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
            try:
                known = await self._run.look_up(order.step_key)
                if known is not None:
                    return known
                return await self._run.dispatch(order)
            except (UnavailableError, ResourceExhaustedError) as error:
                refusal = error


def settle(answer: Promise[Any], spec: AgentSpec, result: TaskResult) -> None:
    """Give a result to whoever waits, decoded, or raised as the error that it is."""
    if result.failure is not None:
        answer.resolve(None, task_failed(result.failure))
        return
    try:
        value = spec.result.decode(result.value, "result")
    except Exception as error:  # A schema may call code of the user's; what that raises is for the goal to see.
        answer.resolve(None, error)
    else:
        answer.resolve(value)


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
