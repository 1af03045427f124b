"""Saga: actions one after the other, and for each what undoes it, if a later one fails.

Law: what was done is undone in reverse order, each compensation recorded once, whatever is killed meanwhile; and also
where the goal is cancelled or expires, within `goals.stop_grace_s`. An action of which nobody knows whether it was
done (its effect is unknown, it was cut off) is undone too: a compensation has to bear that there is nothing to undo.

That an action begins is on record before it is asked for, and so is the result of the one before it; that the saga
turns back is on record before its first compensation. So after a crash it never goes forward again once it turned;
and a goal that was stopped meanwhile is run again only where there is something to undo, and asks for nothing else.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nexus_ray.agents.schema import dump_json, load_json
from nexus_ray.agents.task import TaskResult
from nexus_ray.core.errors import EffectUnknownError, InvalidArgumentError, NexusError, SagaFailedError
from nexus_ray.core.ids import digest
from nexus_ray.goals.ports import Run
from nexus_ray.goals.step import step_body
from nexus_ray.goals.strategies import Call
from nexus_ray.goals.waiting import record_once
from nexus_ray.ledger.goal import EntryKind
from nexus_ray.observe.logs import get_logger

if TYPE_CHECKING:
    from nexus_ray.goals.team import Prepared, Team

log = get_logger("goals.saga")

_PREFIX = "saga-"
_STEPS_MAX = 1000
_TRIES_MAX = 20  # With the pauses below over six minutes, where the grace is that long.
_PAUSE_FIRST_S = 0.2
_PAUSE_CEILING_S = 30.0
# Trying again would change nothing. The last one says that the goal's function has ended.
_FOR_GOOD = frozenset({"invalid_argument", "not_found", "permission_denied", "failed_precondition"})
_UNKNOWN = frozenset({"deadline_exceeded", "unavailable", "cancelled"})  # What failed like this may have been done.


class SagaStep(NamedTuple):
    """An action, and what undoes it."""

    action: Call
    compensation: Call | None = None


def has_saga(step_keys: Iterable[str]) -> bool:
    """Tell from the keys of a goal's journal whether a saga has begun in it."""
    return any(key.startswith(_PREFIX) for key in step_keys)


async def saga(team: "Team", run: Run, steps: Sequence[SagaStep]) -> list[Any]:
    """Ask for the actions in order; see `Team.saga`."""
    if not 1 <= len(steps) <= _STEPS_MAX:
        raise InvalidArgumentError(f"a saga has 1 to {_STEPS_MAX} steps, not {len(steps)}")
    # All of it is looked at before any of it begins: what is malformed must not be found out halfway.
    actions = [team.prepare(*step.action) for step in steps]
    undoing = [None if step.compensation is None else team.prepare(*step.compensation) for step in steps]
    key = _PREFIX + team.step_key("saga", dump_json([_told(one) for one in (*actions, *undoing)]))
    if run.entry(f"{key}.do0") is None:
        # Nor must what may not be asked. Once it has begun it is not asked for here again: there is something to undo.
        for one in (*actions, *undoing):
            if one is not None:
                team.check_may_ask(one.spec.type)
    turned = run.entry(_turn_key(key))
    if turned is None:
        end = await _forward(team, run, key, steps, [action.name for action in actions])
        if isinstance(end, list):
            return end
        why = end
    else:
        why = _Turn(*load_json(turned.body, "step")["value"])
    if why.begun or not why.is_cancelled:
        back = _Back(team, run, key, why, [(at, undo) for at, undo in enumerate(undoing[: why.begun]) if undo])
        await _see_through(run, asyncio.ensure_future(back.go()))
        run.note(EntryKind.NOTE, dump_json({"saga": why.failed, **back.undone()}))
    if why.is_cancelled and (turned is None or run.is_stopped):
        raise asyncio.CancelledError
    raise SagaFailedError(
        f"saga failed at {why.failed}: {why.error}{back.text()}",
        failed=why.failed, failed_with=why.code, **back.undone(),
    )  # fmt: skip


async def _forward(
    team: "Team", run: Run, key: str, steps: Sequence[SagaStep], names: Sequence[str]
) -> "list[Any] | _Turn":
    """Ask for one action after the other; return the answers, or why it is time to turn back."""
    answers: list[Any] = []
    begun = 0
    try:
        for step, name in zip(steps, names, strict=True):
            mark = f"{key}.do{begun}"
            if run.is_stopped and run.entry(mark) is None:
                raise asyncio.CancelledError
            await _record(run, mark, name)
            begun += 1
            try:
                answers.append(await team.ask(step.action.agent, step.action.payload, key=step.action.key))
            except NexusError as error:
                return _Turn(begun if _may_be_done(error) else begun - 1, name, error.message, _code(error), False)
        return answers
    except asyncio.CancelledError:
        if not run.may_go_on:
            raise  # Another host goes on with it, or there is no more time.
        return _Turn(begun, names[max(0, begun - 1)], "it was cancelled", "cancelled", True)


class _Turn(NamedTuple):
    """Why a saga turned back: `begun` actions may have been done, and `failed` is the one at which it turned."""

    begun: int
    failed: str
    error: str
    code: str
    is_cancelled: bool


def _turn_key(key: str) -> str:
    return f"{key}.back"


def _told(prepared: "Prepared | None") -> list[str]:
    return [] if prepared is None else [prepared.name, digest(prepared.body)]


def _code(error: NexusError) -> str:
    return str(error.details.get("failed_with") or error.code)


def _may_be_done(error: NexusError) -> bool:
    return isinstance(error, EffectUnknownError) or _code(error) in _UNKNOWN


async def _record(run: Run, key: str, value: Any) -> None:
    now = run.clock.now()
    result = TaskResult(key, dump_json(value, "saga"), None, "", 1, now, now)
    await record_once(run, key, EntryKind.STEP, step_body("saga", result))


async def _see_through(run: Run, going: "asyncio.Future[None]") -> None:
    """Wait for the way back, even where the goal is cancelled meanwhile or expires: that is what it is for."""
    while not going.done():
        try:
            await asyncio.shield(going)
        except asyncio.CancelledError:
            if going.cancelled() or not run.may_go_on:
                going.cancel()
                await asyncio.wait([going])
                raise
    going.result()


class _Back:
    """The way back: undoes what was done, last first; what cannot be undone does not keep the others from it."""

    def __init__(
        self, team: "Team", run: Run, key: str, why: _Turn, undoing: "Sequence[tuple[int, Prepared]]"
    ) -> None:
        self._team = team
        self._run = run
        self._key = key
        self._why = why
        self._undoing = undoing
        self._compensated: list[str] = []
        self._left: list[str] = []

    async def go(self) -> None:
        await _record(self._run, _turn_key(self._key), list(self._why))
        for at, undo in reversed(self._undoing):
            is_done = await self._undo(f"{self._key}.undo{at}", undo)
            (self._compensated if is_done else self._left).append(undo.name)

    async def _undo(self, key: str, undo: "Prepared") -> bool:
        """Try until it is done, failed for good, or there is no more time; each try is on record."""
        run = self._run
        pause_s = _PAUSE_FIRST_S
        for number in range(1, _TRIES_MAX + 1):
            # What comes after the `#` is no part of the task's idempotency key: all tries are one to the world.
            step_key = key if number == 1 else f"{key}#{number}"
            is_known = run.entry(step_key) is not None
            if not is_known and run.undo_until <= run.clock.now():
                return False
            try:
                await self._team.put(undo, step_key, run.undo_until, undoes=True)
                return True
            except NexusError as error:
                log.warning("saga.undo_failed", goal_id=run.goal.id, agent=undo.name, tries=number, error=error.message)
                if isinstance(error, EffectUnknownError) or _code(error) in _FOR_GOOD:
                    return False
            if not is_known:
                await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _PAUSE_CEILING_S)
        return False

    def undone(self) -> dict[str, list[str]]:
        return {"compensated": self._compensated, "not_compensated": self._left}

    def text(self) -> str:
        done = f"; compensated: {', '.join(self._compensated)}" if self._compensated else ""
        return done + (f"; NOT compensated: {', '.join(self._left)}" if self._left else "")
