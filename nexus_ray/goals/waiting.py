"""Waiting: for an instant, and for a person's answer.

Law: what is waited for is on record before the wait begins, so a wait goes on after any crash, and its instant stays
the one of the first run. Nothing is held open: whoever waits is poked, and looks now and then for itself.
"""

import asyncio

import orjson

from nexus_ray.agents.schema import load_json
from nexus_ray.core.deadline import Countdown
from nexus_ray.core.errors import DeadlineExceededError, InvalidArgumentError, UnavailableError
from nexus_ray.goals.ports import Run
from nexus_ray.goals.questions import EXPIRED_BODY, Approval, approval_of, asked_body, question_of
from nexus_ray.ledger.goal import Entry, EntryKind
from nexus_ray.ledger.ports import answer_key

_LOOK_FIRST_S = 0.5
_LOOK_FACTOR = 1.5  # To the longest pause within half a minute: most people are slower than that.


def is_due(run: Run, step_key: str) -> bool:
    """Tell whether a timer of this key was set before, and is due."""
    entry = run.entry(step_key)
    return entry is not None and _due_at(entry) <= run.clock.now()


def is_answered(run: Run, step_key: str) -> bool:
    """Tell whether an answer to a question stood before this run."""
    return run.entry(answer_key(step_key)) is not None


async def sleep_until(run: Run, step_key: str, due_at: float) -> None:
    """Wait for an instant; see `Team.sleep_until`."""
    if run.entry(step_key) is None and due_at > run.goal.deadline_at:
        late_s = due_at - run.goal.deadline_at
        raise InvalidArgumentError(f"a timer that is due {late_s:.3g} s after the goal's deadline would never ring")
    countdown = Countdown(run.clock, due_at)  # Before anything is waited for: the clock may jump then, too.
    entry = await record_once(run, step_key, EntryKind.TIMER, orjson.dumps({"due_at": due_at}))
    if _due_at(entry) != due_at:
        countdown = Countdown(run.clock, _due_at(entry))
    while (left_s := countdown.remaining_s()) > 0:
        await asyncio.sleep(min(left_s, run.settings.clock_look_s))


def _due_at(entry: Entry) -> float:
    return float(load_json(entry.body, "timer")["due_at"])


async def approval(run: Run, step_key: str, key: str, question: str, to: str, until: float) -> Approval:
    """Ask a person; see `Team.approval`."""
    countdown = Countdown(run.clock, until)
    asked = await record_once(run, step_key, EntryKind.ASKED, asked_body(run.goal.type, key, question, to, until))
    if question_of(asked).until != until:
        countdown = Countdown(run.clock, question_of(asked).until)
    answer = run.entry(answer_key(step_key)) or await _answered(run, asked, countdown)
    given = approval_of(answer)
    if given is None:
        raise DeadlineExceededError(f"nobody answered question {key!r} in time", question=key)
    return given


async def _answered(run: Run, asked: Entry, countdown: Countdown) -> Entry:
    key = answer_key(asked.step_key)
    # Then the goal's own deadline ends the wait, and says so.
    is_for_the_goal = question_of(asked).until >= run.goal.deadline_at
    pause_s = _LOOK_FIRST_S
    while (left_s := countdown.remaining_s()) > 0 or is_for_the_goal:
        await run.poked(min(left_s or pause_s, pause_s))
        pause_s = min(pause_s * _LOOK_FACTOR, run.settings.question_look_s)
        try:
            answer = await run.look_for(key)
        except UnavailableError:
            continue  # Whoever answers needs the ledger too.
        if answer is not None:
            return answer
    # That it is too late is an answer like any other: the first one stands, so a run after this one hears the same.
    return await record_once(run, key, EntryKind.ANSWERED, EXPIRED_BODY)


async def record_once(run: Run, step_key: str, kind: EntryKind, body: bytes) -> Entry:
    """Return what stands under a key, durably; this, where nothing did.

    Raises:
        UnavailableError: Nothing stands: the goal has ended, or another host runs it.
    """
    entry = run.entry(step_key)
    if entry is not None:
        return entry
    at = run.clock.now()
    if await run.record(step_key, kind, body):
        return Entry(0, run.goal.id, kind, at, body, step_key)
    entry = await run.look_for(step_key)
    if entry is None:
        raise UnavailableError(f"goal {run.goal.id} has ended, or goes on elsewhere")
    return entry
