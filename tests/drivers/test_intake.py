"""Requests at the same moment share a call of the ledger, and are refused each for itself all the same."""

import asyncio
from collections.abc import Sequence

import pytest

from nexus_ray.core.errors import AlreadyExistsError, NexusError, UnavailableError
from nexus_ray.core.ids import new_id
from nexus_ray.ledger.goal import Goal
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.ledger.ports import Acceptance
from nexus_ray.runtime.intake import Intake, Verdict


class Gated(MemoryLedger):
    """The twin, which lets a call of `accept` through only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.open.set()
        self.calls: list[int] = []
        self.error: Exception | None = None

    async def accept(self, goals: Sequence[Goal], holder: str = "") -> list[Acceptance]:
        self.calls.append(len(goals))
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return await super().accept(goals, holder)


class Told:
    """Notes which goals were poked."""

    def __init__(self) -> None:
        self.goals: list[str] = []

    async def poke(self, goals: Sequence[Goal]) -> None:
        self.goals += [goal.id for goal in goals]


def goal(payload: bytes = b"1", key: str = "") -> Goal:
    return Goal(new_id("goal"), "echo", payload, "ada", 0.0, 9e9, {}, key)


async def at_once(intake: Intake, ledger: Gated, *requests: Sequence[Goal]) -> list[list[Verdict]]:
    """Have requests come while a first call is under way."""
    ledger.open.clear()
    first = asyncio.create_task(intake.accept([goal()]))
    while not ledger.calls:
        await asyncio.sleep(0)
    tasks = [asyncio.create_task(intake.accept(goals)) for goals in requests]
    await asyncio.sleep(0)
    ledger.open.set()
    verdicts = await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.wait([first])
    for found in verdicts:
        if isinstance(found, BaseException):
            raise found
    return [found for found in verdicts if not isinstance(found, BaseException)]


async def test_what_comes_while_a_call_is_under_way_goes_into_the_next_one() -> None:
    ledger, told = Gated(), Told()
    requests = [[goal()], [goal(), goal()], [goal()]]

    verdicts = await at_once(Intake(ledger, told), ledger, *requests)

    assert ledger.calls == [1, 4]
    assert [[one.goal_id for one in found if isinstance(one, Acceptance)] for found in verdicts] == [
        [one.id for one in goals] for goals in requests
    ]


async def test_a_call_takes_a_thousand_goals_and_what_is_more_is_taken_in_several() -> None:
    ledger, told = Gated(), Told()

    await at_once(Intake(ledger, told), ledger, [goal()], [goal() for _ in range(1000)], [goal()])
    verdicts = await Intake(ledger, told).accept([goal() for _ in range(1500)])

    assert ledger.calls == [1, 1, 1000, 1, 750, 750]
    assert all(isinstance(verdict, Acceptance) for verdict in verdicts)


async def test_a_key_in_conflict_refuses_its_own_request_and_not_the_one_beside_it() -> None:
    ledger, told = Gated(), Told()
    intake = Intake(ledger, told)
    await intake.accept([goal(b"1", "k")])
    ledger.calls.clear()
    good, bad, several = [goal()], [goal(b"2", "k")], [goal(), goal(b"3", "k"), goal()]

    verdicts = await at_once(intake, ledger, good, bad, several)

    refused = [[isinstance(one, AlreadyExistsError) for one in found] for found in verdicts]
    assert refused == [[False], [True], [False, True, False]]


async def test_only_what_is_new_is_poked() -> None:
    ledger, told = Gated(), Told()
    intake = Intake(ledger, told)
    first, other = goal(key="k"), goal()

    await intake.accept([first])
    await intake.accept([goal(key="k"), other])
    await asyncio.sleep(0)

    assert told.goals == [first.id, other.id]


async def test_a_ledger_that_cannot_write_refuses_everybody_at_once() -> None:
    ledger, told = Gated(), Told()
    ledger.error = UnavailableError("the disk is full")

    verdicts = await at_once(Intake(ledger, told), ledger, [goal()], [goal(), goal()])

    assert ledger.calls == [1, 3]
    assert [[type(one) for one in found] for found in verdicts] == [[UnavailableError], [UnavailableError] * 2]
    assert told.goals == []


async def test_a_bug_is_told_to_who_waits_and_the_next_request_is_taken() -> None:
    ledger, told = Gated(), Told()
    intake = Intake(ledger, told)
    ledger.error = ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        await intake.accept([goal()])
    ledger.error = None

    assert isinstance((await intake.accept([goal()]))[0], Acceptance)


async def test_a_caller_that_goes_away_takes_nobody_with_it() -> None:
    ledger, told = Gated(), Told()
    intake = Intake(ledger, told)
    ledger.open.clear()
    gone = asyncio.create_task(intake.accept([goal()]))
    stays = asyncio.create_task(intake.accept([goal()]))
    while not ledger.calls:
        await asyncio.sleep(0)

    gone.cancel()
    await asyncio.wait([gone])
    ledger.open.set()

    assert isinstance((await stays)[0], Acceptance)


async def test_who_waits_when_it_closes_is_told_that_nobody_knows() -> None:
    ledger, told = Gated(), Told()
    intake = Intake(ledger, told)
    ledger.open.clear()
    waiting = [asyncio.create_task(intake.accept([goal()])) for _ in range(3)]
    while not ledger.calls:
        await asyncio.sleep(0)
    await asyncio.sleep(0)

    await intake.close()

    for found in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(found, NexusError) and found.code == "unavailable"
