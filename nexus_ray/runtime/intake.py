"""How goals come in: a request becomes a goal, and the goals of all requests in flight are accepted together.

Law: one call of the ledger is under way at a time; what comes meanwhile goes into the next, so that sixteen requests
share a transaction and an fsync. What the ledger refuses as a whole is asked again in halves: each goal is judged for
itself, and nobody is refused for what stood beside him.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Protocol

from nexus_ray.audit.auditor import source_of_request
from nexus_ray.core.context import CallContext, ContextSeal
from nexus_ray.core.deadline import Deadline
from nexus_ray.core.errors import InvalidArgumentError, NexusError, NotFoundError, UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.core.ids import new_id
from nexus_ray.goals.limits import CoordinatorSettings
from nexus_ray.goals.spec import Specs
from nexus_ray.ledger.goal import Goal
from nexus_ray.ledger.ports import Acceptance, Ledger

_IDEMPOTENCY_KEY_CHARACTERS_MAX = 200
_CALL_GOALS_MAX = 1000  # A transaction of some 10 ms; above that, latency grows and throughput does not.

Verdict = Acceptance | NexusError
"""What became of one goal: it is on disk, or it was refused."""
_Decide = Callable[[Sequence[Goal]], Awaitable[list[Verdict] | None]]


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """What a caller wants: a goal type, its payload (JSON bytes), a length of time for it, and a key to repeat by."""

    type: str
    payload: bytes
    timeout_s: float | None = None
    idempotency_key: str = ""


def build_goal(
    request: SubmitRequest, session: Session, specs: Specs, settings: CoordinatorSettings, now: float,
    traceparent: str, seal: ContextSeal | None = None,
) -> Goal:  # fmt: skip
    """Check a request and make the goal of it; with a seal, its context is the caller's for this goal and no other.

    Raises:
        NotFoundError: There is no such goal type.
        InvalidArgumentError: The payload, the timeout or the idempotency key is malformed.
    """
    spec = specs.goals.get(request.type)
    if spec is None:
        known = ", ".join(sorted(specs.goals)) or "none"
        raise NotFoundError(f"there is no goal type {request.type[:80]!r}; this app has: {known}")
    timeout_s = request.timeout_s if request.timeout_s is not None else (spec.timeout_s or settings.timeout_default_s)
    if not 0 < timeout_s <= settings.timeout_max_s:
        raise InvalidArgumentError(
            f"timeout_s must be more than 0 and at most {settings.timeout_max_s:g} seconds",
            problems=[{"field": "timeout_s", "problem": "out of range"}],
        )
    key = request.idempotency_key
    if len(key) > _IDEMPOTENCY_KEY_CHARACTERS_MAX or not key.isprintable():
        raise InvalidArgumentError(f"an idempotency key is 1 to {_IDEMPOTENCY_KEY_CHARACTERS_MAX} printable characters")
    payload = spec.payload.normalise(request.payload)
    deadline = Deadline.after(timeout_s, now)
    goal_id = new_id("goal")
    headers = CallContext(session, deadline, traceparent, source_of_request()).to_headers()
    return Goal(
        id=goal_id,
        type=spec.type,
        payload=payload,
        principal=session.principal,
        accepted_at=now,
        deadline_at=deadline.at,
        headers=headers if seal is None else seal.sealed(headers, goal_id),
        idempotency_key=key,
        tenant=session.home,
    )


class Poked(Protocol):
    """Who is told of new goals."""

    async def poke(self, goals: Sequence[Goal]) -> None:
        """Tell the hosts that own these goals to look; best effort."""
        ...


@dataclass(frozen=True, slots=True)
class _Request:
    """The goals of one request, and where its verdicts go."""

    goals: Sequence[Goal]
    verdicts: "asyncio.Future[list[Verdict]]"

    def answer(self, verdicts: list[Verdict]) -> None:
        if not self.verdicts.done():  # Its caller may have gone.
            self.verdicts.set_result(verdicts)

    def fail(self, error: Exception) -> None:
        if not self.verdicts.done():
            self.verdicts.set_exception(error)


class Intake:
    """Accepts the goals of many requests together; used from one event loop only."""

    def __init__(self, ledger: Ledger, fleet: Poked) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._waiting: deque[_Request] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_running = False

    async def accept(self, goals: Sequence[Goal]) -> list[Verdict]:
        """Have goals accepted, and their hosts told; for each in order, what became of it.

        A caller that goes away takes nothing back: what was under way may be accepted all the same.
        """
        if not goals:
            return []
        request = _Request(goals, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if not self._is_running:
            self._is_running = True
            self._begin(self._run())
        return await request.verdicts

    async def close(self) -> None:
        """Take no more; whoever waits is told that nobody knows."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        while self._waiting:
            self._waiting.popleft().fail(UnavailableError("the front door is closing"))

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="intake")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._decide(self._take(), self._once)
        finally:
            self._is_running = False

    def _take(self) -> list[_Request]:
        """Return the requests that go into the next call: one, and what fits beside it."""
        together = [self._waiting.popleft()]
        count = len(together[0].goals)
        while self._waiting and (count := count + len(self._waiting[0].goals)) <= _CALL_GOALS_MAX:
            together.append(self._waiting.popleft())
        return together

    async def _decide(self, together: list[_Request], decide: _Decide) -> None:
        goals = [goal for request in together for goal in request.goals]
        try:
            verdicts = await decide(goals)
        except BaseException as error:
            # A bug, or the end of the process: nobody may wait for an answer that does not come.
            told = error if isinstance(error, Exception) else UnavailableError("the front door is closing")
            for request in together:
                request.fail(told)
            if told is not error:
                raise
            return
        if verdicts is None:
            # In tasks of their own: who is refused a thousand times does not hold the others up.
            for request in together:
                self._begin(self._decide([request], self._judge))
            return
        new = [
            goal for goal, verdict in zip(goals, verdicts, strict=True)
            if isinstance(verdict, Acceptance) and verdict.is_new
        ]  # fmt: skip
        for request in together:
            request.answer(verdicts[: len(request.goals)])
            verdicts = verdicts[len(request.goals) :]
        if new:
            # Nobody waits for this: the goals are on disk, and hosts find them by themselves too.
            self._begin(self._fleet.poke(new))

    async def _once(self, goals: Sequence[Goal]) -> list[Verdict] | None:
        """Ask the ledger once; None where it refused the whole for the sake of one."""
        if len(goals) > _CALL_GOALS_MAX:
            return None
        try:
            return [*await self._ledger.accept(goals)]
        except UnavailableError as error:
            return [error] * len(goals)
        except NexusError as error:
            return [error] if len(goals) == 1 else None

    async def _judge(self, goals: Sequence[Goal]) -> list[Verdict]:
        verdicts = await self._once(goals)
        if verdicts is not None:
            return verdicts
        middle = len(goals) // 2  # In order, so that of two with one key the first stands.
        return [*await self._judge(goals[:middle]), *await self._judge(goals[middle:])]
