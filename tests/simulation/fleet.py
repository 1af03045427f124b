"""The processes of a fleet: hosts and the directory with their real insides, wired over the simulated network.

Law: what `runtime/host_actor.py`, `directory_actor.py`, `follow.py` and `ledger_actor.py` do with Ray is done here
with `Network`, line by line; everything below them is the product's own code.
"""

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from nexus_ray.core.errors import FencedError, NexusError, UnavailableError
from nexus_ray.ledger.goal import Goal, Outcome
from nexus_ray.ledger.ports import Acceptance
from nexus_ray.runtime.directory import Directory, Found
from nexus_ray.runtime.items import Item
from nexus_ray.runtime.placement import Member, Membership, Slot
from nexus_ray.runtime.process import HostProcess
from tests.simulation.loop import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

_ASK_AGAIN_S = 0.5
_ANSWER_S = 5.0


class Host:
    """A host's process: `AgentHost` without Ray. Implements `Carrier` for its own post office."""

    def __init__(self, world: "World", slot: Slot, process: Process) -> None:
        self.world = world
        self.slot = slot
        self.process = process
        self.inside: HostProcess | None = None
        self.member = Member(process.name, slot.node_id, slot.node_id)

    def boot(self) -> Member:
        """Begin to work, unless it has begun already."""
        if self.inside is None:
            world = self.world
            self.inside = HostProcess(
                host=self.process.name,
                node=self.slot.node_id,
                app=world.app,
                settings=world.settings,
                ledger=world.ledger_client(),
                carrier=self,
                clock=self.process,
            )
            self.inside.runner._random = Random(f"{world.seed} {self.process.name}")
            world.plant(self.inside)
            self.inside.start()
            self.process.start(self._until_fenced())
            self.process.start(self._follow())
        return self.member

    async def carry(self, member: Member, origin: str, epoch: int, items: Sequence[Item]) -> None:
        """Bring a parcel to another host."""
        other = self._other(member)
        await self.world.network.call(other.process, "parcel", other.inside.deliver, origin, epoch, items)

    async def hand_on(self, member: Member, goals: Sequence[Goal]) -> None:
        """Tell another host of goals that this one gave back."""
        other = self._other(member)
        await self.world.network.call(other.process, "hand on", other.inside.poke, goals)

    def _other(self, member: Member) -> Any:
        other = self.world.hosts.get(member.host)
        if other is None or other.inside is None:
            raise UnavailableError("nobody listens there", is_lost=True)
        return other

    def epoch(self) -> int:
        return 0 if self.inside is None else self.inside.post.membership.epoch

    async def accept_and_run(self, goal: Goal) -> tuple[Acceptance, Outcome]:
        """What the direct door does for a client: accept, run, and tell the outcome."""
        assert self.inside is not None
        coordinator = self.inside.coordinator
        ((acceptance, future),) = await coordinator.accept_and_run([goal])
        self.world.referee.accepted(acceptance.goal_id)
        if future is None:
            return acceptance, await coordinator.wait(acceptance.goal_id, goal.deadline_at)
        try:
            return acceptance, await future
        except asyncio.CancelledError:
            raise UnavailableError("the host is stopping") from None

    async def _until_fenced(self) -> None:
        assert self.inside is not None
        await self.inside.stream.fenced
        self.world.tell("fenced")
        self.process.kill()

    async def _follow(self) -> None:
        assert self.inside is not None
        await follow(self.world, self.inside.set_membership)


async def follow(world: "World", take: Callable[[Membership], None]) -> None:
    """Hand every newer membership to `take`; never returns."""
    epoch = 0
    while True:
        try:
            membership = await world.watch(epoch)
        except NexusError:
            await asyncio.sleep(_ASK_AGAIN_S)
            continue
        if membership.epoch > epoch:
            epoch = membership.epoch
            take(membership)


class Hosts:
    """Implements `HostProcesses`; lives in the directory's process, and makes processes through the cluster's."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._network = world.network

    async def slots(self) -> Sequence[Slot]:
        return list(await self._cluster("slots", lambda: self._world.slots))

    async def spawn(self, slot: Slot) -> Member:
        host: Host = await self._cluster("spawn", self._world.spawn, slot)
        return await self._start(host)

    async def _start(self, host: Host) -> Member:
        member: Member = await self._call(host, "start", host.boot)
        return member

    async def _call(self, host: Host, what: str, function: Any) -> Any:
        # Ray's own calls: they fail when the process dies, and otherwise arrive.
        return await self._network.call(host.process, what, function, sure=True)

    async def discover(self) -> Sequence[Found]:
        living = await self._cluster("list", lambda: [h for h in self._world.hosts.values() if h.process.is_alive])
        return list(await asyncio.gather(*map(self._found, living)))

    async def _found(self, host: Host) -> Found:
        try:
            async with asyncio.timeout(_ANSWER_S):
                member = await self._start(host)
                assert host.inside is not None
                membership = await self._call(host, "membership", lambda: host.inside.post.membership)
            return Found(host.slot, member, membership)
        except (TimeoutError, UnavailableError):
            return Found(None, host.member, Membership(0, ()))

    async def ping(self, member: Member) -> int:
        host = self._world.hosts[member.host]
        return int(await self._network.call(host.process, "ping", host.epoch))

    async def until_death(self, member: Member) -> None:
        try:
            await self._call(self._world.hosts[member.host], "until death", self._world.loop.create_future)
        except UnavailableError:
            return

    async def kill(self, member: Member) -> None:
        await self._cluster("kill", self._world.end_host, member.host)

    async def _cluster(self, what: str, function: Any, *args: Any) -> Any:
        return await self._network.call(self._world.cluster, what, function, *args, sure=True)


class DirectoryProcess:
    """`DirectoryActor` without Ray: begins when it is first asked, and ends where there is a successor."""

    def __init__(self, world: "World", process: Process) -> None:
        self._world = world
        self._process = process
        self._directory: Directory | None = None
        self._starting = asyncio.Lock()

    async def watch(self, epoch: int, wait_s: float) -> Membership:
        membership = await (await self._begun()).watch(epoch, wait_s)
        if self._process.is_alive:
            self._world.referee.published(membership)
        return membership

    async def drain(self, target: str, is_undone: bool) -> list[str]:
        return await (await self._begun()).drain(target, is_undone)

    async def _begun(self) -> Directory:
        world = self._world
        async with self._starting:
            if self._directory is None:
                directory = Directory(Hosts(world), world.ledger_client(), world.settings.runtime.health_interval_s)
                try:
                    await directory.start()
                except FencedError:
                    await self._end()
                directory.resigned.add_done_callback(lambda _: world.kill(self._process, "resigned"))
                self._directory = directory
        return self._directory

    async def _end(self) -> None:
        self._world.kill(self._process, "has a successor")
        await self._world.loop.create_future()  # Never.
