"""A host's insides, without Ray: the runner, the coordinator, the post office and the loops that keep them going.

Law: `HostProcess` only wires and ticks; what is decided is decided in the parts.
"""

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Sequence
from typing import Any

import psutil

from nexus_ray.agents.ports import Isolation
from nexus_ray.agents.runner import AgentRunner
from nexus_ray.app import App
from nexus_ray.config import Settings
from nexus_ray.core.clock import Clock, SystemClock
from nexus_ray.core.errors import NexusError
from nexus_ray.core.identity import AgentId
from nexus_ray.goals.coordinator import Coordinator
from nexus_ray.goals.rights import Rights
from nexus_ray.goals.spec import Specs
from nexus_ray.goals.stream import WriteStream
from nexus_ray.ledger.goal import Goal
from nexus_ray.ledger.ports import Ledger
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger
from nexus_ray.runtime.beside import Beside, Pulse
from nexus_ray.runtime.items import Item
from nexus_ray.runtime.parcels import Carrier, PostOffice
from nexus_ray.runtime.placement import Member, Membership

log = get_logger("runtime.process")

_CLEAR_EVERY_S = 0.2  # How often a draining host looks for agents whose tasks have ended.


class HostProcess:
    """One agent host: its agents, the goals that it owns, and its place among the others."""

    def __init__(
        self,
        *,
        host: str,
        node: str,
        app: App,
        settings: Settings,
        ledger: Ledger,
        carrier: Carrier,
        isolation: Isolation | None = None,
        clock: Clock | None = None,
        rights: Rights | None = None,
    ) -> None:
        self.host = host
        self._node = node
        self._settings = settings
        self.clock = clock or SystemClock()
        self.specs = Specs(app.agents, app.goals)
        self.ledger = ledger
        self.stream = WriteStream(ledger, host, self.clock)
        self.runner = AgentRunner(
            app.agents, host=host, recorder=self.stream, clock=self.clock, settings=settings.agents,
            isolation=isolation, admit=(lambda order: None) if rights is None else rights.admit,
        )  # fmt: skip
        self._pulse = Pulse()
        self.post = PostOffice(host, self.runner, carrier, Beside(host, self.runner, settings.agents, self._pulse))
        self.coordinator = Coordinator(
            host=host,
            specs=self.specs,
            ledger=ledger,
            stream=self.stream,
            dispatcher=self.post,
            clock=self.clock,
            settings=settings.goals,
            hand_on=self._hand_on,
            rights=rights,
        )
        self._carrier = carrier
        self._given_back: list[Goal] = []
        self._is_draining = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to write, to sweep and to passivate."""
        self.stream.start()
        self._pulse.start()
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._every(self._settings.goals.sweep_every_s, self._sweep), name="sweep"),
            loop.create_task(self._every(self._settings.agents.passivate_every_s, self._passivate), name="passivate"),
        ]

    def set_membership(self, membership: Membership) -> None:
        """Go by a newer membership, and look at once for goals that have become this host's.

        A host without weight drains: it finishes the tasks of its agents, and gives its goals back for others. One
        that is a member no more was most likely declared dead: whoever waits here for an outcome should learn of it.
        """
        is_newer = membership.epoch > self.post.membership.epoch
        was_member = self._me is not None
        self.post.set_membership(membership)
        if is_newer and self._tasks:
            me = self._me
            self._drain() if me is not None and me.weight <= 0 else self._resume()
            if was_member and me is None:
                self._begin(self.stream.look_for_fence(), "look for fence")
            self._begin(self._sweep(), "sweep now")

    @property
    def _me(self) -> Member | None:
        return next((member for member in self.post.membership.members if member.host == self.host), None)

    def _begin(self, work: Coroutine[None, None, None], name: str) -> None:
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(asyncio.get_running_loop().create_task(work, name=name))

    def _drain(self) -> None:
        if not self._is_draining:
            self._is_draining = True
            self.coordinator.drain()
            self._begin(self._clear(), "clear")

    def _resume(self) -> None:
        if self._is_draining:
            self._is_draining = False
            self.coordinator.resume()

    async def _clear(self) -> None:
        """Let agents go as their tasks end, for as long as this host drains."""
        while self._is_draining:
            await self.runner.passivate(keep=self._belongs_here)
            await asyncio.sleep(_CLEAR_EVERY_S)

    def _hand_on(self, goal: Goal) -> None:
        self._given_back.append(goal)
        if len(self._given_back) == 1:
            self._begin(self._poke_owners(), "hand on")

    async def _poke_owners(self) -> None:
        await asyncio.sleep(0)  # All that are given back by one write go together.
        goals, self._given_back = self._given_back, []
        by_owner: dict[Member, list[Goal]] = {}
        # Best effort: an owner that does not hear of a goal finds it when it sweeps.
        with contextlib.suppress(NexusError):
            for goal in goals:
                by_owner.setdefault(self.post.owner(goal.id), []).append(goal)
        for owner, owned in by_owner.items():
            with contextlib.suppress(NexusError):
                await self._carrier.hand_on(owner, owned)

    def deliver(self, origin: str, epoch: int, items: Sequence[Item]) -> None:
        """Take a parcel in."""
        self.post.deliver(origin, epoch, items)

    def poke(self, goals: Sequence[Goal]) -> None:
        """Take up goals that were just accepted, if they belong here."""
        for goal in goals:
            if self._is_mine(goal.id):
                self.coordinator.launch(goal)

    def status(self) -> dict[str, Any]:
        """Tell how busy this host is."""
        me = self._me
        return {
            "host": self.host,
            "node": self._node,
            "epoch": self.post.membership.epoch,
            "goals": self.coordinator.held,
            "agents": self.runner.counts(),
            "state": self._state(),
            "node_id": me.node_id if me is not None else "",
            "process": os.getpid(),
        }

    def _state(self) -> str:
        if not self._is_draining:
            return "active"
        return "draining" if self.coordinator.held or any(self.runner.counts().values()) else "drained"

    def agents(self, limit: int, tenant: str = "") -> list[dict[str, Any]]:
        """Return active agents, of one tenant if it is given, `limit` at the most."""
        return [
            {
                "agent": str(agent),
                "type": agent.type,
                "key": agent.bare.key,
                "tenant": agent.tenant,
                "host": self.host,
                "running": running,
                "waiting": waiting,
            }
            for agent, running, waiting in self.runner.active(limit, tenant)
        ]

    async def close(self) -> None:
        """Stop; what is under way goes on elsewhere."""
        self._pulse.stop()
        for task in self._tasks:
            task.cancel()
        await self.coordinator.close()
        await self.post.close()
        await self.runner.close()
        await self.stream.close()

    def _is_mine(self, name: str | AgentId) -> bool:
        return bool(self.post.membership.members) and self.post.owner(name).host == self.host

    def _is_alive(self, host: str) -> bool:
        return any(member.host == host for member in self.post.membership.members)

    async def _sweep(self) -> None:
        with contextlib.suppress(NexusError):
            await self.coordinator.sweep(self._is_mine, self._is_alive)

    async def _passivate(self) -> None:
        await self.runner.passivate(keep=self._belongs_here)
        await self.runner.make_room(psutil.Process().memory_info().rss)
        self.runner.publish_counts(self._node)
        metrics.gauge("nexus_hosts", 1, node=self._node)

    def _belongs_here(self, agent: AgentId) -> bool:
        is_private = agent.key.startswith("goal-") and ":" in agent.key
        return is_private or self._is_mine(agent)

    async def _every(self, seconds: float, work: Any) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Exception:
                log.exception("host.loop_failed", loop=work.__name__)
