"""The post between two hosts: what is batched, what is cancelled, and what is told when delivery fails."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

import nexus_ray as nexus
from nexus_ray.agents.runner import RunnerSettings
from nexus_ray.agents.task import TaskOrder
from nexus_ray.core.errors import ResourceExhaustedError, UnavailableError
from nexus_ray.runtime import parcels
from nexus_ray.runtime.beside import Beside, Pulse
from nexus_ray.runtime.items import Cancel, Item, Reply
from nexus_ray.runtime.parcels import PostOffice
from nexus_ray.runtime.placement import Member, Membership
from tests.support.runners import Bench, bench, until

HERE, THERE = Member("host-here", "n", "n", weight=0.0), Member("host-there", "n", "n")


class Road:
    """Implements `Carrier` between offices of this process; keeps what it carried, and can be broken."""

    def __init__(self) -> None:
        self.offices: dict[str, PostOffice] = {}
        self.carried: list[tuple[str, list[Item]]] = []
        self.is_broken = False
        self.is_narrow = False  # No result gets through.
        self.gate = asyncio.Event()
        self.gate.set()

    async def carry(self, member: Member, origin: str, epoch: int, items: Sequence[Item]) -> None:
        await self.gate.wait()
        if self.is_broken:
            raise UnavailableError("the road is broken")
        if self.is_narrow and any(isinstance(item, Reply) and item.result for item in items):
            raise ResourceExhaustedError("the parcel is too long")
        self.carried.append((member.host, list(items)))
        self.offices[member.host].deliver(origin, epoch, items)

    def kinds(self, host: str) -> list[list[str]]:
        return [[type(item).__name__ for item in items] for to, items in self.carried if to == host]


def an_office(name: str, host: Bench, road: Road) -> PostOffice:
    return PostOffice(name, host.runner, road, Beside(name, host.runner, RunnerSettings(), Pulse()))


class Pair:
    """Two offices; every agent belongs `there`, every question comes from `here`."""

    def __init__(self, host: Bench, road: Road, knows_asker: bool) -> None:
        self.host, self.road = host, road
        self.here = an_office("host-here", host, road)
        self.there = an_office("host-there", host, road)
        road.offices = {"host-here": self.here, "host-there": self.there}
        self.here.set_membership(Membership(3, (HERE, THERE)))
        self.there.set_membership(Membership(3, (HERE, THERE)) if knows_asker else Membership(1, (THERE,)))

    def ask(self, agent: str, payload: Any = None, **options: Any) -> "asyncio.Task[Any]":
        order: TaskOrder = self.host.order(agent, payload, **options)
        return asyncio.ensure_future(self.here.dispatch(order))


class Work:
    def __init__(self) -> None:
        self.app = nexus.App("test")
        self.open = asyncio.Event()
        self.running = self.cancelled = 0
        work = self

        @self.app.agent(mailbox_max=1)
        class Gate(nexus.Agent):
            async def handle(self, payload: Any) -> Any:
                work.running += 1
                try:
                    if payload != "quick":
                        await work.open.wait()
                except asyncio.CancelledError:
                    work.cancelled += 1
                    raise
                return payload


@contextlib.asynccontextmanager
async def pair(work: Work, *, knows_asker: bool = True) -> AsyncIterator[Pair]:
    async with bench(work.app) as host:
        both = Pair(host, Road(), knows_asker)
        try:
            yield both
        finally:
            await both.here.close()
            await both.there.close()


async def test_all_that_waits_for_a_host_goes_in_one_parcel_and_comes_back_in_order() -> None:
    work = Work()
    async with pair(work) as both:
        asked = [both.ask(f"gate/{n}", "quick") for n in range(100)]
        results = await asyncio.gather(*asked)

        assert [result.host for result in results] == ["host-a"] * 100
        assert both.road.kinds("host-there") == [["Request"] * 100]
        replies = both.road.kinds("host-here")
        assert sum(map(len, replies)) == 100 and len(replies) <= 10


async def test_a_parcel_holds_no_more_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "_ITEMS_MAX", 8)
    work = Work()
    async with pair(work) as both:
        await asyncio.gather(*(both.ask(f"gate/{n}", "quick") for n in range(20)))

        assert [len(items) for items in both.road.kinds("host-there")] == [8, 8, 4]


async def test_a_parcel_holds_no_more_bytes_than_its_limit_but_for_one_item_that_has_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parcels, "_BYTES_MAX", 3 * 1_256 + 100)
    work = Work()
    work.open.set()
    async with pair(work) as both:
        payloads = ["x" * 998] * 7 + ["y" * 10_000] + ["x" * 998] * 2  # Of 1,000 bytes as JSON, and 256 beside it.
        results = await asyncio.gather(*(both.ask(f"gate/{n}", payload) for n, payload in enumerate(payloads)))

        assert [len(items) for items in both.road.kinds("host-there")] == [3, 3, 1, 1, 2]
        replies = [items for to, items in both.road.carried if to == "host-here"]
        assert all(sum(map(parcels._size_bytes, items)) <= 3 * 1_256 + 100 or len(items) == 1 for items in replies)
        assert [len(result.value) for result in results] == [len(payload) + 2 for payload in payloads]


async def test_a_reply_that_cannot_be_carried_as_it_is_is_told_as_an_error() -> None:
    work = Work()
    async with pair(work) as both:
        asked = both.ask("gate/k", "slow")
        await until(lambda: work.running)
        both.road.is_narrow = True
        work.open.set()

        with pytest.raises(ResourceExhaustedError, match="too long"):
            await asked
        both.road.is_narrow = False
        assert (await both.ask("gate/k", "quick")).failure is None


async def test_a_cancelled_question_cancels_its_task_over_there() -> None:
    work = Work()
    async with pair(work) as both:
        asked = both.ask("gate/k")
        await until(lambda: work.running)

        asked.cancel()
        await until(lambda: work.cancelled)

        assert both.road.kinds("host-there") == [["Request"], ["Cancel"]]
        assert asked.cancelled() or asked.cancelling()


async def test_a_private_agent_is_asked_beside_its_goal_and_no_parcel_goes() -> None:
    work = Work()
    async with pair(work) as both:
        result = await both.ask("gate/goal-1:k", "quick", private=True)

        assert result.failure is None and both.road.carried == []


async def test_where_delivery_fails_nobody_knows_and_it_works_again_later() -> None:
    work = Work()
    async with pair(work) as both:
        both.road.is_broken = True
        for answer in await asyncio.gather(*(both.ask(f"gate/{n}") for n in range(3)), return_exceptions=True):
            assert isinstance(answer, UnavailableError)
        both.road.is_broken = False

        assert (await both.ask("gate/k", "quick")).value == b'"quick"'


async def test_whoever_waits_for_a_host_that_has_left_is_told() -> None:
    work = Work()
    async with pair(work) as both:
        asked = both.ask("gate/k")
        await until(lambda: work.running)

        both.here.set_membership(Membership(5, (HERE, Member("host-new", "n", "n"))))

        with pytest.raises(UnavailableError, match="host-there has left"):
            await asked
        both.here.set_membership(Membership(4, (HERE, THERE)))
        assert both.here.membership.epoch == 5, "an older membership changes nothing"


async def test_what_a_host_that_has_left_had_asked_for_is_stopped() -> None:
    work = Work()
    async with pair(work) as both:
        asked = both.ask("gate/k")
        await until(lambda: work.running)

        both.there.set_membership(Membership(5, (THERE,)))
        await until(lambda: work.cancelled)
        asked.cancel()


async def test_a_host_that_is_not_known_yet_gets_its_answer_when_it_is() -> None:
    work = Work()
    async with pair(work, knows_asker=False) as both:
        quick, slow = both.ask("gate/a", "quick"), both.ask("gate/b")
        await until(lambda: work.running == 2)
        assert both.road.kinds("host-here") == []

        both.there.set_membership(Membership(2, (THERE,)))
        work.open.set()
        both.there.set_membership(Membership(3, (HERE, THERE)))

        assert (await quick).value == b'"quick"' and (await slow).failure is None
        assert work.cancelled == 0


async def test_a_host_that_left_before_it_was_known_has_its_tasks_stopped() -> None:
    work = Work()
    async with pair(work, knows_asker=False) as both:
        asked = [both.ask("gate/a", "quick"), both.ask("gate/b")]
        await until(lambda: work.running == 2)

        both.there.set_membership(Membership(4, (THERE,)))

        await until(lambda: work.cancelled == 1)
        assert both.road.kinds("host-here") == []
        for one in asked:
            one.cancel()


async def test_without_members_there_is_nobody_to_ask() -> None:
    work = Work()
    async with bench(work.app) as host:
        office = an_office("host-here", host, Road())
        with pytest.raises(UnavailableError):
            await office.dispatch(host.order("gate/k"))


@pytest.mark.parametrize(("limit", "value"), [("_WAITING_MAX", 3), ("_WAITING_BYTES_MAX", 3 * 256)])
async def test_too_much_waiting_for_a_host_is_refused(limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, limit, value)
    work = Work()
    async with pair(work) as both:
        both.road.gate.clear()
        asked = [both.ask(f"gate/{n}", "quick") for n in range(10)]
        await until(lambda: sum(task.done() for task in asked) == 7)
        refused = [task.exception() for task in asked if task.done()]
        both.road.gate.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)

        assert all(isinstance(error, ResourceExhaustedError) for error in refused)
        assert sum(not isinstance(answer, Exception) for answer in answers) == 3


async def test_a_full_mailbox_over_there_is_told_as_such() -> None:
    work = Work()
    async with pair(work) as both:
        asked = [both.ask("gate/k", "x") for _ in range(3)]
        await until(lambda: any(task.done() for task in asked))
        (refused,) = [task.exception() for task in asked if task.done()]
        work.open.set()

        assert isinstance(refused, ResourceExhaustedError) and "gate/k" in str(refused)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(not isinstance(answer, Exception) for answer in answers) == 2


async def test_a_question_by_an_older_membership_is_sent_back_if_the_agent_is_elsewhere_now() -> None:
    work = Work()
    async with pair(work) as both:
        drained = Member("host-there", "n", "n", weight=0.0)
        both.there.set_membership(Membership(5, (HERE, drained, Member("x", "n", "n"))))

        with pytest.raises(UnavailableError, match="belongs to another host now"):
            await both.ask("gate/k", "quick")
        assert work.running == 0


async def test_answers_to_what_nobody_asked_change_nothing() -> None:
    work = Work()
    async with pair(work) as both:
        both.here.deliver("host-there", 1, [Reply(77, None, "unavailable", "x"), Cancel(78)])

        assert (await both.ask("gate/k", "quick")).failure is None
