"""The directory: who is a member, under which epoch; and the supervisor that keeps every slot filled.

Law: fence, then publish. A host that is gone, or does not answer, is fenced in the ledger before anybody is told to
take over what it had. Epochs come from the ledger and only grow. It knows no Ray: processes come from a port.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from nexus_ray.core.errors import NexusError, UnavailableError
from nexus_ray.goals.ledger import Ledger
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger
from nexus_ray.runtime.placement import Member, Membership

log = get_logger("runtime.directory")

_PINGS_MISSED_MAX = 4  # With a ping a second and its second of patience: a hung host is noticed within 5 s.
_START_AGAIN_AFTER_S = 1.0
_PAGE_GOALS = 1000

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one host: a machine, and a number on it."""

    node_id: str
    number: int


class HostProcesses(Protocol):
    """Makes and ends host processes."""

    async def slots(self) -> Sequence[Slot]:
        """Return the places that there are, on the machines that are up now."""
        ...

    async def spawn(self, slot: Slot) -> Member:
        """Start a process for a slot, under a name that was never used before.

        Raises:
            UnavailableError: It cannot be started.
        """
        ...

    async def discover(self) -> Sequence[tuple[Slot | None, Member]]:
        """Return the hosts that live already, with their slots; None for one that does not answer."""
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

    async def kill(self, member: Member) -> None:
        """End the process for good."""
        ...


class Directory:
    """Keeps every slot filled with a host; used from one event loop only."""

    def __init__(self, hosts: HostProcesses, ledger: Ledger, ping_every_s: float, look_every_s: float = 5.0) -> None:
        """`look_every_s` says how often machines that came are looked for."""
        self._hosts = hosts
        self._ledger = ledger
        self._ping_every_s = ping_every_s
        self._look_every_s = look_every_s
        self._members: dict[Slot, Member] = {}
        self._changed = asyncio.Condition()
        self._keepers: dict[Slot, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None
        self.membership = Membership(0, ())

    async def start(self) -> None:
        """Take over the hosts that live, start those that are missing, and return when all slots are filled."""
        wanted = await self._hosts.slots()
        for slot, member in await self._hosts.discover():
            if slot is not None and slot in wanted and slot not in self._members:
                self._members[slot] = member
            else:
                await self._ledger.fence(member.host)
                await self._hosts.kill(member)
        missing = [slot for slot in wanted if slot not in self._members]
        for slot, member in zip(missing, await asyncio.gather(*map(self._hosts.spawn, missing)), strict=True):
            self._members[slot] = member
        await self._fence_the_dead()
        await self._publish()
        for slot in wanted:
            self._begin_to_keep(slot)
        self._looking = asyncio.get_running_loop().create_task(self._look(), name="look for machines")

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
        tasks = [*self._keepers.values(), *filter(None, [self._looking])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _fence_the_dead(self) -> None:
        """Fence every host that still holds goals on record but is not here: left over from before a restart."""
        alive = {member.host for member in self._members.values()}
        after = ""
        while records := await self._ledger.unfinished(after, _PAGE_GOALS):
            for host in sorted({record.host for record in records} - alive - {""}):
                await self._ledger.fence(host)
            after = records[-1].goal.id

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._look_every_s)
            try:
                wanted = await self._hosts.slots()
            except NexusError as error:
                log.warning("directory.tries_again", error=str(error))
                continue
            for slot in wanted:
                self._begin_to_keep(slot)

    def _begin_to_keep(self, slot: Slot) -> None:
        keeper = self._keepers.get(slot)
        if keeper is None or keeper.done():
            name = f"slot {slot.number} of {slot.node_id[:8]}"
            self._keepers[slot] = asyncio.get_running_loop().create_task(self._keep(slot), name=name)

    async def _keep(self, slot: Slot) -> None:
        """Keep one slot filled for as long as its machine is there."""
        while slot in self._members or await self._fill(slot):
            member = self._members[slot]
            why = await self._until_gone(member)
            log.warning("host.lost", host=member.host, why=why)
            metrics.count("nexus_errors_total", error_type="HostLost", component="directory", severity="high")
            await _insist(functools.partial(self._ledger.fence, member.host))
            del self._members[slot]
            await _insist(self._publish)
            await self._hosts.kill(member)

    async def _fill(self, slot: Slot) -> bool:
        """Start a host, however often it takes; False if the machine has gone meanwhile."""
        while slot in await _insist(self._hosts.slots):
            try:
                self._members[slot] = await self._hosts.spawn(slot)
            except NexusError as error:
                log.warning("host.not_started", error=str(error), slot=slot.number, node_id=slot.node_id)
                await asyncio.sleep(_START_AGAIN_AFTER_S)
                continue
            await _insist(self._publish)
            log.info("host.started", host=self._members[slot].host)
            return True
        return False

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

    async def _publish(self) -> None:
        epoch = await self._ledger.next_epoch()
        async with self._changed:
            # Read after the epoch was drawn: two slots may change at once, and the larger epoch must be the newer list.
            if epoch > self.membership.epoch:
                members = sorted(self._members.values(), key=lambda member: member.host)
                self.membership = Membership(epoch, tuple(members))
                self._changed.notify_all()


async def _insist(work: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
    while True:
        try:
            return await work()
        except NexusError as error:
            log.warning("directory.tries_again", error=str(error))
            await asyncio.sleep(_START_AGAIN_AFTER_S)
