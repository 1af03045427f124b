"""A host that was declared dead and lives: it finds out though it has nothing to write."""

import asyncio

import nexus_ray as nexus
from nexus_ray.core.errors import UnavailableError
from nexus_ray.ledger.goal import Write
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.runtime.placement import Member, Membership
from tests.support.in_process import in_process_fleet

HERE, THERE = Member("host-0", "here", ""), Member("host-1", "here", "")


class Starting(MemoryLedger):
    """A ledger that takes nothing at the first try."""

    tries = 0

    async def append(self, writer: str, writes: list[Write]) -> list[bool]:  # type: ignore[override]
        self.tries += 1
        if self.tries == 1:
            raise UnavailableError("the ledger is starting")
        return await super().append(writer, writes)


async def test_a_host_that_is_a_member_no_more_finds_out_that_it_is_fenced() -> None:
    ledger = Starting()
    async with in_process_fleet(nexus.App("test"), ledger=ledger) as fleet:
        host = fleet.hosts_by_name["host-0"]
        await ledger.fence("host-0")

        host.set_membership(Membership(9, (THERE,)))

        await asyncio.wait_for(asyncio.shield(host.stream.fenced), 5)
        assert ledger.tries == 2


async def test_a_host_that_is_no_member_and_not_fenced_lives_on() -> None:
    ledger = Starting()
    async with in_process_fleet(nexus.App("test"), ledger=ledger) as fleet:
        host = fleet.hosts_by_name["host-0"]

        host.set_membership(Membership(9, (THERE,)))
        async with asyncio.timeout(5):
            while ledger.tries < 2:
                await asyncio.sleep(0.001)
        host.set_membership(Membership(10, (HERE, THERE)))

        assert not host.stream.fenced.done()
