"""Effects: what an agent does outside of Nexus, with its intent and its end on record, so that nothing is guessed.

Law: the intent is durable before anything is done. Where it stands without an end, the outcome is unknown: it is said
so, and the effect is done again only if it was declared idempotent.
"""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from nexus_ray.agents.schema import dump_json, load_json
from nexus_ray.core.errors import (
    EffectUnknownError,
    FailedPreconditionError,
    FencedError,
    InvalidArgumentError,
    NexusError,
    NotDoneError,
    UnavailableError,
)

if TYPE_CHECKING:
    from nexus_ray.agents.agent import Task
    from nexus_ray.agents.ports import Effects

EffectFunction = Callable[..., Any]
T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,100}\Z")
_TRIES_MAX = 100  # As many as an agent's `retries` may be.
_VALUE_BYTES_MAX = 1024 * 1024  # A receipt, not a document: that belongs in a store, with its address in the receipt.


class Begun(NamedTuple):
    """An effect that is to be done now, under `step_key`; or one that was, and ended with `ended`."""

    step_key: str
    ended: dict[str, Any] | None


async def perform(effects: "Effects", task: "Task", name: str, function: EffectFunction, *, idempotent: bool) -> Any:
    """Do an effect once; see `Task.effect`."""
    begun = await _begin(effects, task, name, idempotent)
    if begun.ended is not None:
        return _value(begun.ended)
    arguments = (effect_key(task, name),) if _takes_key(function) else ()
    try:
        if inspect.iscoroutinefunction(function):
            value = await function(*arguments)
        else:
            value = await asyncio.to_thread(function, *arguments)
            if inspect.isawaitable(value):
                value = await value
    except NotDoneError as error:
        await _not_done(effects, task, begun, error)
        raise
    return await _end(effects, task, begun, name, value)


def perform_in_thread(
    effects: "Effects", task: "Task", name: str, function: EffectFunction, *, idempotent: bool
) -> Any:
    """Do an effect once, in this thread; see `Task.run_effect`."""

    def on_loop(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, effects.loop).result()

    begun: Begun = on_loop(_begin(effects, task, name, idempotent))
    if begun.ended is not None:
        return _value(begun.ended)
    arguments = (effect_key(task, name),) if _takes_key(function) else ()
    try:
        value = function(*arguments)
        if inspect.iscoroutine(value):
            value = on_loop(value)
    except NotDoneError as error:
        on_loop(_not_done(effects, task, begun, error))
        raise
    return on_loop(_end(effects, task, begun, name, value))


def effect_key(task: "Task", name: str) -> str:
    """Return the idempotency key of an effect: the same however often it is tried."""
    return f"{task.idempotency_key}!{name}"


async def _begin(effects: "Effects", task: "Task", name: str, idempotent: bool) -> Begun:
    if not _NAME.match(name):
        raise InvalidArgumentError(f"{name[:40]!r} is not an effect's name: use 1 to 100 of A-Z, a-z, 0-9, _ . : -")
    body = dump_json(
        {"effect": name, "agent": str(task.agent), "host": effects.host, "attempt": task.attempt,
         "idempotent": idempotent}
    )  # fmt: skip
    for number in range(1, _TRIES_MAX + 1):
        # Each try that is known to have done nothing leaves its key behind; the first one's is the plain one.
        step_key = f"{task.own_key}!{name}" + (f"#{number}" if number > 1 else "")
        if await _write_intent(effects, task.goal_id, step_key, body):
            return Begun(step_key, None)
        intent, end = await _kept(effects.recorded(task.goal_id, step_key))
        if intent is None:
            raise FailedPreconditionError(f"goal {task.goal_id} has ended: effect {name!r} is not begun any more")
        if end is None:
            if idempotent:
                return Begun(step_key, None)
            raise EffectUnknownError(
                f"the outcome of effect {name!r} of {task.agent} is unknown: it was begun, and nobody saw it end",
                effect=name, agent=str(task.agent), step=task.step_key, error_type=EffectUnknownError.__name__,
            )  # fmt: skip
        ended = load_json(end, "effect")
        if "not_done" not in ended:
            return Begun(step_key, ended)
    raise FailedPreconditionError(f"effect {name!r} of {task.agent} was tried {_TRIES_MAX} times", effect=name)


async def _write_intent(effects: "Effects", goal_id: str, step_key: str, body: bytes) -> bool:
    writing = effects.begin(goal_id, step_key, body)

    def take_back(written: "asyncio.Future[bool]") -> None:
        # The task was let go while its intent was on the way to the disk: nothing was done, and that is known.
        if not written.cancelled() and written.exception() is None and written.result():
            effects.end(goal_id, step_key, dump_json({"not_done": "cancelled before it was done"}))

    try:
        return await _kept(asyncio.shield(writing))
    except asyncio.CancelledError:
        writing.add_done_callback(take_back)
        raise


async def _kept(recording: Awaitable[T]) -> T:
    """Wait for the record. Where there is none to be had, this host is not the one to go on with the task."""
    try:
        return await recording
    except UnavailableError as error:
        raise FencedError(f"nothing can be recorded here: {error.message}") from None


async def _not_done(effects: "Effects", task: "Task", begun: Begun, error: NotDoneError) -> None:
    await _kept(effects.end(task.goal_id, begun.step_key, dump_json({"not_done": error.message[:500]})))


async def _end(effects: "Effects", task: "Task", begun: Begun, name: str, value: Any) -> Any:
    ended = _ended(name, value)
    if not await _kept(effects.end(task.goal_id, begun.step_key, ended)):
        _, stands = await _kept(effects.recorded(task.goal_id, begun.step_key))
        if stands is None:
            raise FailedPreconditionError(f"goal {task.goal_id} has ended: how effect {name!r} ended is not recorded")
        ended = stands  # An idempotent effect was done by two at once: the first record is everybody's.
    return _value(load_json(ended, "effect"))


def _ended(name: str, value: Any) -> bytes:
    """Return what is recorded. An effect that was done is never recorded as anything else, whatever it returned."""
    try:
        body = dump_json({"value": value}, f"result of effect {name!r}")
        if len(body) <= _VALUE_BYTES_MAX:
            return body
        problem = f"the result of effect {name!r} has {len(body)} bytes, over the limit of {_VALUE_BYTES_MAX}"
    except NexusError as error:
        problem = error.message
    return dump_json({"unreadable": f"{problem}; the effect itself was done"})


def _value(ended: dict[str, Any]) -> Any:
    if "unreadable" in ended:
        raise InvalidArgumentError(ended["unreadable"])
    return ended["value"]


def _takes_key(function: EffectFunction) -> bool:
    """Tell whether a function wants the idempotency key: it has an argument that has no default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # Some built-in functions have no signature.
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(one.kind in positional and one.default is inspect.Parameter.empty for one in parameters)
