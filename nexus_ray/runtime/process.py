"""A host's insides, without Ray: the runner, the coordinator, the post office and the loops that keep them going.

Law: `HostProcess` only wires and ticks; what is decided is decided in the parts.
"""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import Any

from nexus_ray.agents.ports import Isolation
from nexus_ray.agents.runner import AgentRunner
from nexus_ray.app import App
from nexus_ray.config import Settings
from nexus_ray.core.clock import Clock, SystemClock
from nexus_ray.core.errors import NexusError
from nexus_ray.core.identity import AgentId
from nexus_ray.goals.coordinator import Coordinator
from nexus_ray.goals.goal import Goal
from nexus_ray.goals.ledger import Ledger
from nexus_ray.goals.spec import Specs
from nexus_ray.goals.stream import WriteStream
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger
from nexus_ray.runtime.parcels import Carrier, Item, PostOffice
from nexus_ray.runtime.placement import Membership

log = get_logger("runtime.process")


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
    ) -> None:
        self.host = host
        self._node = node
        self._settings = settings
        self.clock = clock or SystemClock()
        self.specs = Specs(app.agents, app.goals)
        self.stream = WriteStream(ledger, host, self.clock)
        self.runner = AgentRunner(
            app.agents, host=host, recorder=self.stream, clock=self.clock, settings=settings.agents, isolation=isolation
        )
        self.post = PostOffice(host, self.runner, carrier)
        self.coordinator = Coordinator(
            host=host,
            specs=self.specs,
            ledger=ledger,
            stream=self.stream,
            dispatcher=self.post,
            runner=self.runner,
            clock=self.clock,
            settings=settings.goals,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to write, to sweep and to passivate."""
        self.stream.start()
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._every(self._settings.goals.sweep_every_s, self._sweep), name="sweep"),
            loop.create_task(self._every(self._settings.agents.passivate_every_s, self._passivate), name="passivate"),
        ]

    def set_membership(self, membership: Membership) -> None:
        """Go by a newer membership, and look at once for goals that have become this host's."""
        is_newer = membership.epoch > self.post.membership.epoch
        self.post.set_membership(membership)
        if is_newer and self._tasks:
            self._tasks.append(asyncio.get_running_loop().create_task(self._sweep(), name="sweep now"))
            self._tasks = [task for task in self._tasks if not task.done()]

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
        return {
            "host": self.host,
            "node": self._node,
            "epoch": self.post.membership.epoch,
            "goals": self.coordinator.held,
            "agents": self.runner.counts(),
            "process": os.getpid(),
        }

    def agents(self, limit: int) -> list[dict[str, Any]]:
        """Return active agents, `limit` at the most."""
        return [
            {
                "agent": str(agent),
                "type": agent.type,
                "key": agent.key,
                "host": self.host,
                "running": running,
                "waiting": waiting,
            }
            for agent, running, waiting in self.runner.active(limit)
        ]

    async def drain(self, timeout_s: float) -> bool:
        """Finish what is under way, take no more; tell whether everything ended in time."""
        is_done = await self.coordinator.drain(self.clock.now() + timeout_s)
        await self.runner.drain()
        return is_done

    async def close(self) -> None:
        """Stop; what is under way goes on elsewhere."""
        for task in self._tasks:
            task.cancel()
        await self.coordinator.close()
        await self.post.close()
        await self.runner.close()
        await self.stream.close()

    def _is_mine(self, name: str) -> bool:
        return bool(self.post.membership.members) and self.post.owner(name).host == self.host

    def _is_alive(self, host: str) -> bool:
        return any(member.host == host for member in self.post.membership.members)

    async def _sweep(self) -> None:
        with contextlib.suppress(NexusError):
            await self.coordinator.sweep(self._is_mine, self._is_alive)

    async def _passivate(self) -> None:
        await self.runner.passivate(keep=self._belongs_here)
        self.runner.publish_counts(self._node)
        metrics.gauge("nexus_hosts", 1, node=self._node)

    def _belongs_here(self, agent: AgentId) -> bool:
        is_private = agent.key.startswith("goal-") and ":" in agent.key
        return is_private or self._is_mine(str(agent))

    async def _every(self, seconds: float, work: Any) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Exception:
                log.exception("host.loop_failed", loop=work.__name__)
