"""The directory: who is a member, under which epoch; and the supervisor that keeps every slot filled.

Law: fence, then publish. A host that is gone, or does not answer, is fenced in the ledger before anybody is told to
take over what it had. Epochs come from the ledger and only grow. It knows no Ray: processes come from a port.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Protocol

from nexus_ray.core.errors import NexusError, UnavailableError
from nexus_ray.goals.ledger import Ledger
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger
from nexus_ray.runtime.placement import Member, Membership

log = get_logger("runtime.directory")

_PINGS_MISSED_MAX = 4  # With a ping a second and its second of patience: a hung host is noticed within 5 s.
_START_AGAIN_AFTER_S = 1.0
_PAGE_GOALS = 1000


class HostProcesses(Protocol):
    """Makes and ends host processes."""

    async def spawn(self, slot: int) -> Member:
        """Start a process for a slot, under a name that was never used before.

        Raises:
            UnavailableError: It cannot be started.
        """
        ...

    async def discover(self) -> list[tuple[int, Member]]:
        """Return the hosts that live already, with their slots, best known first."""
        ...

    async def ping(self, member: Member) -> None:
        """Return when the host answers.

        Raises:
            UnavailableError: It does not.
        """
        ...

    async def until_death(self, member: Member) -> None:
        """Return when the process has died."""
        ...

    async def publish(self, member: Member, membership: Membership) -> None:
        """Tell a host the membership; best effort."""
        ...

    async def kill(self, member: Member) -> None:
        """End the process for good."""
        ...


class Directory:
    """Keeps `slots` hosts alive; used from one event loop only."""

    def __init__(self, slots: int, hosts: HostProcesses, ledger: Ledger, ping_every_s: float) -> None:
        self._slots = slots
        self._hosts = hosts
        self._ledger = ledger
        self._ping_every_s = ping_every_s
        self._members: dict[int, Member] = {}
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self.membership = Membership(0, ())

    async def start(self) -> None:
        """Take over the hosts that live, start those that are missing, and return when all slots are filled."""
        for slot, member in await self._hosts.discover():
            if slot < self._slots and slot not in self._members:
                self._members[slot] = member
        missing = [slot for slot in range(self._slots) if slot not in self._members]
        for slot, member in zip(missing, await asyncio.gather(*map(self._hosts.spawn, missing)), strict=True):
            self._members[slot] = member
        await self._fence_the_dead()
        await self._publish()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._watch(slot), name=f"slot {slot}") for slot in range(self._slots)]

    async def watch(self, epoch: int, wait_s: float) -> Membership:
        """Return the membership as soon as it is newer than `epoch`, or as it is after `wait_s` seconds."""
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: self.membership.epoch > epoch)
        except TimeoutError:
            pass
        return self.membership

    async def stop(self) -> None:
        """Stop watching; the hosts live on."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _fence_the_dead(self) -> None:
        """Fence every host that still holds goals on record but is not here: left over from before a restart."""
        alive = {member.host for member in self._members.values()}
        after = ""
        while records := await self._ledger.unfinished(after, _PAGE_GOALS):
            for host in sorted({record.host for record in records} - alive - {""}):
                await self._ledger.fence(host)
            after = records[-1].goal.id

    async def _watch(self, slot: int) -> None:
        while True:
            member = self._members[slot]
            why = await self._until_gone(member)
            log.warning("host.lost", host=member.host, why=why)
            metrics.count("nexus_errors_total", error_type="HostLost", component="directory", severity="high")
            del self._members[slot]
            await self._insist(functools.partial(self._ledger.fence, member.host))
            await self._insist(self._publish)
            await self._hosts.kill(member)
            await self._insist(functools.partial(self._fill, slot))
            log.info("host.replaced", lost=member.host, by=self._members[slot].host)

    async def _until_gone(self, member: Member) -> str:
        death = asyncio.ensure_future(self._hosts.until_death(member))
        missed = 0
        try:
            while missed < _PINGS_MISSED_MAX:
                done, _ = await asyncio.wait([death], timeout=self._ping_every_s)
                if done:
                    return "its process died"
                try:
                    async with asyncio.timeout(max(1.0, self._ping_every_s)):
                        await self._hosts.ping(member)
                    missed = 0
                except (TimeoutError, UnavailableError):
                    missed += 1
            return f"it did not answer {missed} times"
        finally:
            death.cancel()

    async def _fill(self, slot: int) -> None:
        self._members[slot] = await self._hosts.spawn(slot)
        await self._publish()

    async def _publish(self) -> None:
        members = tuple(self._members[slot] for slot in sorted(self._members))
        self.membership = Membership(await self._ledger.next_epoch(), members)
        await asyncio.gather(*(self._hosts.publish(member, self.membership) for member in members))
        async with self._changed:
            self._changed.notify_all()

    async def _insist(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await work()
            except NexusError as error:
                log.warning("directory.tries_again", error=str(error))
                await asyncio.sleep(_START_AGAIN_AFTER_S)
