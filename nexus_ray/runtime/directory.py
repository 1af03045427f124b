"""The directory: who is a member, under which epoch; and the supervisor that keeps every slot filled.

Law: fence, then publish. A host that is gone, or does not answer, is fenced in the ledger before anybody is told to
take over what it had. Epochs come from the ledger and only grow. It knows no Ray: processes come from a port.

There may be two for a while: one that was paused, or cut off, and its successor. An epoch is drawn before anything is
fenced or told, and each follows the last that this directory drew; where one is missing, a successor has drawn it, and
the older one resigns. So it tells nothing older, and takes nothing from the hosts of the newer.
"""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeVar

from nexus_ray.core.errors import (
    FailedPreconditionError,
    FencedError,
    NexusError,
    NotFoundError,
    UnavailableError,
)
from nexus_ray.ledger.ports import Ledger
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger
from nexus_ray.runtime.placement import Member, Membership, Slot

log = get_logger("runtime.directory")

_PINGS_MISSED_MAX = 4  # With a ping a second and its second of patience: a hung host is noticed within 5 s.
_START_AGAIN_AFTER_S = 1.0
_PAGE_GOALS = 1000
_KNOWN_LOOKS = 20
_KNOWN_EVERY_S = 0.05
_ID_CHARACTERS_MIN = 8  # Of a machine's id, as much as a person copies; a shorter piece may be a mistake.

AnswerT = TypeVar("AnswerT")


class Found(NamedTuple):
    """A host that lives already: its place, or None where it does not answer, and the membership that it goes by."""

    slot: Slot | None
    member: Member
    membership: Membership


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

    async def discover(self) -> Sequence[Found]:
        """Return the hosts that live already."""
        ...

    async def ping(self, member: Member) -> int:
        """Return when the host answers: the epoch that it goes by.

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
        self._drained: set[Slot] = set()
        self._left_over: set[str] = set()  # Hosts that are fenced and held goals when that was looked at last.
        self._epoch = 0  # The last one that was drawn.
        self._drawing = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._keepers: dict[Slot, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None
        self.membership = Membership(0, ())
        self.resigned: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Take over the hosts that live, start those that are missing, and return when all slots are filled.

        Raises:
            FencedError: Another directory has begun meanwhile.
        """
        self._epoch = await self._ledger.next_epoch()
        wanted = await self._hosts.slots()
        found = await self._hosts.discover()
        newest = max((host.membership for host in found), key=lambda membership: membership.epoch, default=None)
        if newest is not None:
            self._drained = {slot for slot in newest.drained if slot in wanted}
        for slot, member, _ in found:
            if slot is not None and slot in wanted and slot not in self._members and await self._may_write(member):
                self._members[slot] = member
            else:
                await self._fence(member.host)
                await self._hosts.kill(member)
        missing = [slot for slot in wanted if slot not in self._members and slot not in self._drained]
        for slot, member in zip(missing, await asyncio.gather(*map(self._hosts.spawn, missing)), strict=True):
            self._members[slot] = member
        await self._fence_the_dead()
        await self._publish()
        for slot in wanted:
            self._begin_to_keep(slot)
        self._looking = asyncio.get_running_loop().create_task(self._look(), name="look for machines")

    async def drain(self, target: str, is_undone: bool = False) -> list[str]:
        """Have a host, or all of a machine's, own nothing from now on, or again; return the hosts.

        They finish what they have, as members of weight 0; their places are not filled anew. This is known to every
        host that lives when it returns, so that the next directory hears of it from them.

        Args:
            target: A host's name, a machine's name, or a machine's id or its beginning.
            is_undone: Let them own their share again.

        Raises:
            NotFoundError: There is no such host or machine.
            FailedPreconditionError: Nobody would be left.
        """
        slots = {slot for slot, member in self._members.items() if target in (member.host, member.node)}
        if len(target) >= _ID_CHARACTERS_MIN:
            slots |= {slot for slot in await self._hosts.slots() if slot.node_id.startswith(target)}
        if not slots:
            raise NotFoundError(f"there is no host or node {target[:80]!r}")
        drained = self._drained - slots if is_undone else self._drained | slots
        if not self._members.keys() - drained:
            raise FailedPreconditionError("no host would be left that takes goals")
        self._drained = drained
        await self._office(self._publish())
        for slot in slots:
            self._begin_to_keep(slot)
        await self._until_known(self.membership.epoch)
        return sorted(self._members[slot].host for slot in slots if slot in self._members)

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

    async def _may_write(self, member: Member) -> bool:
        """Tell whether a host was not fenced: a directory may have ended between fencing a host and killing it."""
        try:
            await self._ledger.append(member.host, [])
        except FencedError:
            return False
        return True

    async def _fence_the_dead(self) -> None:
        """Fence every host that still holds goals on record but is not here.

        Left over from before a restart; or dead before it was, with a claim under way that reached the ledger later.
        """
        left_over: set[str] = set()
        after = ""
        while records := await self._ledger.unfinished(after, _PAGE_GOALS):
            alive = {member.host for member in self._members.values()}
            for host in sorted({record.host for record in records} - alive - left_over - {""}):
                if host not in self._left_over:
                    await self._fence(host)
                left_over.add(host)
            after = records[-1].goal.id
        self._left_over = left_over

    async def _draw(self) -> int:
        """Draw an epoch, and with it the proof that nobody has succeeded this directory.

        Raises:
            FencedError: Somebody has.
        """
        async with self._drawing:
            epoch = await self._ledger.next_epoch()
            if epoch != self._epoch + 1:
                raise FencedError("another directory has begun", epoch=epoch)
            self._epoch = epoch
            return epoch

    async def _fence(self, host: str) -> None:
        await self._draw()
        await self._ledger.fence(host)

    async def _until_known(self, epoch: int) -> None:
        for _ in range(_KNOWN_LOOKS):
            pings = (self._hosts.ping(member) for member in self._members.values())
            epochs = await asyncio.gather(*pings, return_exceptions=True)
            # A host that does not answer is seen to elsewhere.
            if all(isinstance(known, BaseException) or known >= epoch for known in epochs):
                return
            await asyncio.sleep(_KNOWN_EVERY_S)

    async def _office(self, work: Awaitable[AnswerT]) -> AnswerT:
        """Do what only the directory in office may; resign where there is a successor."""
        try:
            return await work
        except FencedError:
            if not self.resigned.done():
                log.warning("directory.resigned", epoch=self._epoch)
                self.resigned.set_result(None)
            raise

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._look_every_s)
            try:
                wanted = await self._hosts.slots()
                await self._office(self._fence_the_dead())
            except FencedError:
                return
            except NexusError as error:
                log.warning("directory.tries_again", error=str(error))
                continue
            self._drained &= set(wanted)  # A machine that has gone need not be remembered.
            for slot in wanted:
                self._begin_to_keep(slot)

    def _begin_to_keep(self, slot: Slot) -> None:
        keeper = self._keepers.get(slot)
        if keeper is None or keeper.done():
            name = f"slot {slot.number} of {slot.node_id[:8]}"
            self._keepers[slot] = asyncio.get_running_loop().create_task(self._keep_in_office(slot), name=name)

    async def _keep_in_office(self, slot: Slot) -> None:
        with contextlib.suppress(FencedError):
            await self._office(self._keep(slot))

    async def _keep(self, slot: Slot) -> None:
        """Keep one slot filled for as long as its machine is there."""
        while slot in self._members or await self._fill(slot):
            member = self._members[slot]
            why = await self._until_gone(member)
            log.warning("host.lost", host=member.host, why=why)
            metrics.count("nexus_errors_total", error_type="HostLost", component="directory", severity="high")
            await _insist(functools.partial(self._fence, member.host))
            del self._members[slot]
            await _insist(self._publish)
            await self._hosts.kill(member)

    async def _fill(self, slot: Slot) -> bool:
        """Start a host, however often it takes; False if the machine has gone meanwhile, or is drained."""
        while slot not in self._drained and slot in await _insist(self._hosts.slots):
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
        clock = asyncio.get_running_loop().time
        missed = 0
        pause_s = self._ping_every_s
        try:
            while missed < _PINGS_MISSED_MAX:
                done, _ = await asyncio.wait([death], timeout=pause_s)
                if done:
                    return "its process died"
                began_at = clock()
                try:
                    async with asyncio.timeout(max(1.0, self._ping_every_s)):
                        await self._hosts.ping(member)
                    missed = 0
                except (TimeoutError, UnavailableError):
                    missed += 1
                # A ping that was waited for in vain has been its own pause.
                pause_s = max(0.0, self._ping_every_s - (clock() - began_at))
            return f"it did not answer {missed} times"
        finally:
            death.cancel()

    async def _publish(self) -> None:
        epoch = await self._draw()
        async with self._changed:
            # Read after the epoch was drawn: two slots may change at once, and the larger epoch must be the newer list.
            if epoch > self.membership.epoch:
                members = (
                    replace(member, weight=0.0) if slot in self._drained else member
                    for slot, member in sorted(self._members.items(), key=lambda item: item[1].host)
                )
                self.membership = Membership(epoch, tuple(members), tuple(sorted(self._drained)))
                self._changed.notify_all()


async def _insist(work: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
    while True:
        try:
            return await work()
        except FencedError:
            raise
        except NexusError as error:
            log.warning("directory.tries_again", error=str(error))
            await asyncio.sleep(_START_AGAIN_AFTER_S)
