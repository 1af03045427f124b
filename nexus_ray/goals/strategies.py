"""Strategies: ways to put a question to several agents, as plain functions over a team.

Law: a strategy asks only through the team, so all it learns is on record; and what it no longer needs it cancels.
"""

import asyncio
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nexus_ray.agents.agent import Agent
from nexus_ray.agents.promise import Promise
from nexus_ray.agents.schema import dump_json
from nexus_ray.core.errors import InvalidArgumentError, NexusError, QuorumNotReachedError

if TYPE_CHECKING:
    from nexus_ray.goals.team import Team

AgentRef = type[Agent] | str

_FAILURES_SHOWN_MAX = 3


class Call(NamedTuple):
    """One question: whom to ask, what, and under which key."""

    agent: AgentRef
    payload: Any = None
    key: str = "main"


async def fan_out(
    team: "Team",
    agent: AgentRef,
    payloads: Sequence[Any],
    *,
    key: Callable[[Any], str] | None = None,
    quorum: float | int | None = None,
    timeout_s: float | None = None,
    return_errors: bool = False,
    concurrency: int = 1000,
) -> list[Any]:
    """Ask one agent per payload, all at once; return the answers in the order of the payloads.

    Without `quorum` the first failure fails the whole and cancels the rest, unless `return_errors` puts failures in
    the places of the answers. With `quorum` (a count, or a share below 1 or 1.0) the answers that have come when the
    quorum is reached are returned, in order, without the others, which are cancelled. When `timeout_s` passes,
    what has come is returned if it makes the quorum, or if `return_errors` is set.

    Args:
        team: The goal's team.
        agent: The agent type.
        payloads: One question each.
        key: Names the agent for a payload; its position (0, 1, …) where not given.
        quorum: How many answers are enough.
        timeout_s: Seconds for the whole.
        return_errors: Failures are returned as errors rather than raised.
        concurrency: Questions under way at one time.

    Raises:
        TaskFailedError: A task failed and neither `quorum` nor `return_errors` covers it.
        QuorumNotReachedError: Too many failures, or too late.
    """
    if not payloads:
        return []
    if concurrency < 1:
        raise InvalidArgumentError("concurrency must be at least 1")
    needed = _needed(quorum, len(payloads))
    team.plan("fan_out", agent, len(payloads))
    tasks = _begin(
        team,
        [Call(agent, payload, str(at) if key is None else key(payload)) for at, payload in enumerate(payloads)],
        timeout_s,
        concurrency,
    )
    if quorum is None and not return_errors:
        return await _all(tasks)
    try:
        await _until_enough(tasks, needed, is_lost_early=quorum is not None)
        good = sum(_is_good(task) for task in tasks)
        if quorum is not None and good < needed:
            raise _no_quorum(needed, len(tasks), tasks)
        if return_errors and quorum is None:
            return [task.exception() or task.result() for task in tasks]
        return [task.result() for task in tasks if _is_good(task)]
    finally:
        await _cancel(tasks)


async def map_reduce(
    team: "Team",
    mapper: AgentRef,
    payloads: Sequence[Any],
    reducer: AgentRef,
    *,
    key: Callable[[Any], str] | None = None,
    reduce_key: str = "main",
    arity: int = 64,
    timeout_s: float | None = None,
) -> Any:
    """Map payloads over agents, then reduce: the reducer gets lists of at most `arity` answers until one is left.

    Raises:
        TaskFailedError: A task failed.
    """
    if arity < 2:
        raise InvalidArgumentError("arity must be at least 2")
    level = await fan_out(team, mapper, payloads, key=key, timeout_s=timeout_s)
    depth = 0
    while True:
        chunks = [level[start : start + arity] for start in range(0, len(level), arity)] or [[]]
        if len(chunks) == 1:
            return await team.ask(reducer, chunks[0], key=reduce_key, timeout_s=timeout_s)
        depth += 1
        team.plan("map_reduce", reducer, len(chunks))
        calls = [Call(reducer, chunk, f"{reduce_key}.{depth}.{position}") for position, chunk in enumerate(chunks)]
        level = await _all(_begin(team, calls, timeout_s))


async def race(team: "Team", calls: Sequence[Call], *, timeout_s: float | None = None) -> Any:
    """Ask all at once, return the first good answer, cancel the rest.

    Raises:
        QuorumNotReachedError: Nobody gave a good answer.
    """
    if not calls:
        raise InvalidArgumentError("a race needs at least one call")
    team.plan("race", calls[0].agent, len(calls))
    return await _first_good(_begin(team, calls, timeout_s))


async def hedge(
    team: "Team",
    agent: AgentRef,
    payload: Any,
    *,
    keys: Sequence[str],
    after_s: float,
    timeout_s: float | None = None,
) -> Any:
    """Ask the first key; whenever `after_s` passes without an answer, or one fails, ask the next as well.

    Raises:
        QuorumNotReachedError: Nobody gave a good answer.
    """
    if not keys or after_s < 0:
        raise InvalidArgumentError("a hedge needs at least one key, and after_s of 0 or more")
    tasks: list[asyncio.Future[Any]] = []
    try:
        for key in keys:
            tasks += _begin(team, [Call(agent, payload, key)], timeout_s)
            running = [task for task in tasks if not task.done()]
            await asyncio.wait(running, timeout=after_s, return_when=asyncio.FIRST_COMPLETED)
            if any(_is_good(task) for task in tasks):
                break
        return await _first_good(tasks)
    finally:
        await _cancel(tasks)


async def vote(
    team: "Team",
    agent: AgentRef,
    payload: Any,
    *,
    voters: int = 3,
    agree: int = 2,
    key: str = "voter",
    by: Callable[[Any], Any] | None = None,
    timeout_s: float | None = None,
) -> Any:
    """Ask `voters` agents the same question (keys `key#1` …) and return the answer that `agree` of them give.

    Args:
        team: The goal's team.
        agent: The agent type.
        payload: The question.
        voters: How many are asked.
        agree: How many must say the same.
        key: The voters' keys are this, `#` and a number from 1.
        by: What of an answer is compared; the whole of it where not given.
        timeout_s: Seconds for each voter.

    Raises:
        QuorumNotReachedError: No answer was given by `agree` voters.
    """
    if not 1 <= agree <= voters:
        raise InvalidArgumentError(f"agree must be 1 to {voters} of {voters} voters, not {agree}")
    team.plan("vote", agent, voters)
    calls = [Call(agent, payload, f"{key}#{number}") for number in range(1, voters + 1)]
    tasks = _begin(team, calls, timeout_s)
    counts: dict[bytes, list[Any]] = {}
    try:
        waiting: set[asyncio.Future[Any]] = set(tasks)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in (task for task in tasks if task in done and _is_good(task)):
                answer = task.result()
                same = counts.setdefault(dump_json(by(answer) if by else answer, "answer"), [])
                same.append(answer)
                if len(same) >= agree:
                    return same[0]
        raise _no_quorum(agree, voters, tasks, agreed=max((len(same) for same in counts.values()), default=0))
    finally:
        await _cancel(tasks)


async def pipeline(
    team: "Team", payload: Any, *stages: AgentRef, key: str = "main", timeout_s: float | None = None
) -> Any:
    """Give each stage the answer of the one before; return the last.

    Raises:
        TaskFailedError: A stage failed.
    """
    for stage in stages:
        payload = await team.ask(stage, payload, key=key, timeout_s=timeout_s)
    return payload


def _needed(quorum: float | int | None, total: int) -> int:
    if quorum is None:
        return total
    needed = math.ceil(quorum * total - 1e-9) if isinstance(quorum, float) else quorum
    if isinstance(quorum, bool) or not 1 <= needed <= total:
        raise InvalidArgumentError(
            f"quorum {quorum} of {total} tasks: give a count of 1 to {total}, or a share up to 1.0"
        )
    return needed


def _begin(
    team: "Team", calls: Sequence[Call], timeout_s: float | None, concurrency: int = sys.maxsize
) -> list["asyncio.Future[Any]"]:
    """Put all questions, `concurrency` of them at one time; one that cannot be put is answered by its error."""
    if concurrency < len(calls):
        turnstile = asyncio.Semaphore(concurrency)

        async def one(call: Call) -> Any:
            async with turnstile:
                return await team.begin(call.agent, call.payload, key=call.key, timeout_s=timeout_s)

        return [asyncio.ensure_future(one(call)) for call in calls]
    answers: list[asyncio.Future[Any]] = []
    for call in calls:
        try:
            answers.append(team.begin(call.agent, call.payload, key=call.key, timeout_s=timeout_s))
        except NexusError as error:
            refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            answers.append(refused)
    return answers


async def _all(tasks: Sequence["asyncio.Future[Any]"]) -> list[Any]:
    """Return all answers, or raise the first failure; as `asyncio.gather`, with less to do for each."""
    left = len(tasks)
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ended(task: "asyncio.Future[Any]") -> None:
        nonlocal left
        left -= 1
        if not over.done() and (left == 0 or task.cancelled() or task.exception() is not None):
            over.set_result(None)

    try:
        for task in tasks:
            if isinstance(task, Promise):
                task.tell(ended)
            else:
                task.add_done_callback(ended)
        if tasks:
            await over
        for task in tasks if left else ():
            if task.done() and (task.cancelled() or task.exception() is not None):
                task.result()  # Raises.
        return [task.result() for task in tasks]
    except BaseException:
        await _cancel(tasks)
        raise


async def _until_enough(
    tasks: Sequence["asyncio.Future[Any]"], needed: int, *, is_lost_early: bool = True
) -> None:
    """Return when `needed` are good, or all are done, or, `is_lost_early`, when so many cannot be good any more."""
    ended: asyncio.Queue[asyncio.Future[Any]] = asyncio.Queue()  # No longer than `tasks`.
    for task in tasks:
        task.add_done_callback(ended.put_nowait)
    good = bad = 0
    while good + bad < len(tasks):
        if _is_good(await ended.get()):
            good += 1
        else:
            bad += 1
        if good >= needed or (is_lost_early and bad > len(tasks) - needed):
            return


async def _first_good(tasks: Sequence["asyncio.Future[Any]"]) -> Any:
    try:
        await _until_enough(tasks, 1)
        for task in tasks:
            if _is_good(task):
                return task.result()
        raise _no_quorum(1, len(tasks), tasks)
    finally:
        await _cancel(tasks)


def _is_good(task: "asyncio.Future[Any]") -> bool:
    if not task.done() or task.cancelled():
        return False
    error = task.exception()
    if error is not None and not isinstance(error, NexusError):
        raise error  # A bug in the coordination, not a failed task.
    return error is None


def _no_quorum(
    needed: int, total: int, tasks: Sequence["asyncio.Future[Any]"], **details: Any
) -> QuorumNotReachedError:
    errors = [task.exception() for task in tasks if task.done() and not task.cancelled() and task.exception()]
    shown = [str(error) for error in errors[:_FAILURES_SHOWN_MAX]]
    text = f": {shown[0]}" if shown else ""
    answered = details.pop("agreed", sum(_is_good(task) for task in tasks))
    return QuorumNotReachedError(
        f"{answered} of {total} gave the answer that {needed} must give{text}",
        needed=needed, answered=answered, failed=len(errors), failures=shown,
    )  # fmt: skip


async def _cancel(tasks: Sequence["asyncio.Future[Any]"]) -> None:
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.gather(*running, return_exceptions=True)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # Looked at, so that asyncio does not complain of what nobody needs any more.
