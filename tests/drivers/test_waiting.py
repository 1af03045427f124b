"""Waiting for an instant and for a person: over restarts, over clocks that jump, and never for ever."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

import nexus_ray as nexus
from nexus_ray.config import Settings
from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from nexus_ray.core.identity import Session
from nexus_ray.goals import waiting
from nexus_ray.goals.limits import CoordinatorSettings
from nexus_ray.goals.questions import Approval, answer_question, question_of
from nexus_ray.ledger.goal import EntryKind, Goal, GoalStatus, Outcome
from tests.support.in_process import InProcessFleet, in_process_fleet

DAY_S = 86_400.0
OFTEN = Settings(goals=CoordinatorSettings(clock_look_s=0.002, question_look_s=0.005, sweep_every_s=0.01))
ADA = Session("s", "ada", "test", ("finance",), 9e9)
BOB = Session("s", "bob", "test", ("operator",), 9e9)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LOOK_FIRST_S", 0.002)


def make_app() -> nexus.App:
    app = nexus.App("patient")

    @app.goal
    async def nap(request: float, team: nexus.Team) -> str:
        await team.sleep(request)
        return "awake"

    @app.goal
    async def until(request: float, team: nexus.Team) -> str:
        try:
            await team.sleep_until(datetime.fromtimestamp(request, UTC))
        except InvalidArgumentError as error:
            return error.message
        return "awake"

    @app.goal
    async def ask(request: dict[str, Any], team: nexus.Team) -> Any:
        try:
            answer = await team.approval("Ship it?", **request)
        except DeadlineExceededError as error:
            return error.message
        return [answer.approved, answer.by, answer.comment]

    @app.goal
    async def ask_twice(request: Any, team: nexus.Team) -> Any:
        return [(await team.approval("First?", key="a")).approved, (await team.approval("Again?", key="a")).approved]

    return app


@pytest.fixture
async def fleet(clock: ManualClock) -> AsyncIterator[InProcessFleet]:
    async with in_process_fleet(make_app(), hosts=1, settings=OFTEN, clock=clock) as fleet:
        yield fleet


async def until(is_so: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(10):
        while not (found := await is_so()):
            await asyncio.sleep(0.001)
    return found


async def submit(fleet: InProcessFleet, type_name: str, payload: Any, timeout_s: float = 7 * DAY_S) -> Goal:
    goal = fleet.goal(type_name, payload, timeout_s=timeout_s)
    await fleet.ledger.accept([goal])
    await fleet.poke([goal])
    return goal


async def noted(fleet: InProcessFleet, goal: Goal, kind: EntryKind) -> Any:
    entries = await until(lambda: of_kind(fleet, goal, kind))
    return entries[0]


async def of_kind(fleet: InProcessFleet, goal: Goal, kind: EntryKind) -> list[Any]:
    return [entry for entry in await fleet.ledger.journal(goal.id, 0, 1000) if entry.kind is kind]


async def restart(fleet: InProcessFleet) -> None:
    """The only host dies, and another one takes its place."""
    (name,) = fleet.hosts_by_name
    fleet.add(f"{name}'")
    await fleet.lose(name)


async def ended(fleet: InProcessFleet, goal: Goal) -> Outcome:
    async def outcome() -> Outcome | None:
        record = await fleet.ledger.goal(goal.id)
        return record.outcome if record else None

    found: Outcome = await until(outcome)
    return found


async def goes_on(fleet: InProcessFleet, goal: Goal) -> bool:
    await asyncio.sleep(0.03)  # Ten looks at the clock.
    record = await fleet.ledger.goal(goal.id)
    return record is not None and record.outcome is None


async def give(fleet: InProcessFleet, goal: Goal, who: Session, **answer: Any) -> Approval:
    record = await fleet.ledger.goal(goal.id)
    assert record is not None
    given: dict[str, Any] = {"key": "main", "approved": True, "comment": "", **answer}
    now = next(iter(fleet.hosts_by_name.values())).clock.now()
    _, stands = await answer_question(fleet.ledger, record, who, given.pop("key"), now=now, **given)
    return stands


def value(outcome: Outcome) -> Any:
    assert outcome.status is GoalStatus.SUCCEEDED, outcome
    return orjson.loads(outcome.result)


async def test_a_sleep_goes_on_over_restarts_to_the_instant_of_the_first_run(
    fleet: InProcessFleet, clock: ManualClock
) -> None:
    goal = await submit(fleet, "nap", 2 * DAY_S)
    timer = await noted(fleet, goal, EntryKind.TIMER)
    due_at = clock.now() + 2 * DAY_S
    assert orjson.loads(timer.body) == {"due_at": due_at}

    clock.advance(1.5 * DAY_S)
    await restart(fleet)
    assert await goes_on(fleet, goal)
    clock.advance(0.5 * DAY_S - 1)
    await restart(fleet)
    assert await goes_on(fleet, goal)
    clock.advance(1)

    outcome = await ended(fleet, goal)
    assert value(outcome) == "awake"
    assert outcome.finished_at == due_at
    assert len(await of_kind(fleet, goal, EntryKind.TIMER)) == 1


async def test_a_timer_that_would_ring_after_the_deadline_is_refused_at_once(
    fleet: InProcessFleet, clock: ManualClock
) -> None:
    goal = await submit(fleet, "until", clock.now() + 61, timeout_s=60)

    assert "after the goal's deadline" in value(await ended(fleet, goal))
    assert await of_kind(fleet, goal, EntryKind.TIMER) == []


@pytest.mark.parametrize("seconds", [-1, "nan", "inf"])
async def test_a_length_that_is_none_is_refused(fleet: InProcessFleet, seconds: Any) -> None:
    app = fleet.app

    @app.goal
    async def odd(request: str, team: nexus.Team) -> None:
        await team.sleep(float(request))

    @app.goal
    async def naive(request: str, team: nexus.Team) -> None:
        await team.sleep_until(datetime(2026, 1, 1))

    await restart(fleet)
    outcome = await ended(fleet, await submit(fleet, "odd", str(seconds)))
    other = await ended(fleet, await submit(fleet, "naive", ""))

    assert outcome.failure is not None and outcome.failure.error_type == "InvalidArgumentError"
    assert other.failure is not None and "time zone" in other.failure.message


async def test_a_clock_that_jumps_a_day_ahead_has_passed_what_it_passed(
    fleet: InProcessFleet, clock: ManualClock
) -> None:
    short = await submit(fleet, "nap", DAY_S / 2)
    long = await submit(fleet, "nap", DAY_S * 2)
    late = await submit(fleet, "ask", {}, timeout_s=3600)
    for goal, kind in ((short, EntryKind.TIMER), (long, EntryKind.TIMER), (late, EntryKind.ASKED)):
        await noted(fleet, goal, kind)

    clock.jump(DAY_S)

    assert value(await ended(fleet, short)) == "awake"
    assert (await ended(fleet, late)).status is GoalStatus.EXPIRED
    assert await goes_on(fleet, long)


async def test_a_clock_that_jumps_a_day_back_keeps_nobody_waiting_for_it(
    fleet: InProcessFleet, clock: ManualClock
) -> None:
    nap = await submit(fleet, "nap", 60)
    asks = await submit(fleet, "ask", {"timeout_s": 60})
    late = await submit(fleet, "ask", {}, timeout_s=60)
    for goal, kind in ((nap, EntryKind.TIMER), (asks, EntryKind.ASKED), (late, EntryKind.ASKED)):
        await noted(fleet, goal, kind)

    clock.jump(-DAY_S)
    assert await goes_on(fleet, nap)
    clock.advance(60)

    assert value(await ended(fleet, nap)) == "awake"
    assert "nobody answered" in value(await ended(fleet, asks))
    assert (await ended(fleet, late)).status is GoalStatus.EXPIRED


async def test_an_answer_reaches_a_goal_that_was_restarted_meanwhile(fleet: InProcessFleet, clock: ManualClock) -> None:
    goal = await submit(fleet, "ask", {"to": "finance"})
    asked = await noted(fleet, goal, EntryKind.ASKED)
    question = question_of(asked)
    assert (question.text, question.to, question.key) == ("Ship it?", "finance", "main")
    assert question.until == goal.deadline_at
    assert [entry.goal_id for entry in await fleet.ledger.questions(0, 10)] == [goal.id]

    clock.advance(3 * DAY_S)
    await restart(fleet)
    clock.advance(3 * DAY_S)
    await give(fleet, goal, ADA, comment="looks good")

    assert value(await ended(fleet, goal)) == [True, "ada", "looks good"]
    assert await fleet.ledger.questions(0, 10) == []
    assert len(await of_kind(fleet, goal, EntryKind.ASKED)) == 1


async def test_an_answer_that_came_while_no_host_was_there_is_found(fleet: InProcessFleet) -> None:
    goal = await submit(fleet, "ask", {})
    await noted(fleet, goal, EntryKind.ASKED)
    await fleet.lose("host-0")
    fleet.add("host-1")

    await give(fleet, goal, BOB, approved=False)
    fleet.publish()

    assert value(await ended(fleet, goal)) == [False, "bob", ""]


async def test_who_answers_wakes_the_goal_that_waits(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LOOK_FIRST_S", 600.0)
    seldom = Settings(goals=CoordinatorSettings(question_look_s=600.0, sweep_every_s=600.0))
    async with in_process_fleet(make_app(), hosts=1, settings=seldom, clock=clock) as fleet:
        goal = await submit(fleet, "ask", {})
        await noted(fleet, goal, EntryKind.ASKED)
        await asyncio.sleep(0.01)

        await give(fleet, goal, BOB)
        await fleet.poke([goal])

        assert value(await ended(fleet, goal)) == [True, "bob", ""]


async def test_the_first_answer_stands_and_the_same_one_again_is_none_more(fleet: InProcessFleet) -> None:
    goal = await submit(fleet, "ask", {})
    await noted(fleet, goal, EntryKind.ASKED)
    first = await give(fleet, goal, ADA)

    again = await give(fleet, goal, ADA)

    assert again == first
    with pytest.raises(AlreadyExistsError, match="answered by ada: approved"):
        await give(fleet, goal, BOB)
    with pytest.raises(AlreadyExistsError, match="answered by ada: approved"):
        await give(fleet, goal, ADA, approved=False)
    await ended(fleet, goal)
    assert len(await of_kind(fleet, goal, EntryKind.ANSWERED)) == 1


async def test_only_who_was_asked_may_answer(fleet: InProcessFleet) -> None:
    by_role = await submit(fleet, "ask", {"to": "finance"})
    by_name = await submit(fleet, "ask", {"to": "bob"})
    await noted(fleet, by_role, EntryKind.ASKED)
    await noted(fleet, by_name, EntryKind.ASKED)

    with pytest.raises(PermissionDeniedError):
        await give(fleet, by_role, BOB)
    with pytest.raises(PermissionDeniedError):
        await give(fleet, by_name, ADA)
    await give(fleet, by_role, ADA)
    await give(fleet, by_name, BOB)

    assert value(await ended(fleet, by_role))[1] == "ada"
    assert value(await ended(fleet, by_name))[1] == "bob"


async def test_an_answer_to_what_was_not_asked_or_is_over_is_refused(
    fleet: InProcessFleet, clock: ManualClock
) -> None:
    goal = await submit(fleet, "ask", {"timeout_s": 60})
    await noted(fleet, goal, EntryKind.ASKED)
    for key in ("other", "main="):
        with pytest.raises((NotFoundError, InvalidArgumentError)):
            await give(fleet, goal, ADA, key=key)
    with pytest.raises(InvalidArgumentError):
        await give(fleet, goal, ADA, comment="x" * 4001)

    clock.advance(60)
    with pytest.raises(FailedPreconditionError, match="time to answer"):
        await give(fleet, goal, ADA)
    assert "nobody answered" in value(await ended(fleet, goal))
    with pytest.raises(FailedPreconditionError):
        await give(fleet, goal, ADA)


async def test_a_question_that_nobody_answered_in_time_stays_unanswered_after_a_restart(
    fleet: InProcessFleet, clock: ManualClock
) -> None:
    app = fleet.app
    let_go = asyncio.Event()
    runs: list[str] = []

    @app.goal
    async def patient(request: Any, team: nexus.Team) -> str:
        try:
            await team.approval("Well?", timeout_s=60)
        except DeadlineExceededError:
            runs.append("late")
            await let_go.wait()
        return "done"

    await restart(fleet)
    goal = await submit(fleet, "patient", None)
    await noted(fleet, goal, EntryKind.ASKED)
    clock.advance(60)
    await noted(fleet, goal, EntryKind.ANSWERED)
    clock.jump(-DAY_S)

    await restart(fleet)
    with pytest.raises(FailedPreconditionError):
        await give(fleet, goal, ADA)
    let_go.set()

    assert value(await ended(fleet, goal)) == "done"
    assert runs == ["late", "late"]


async def test_a_goal_that_ended_is_told_nothing_any_more(fleet: InProcessFleet) -> None:
    goal = await submit(fleet, "ask", {})
    await noted(fleet, goal, EntryKind.ASKED)
    (host,) = fleet.hosts_by_name.values()
    host.coordinator.cancel(goal.id, "ada")
    assert (await ended(fleet, goal)).status is GoalStatus.CANCELLED

    with pytest.raises(FailedPreconditionError, match="has ended"):
        await give(fleet, goal, ADA)
    assert await fleet.ledger.questions(0, 10) == []


async def test_each_question_of_a_goal_has_its_own_key(fleet: InProcessFleet) -> None:
    goal = await submit(fleet, "ask_twice", None)
    await noted(fleet, goal, EntryKind.ASKED)
    await give(fleet, goal, ADA, key="a")

    outcome = await ended(fleet, goal)

    assert outcome.failure is not None and "was asked already" in outcome.failure.message


@pytest.mark.parametrize("request_", [{"key": "a b"}, {"key": ""}, {"key": "x" * 101}, {"to": "x" * 201}, {"to": "\n"}])
async def test_a_question_that_could_not_be_answered_is_refused(
    fleet: InProcessFleet, request_: dict[str, Any]
) -> None:
    goal = await submit(fleet, "ask", request_)

    outcome = await ended(fleet, goal)

    assert outcome.failure is not None and outcome.failure.error_type == "InvalidArgumentError"
    assert await of_kind(fleet, goal, EntryKind.ASKED) == []
