"""The agent host as a Ray actor: one async actor per core, many agents and goals in it.

Law: no logic here; the actor owns a `HostProcess` and forwards to it.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import ray
import ray.util

from nexus_ray.app import load_app
from nexus_ray.config import Settings
from nexus_ray.core.clock import SystemClock
from nexus_ray.goals.rights import Rights
from nexus_ray.ledger.goal import Goal
from nexus_ray.runtime.audit_link import open_auditor
from nexus_ray.runtime.audited import AuditedAuthorizer
from nexus_ray.runtime.boot import configure_process, node_name, settle_down
from nexus_ray.runtime.direct import DirectDoor
from nexus_ray.runtime.follow import follow_membership
from nexus_ray.runtime.isolation import RayIsolation
from nexus_ray.runtime.items import Item
from nexus_ray.runtime.peer import PeerCarrier
from nexus_ray.runtime.placement import Member, Membership
from nexus_ray.runtime.process import HostProcess
from nexus_ray.runtime.state import fleet_seal, socket_folder
from nexus_ray.runtime.streams import Streams
from nexus_ray.runtime.which_ledger import open_ledger
from nexus_ray.runtime.wire import Methods, WireServer
from nexus_ray.security.authz import Authorizer


class AgentHost:
    """One process of agents and goals."""

    def __init__(self, host: str, app_path: str, settings: Settings) -> None:
        configure_process(settings, host)
        self._streams = Streams(host)
        self._carrier = PeerCarrier(self._streams)
        authorizer = Authorizer.from_folder(settings.state_dir, settings=settings.security.policy)
        self._auditor = open_auditor(settings, host, SystemClock())
        self._process = HostProcess(
            host=host,
            node=node_name(),
            app=load_app(app_path),
            settings=settings,
            ledger=open_ledger(settings, host),
            carrier=self._carrier,
            isolation=RayIsolation(app_path, settings, host),
            rights=Rights(fleet_seal(settings), AuditedAuthorizer(authorizer, self._auditor).authorize),
        )
        self._door = DirectDoor(self._process, settings, self._auditor, authorizer)
        self._socket = socket_folder(settings.state_dir) / f"{host}.sock"
        # Not this actor's methods: Ray wraps those, and the wrapper costs as much as the call.
        process = self._process
        self._wire = WireServer(
            self._socket,
            {
                "deliver": process.deliver,
                "exchange": self._door.exchange,
                "poke": process.poke,
                "cancel": process.coordinator.cancel,
                "agents": process.agents,
                "status": process.status,
            },
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> Member:
        """Begin to work, unless it has begun already; return this host's entry for the membership."""
        if not self._tasks:
            settle_down()
            self._process.start()
            await self._wire.start()
            # Other machines' hosts bring parcels and goals, and ask for nothing else.
            brought: Methods = {"deliver": self._process.deliver, "poke": self._process.poke}
            await self._streams.listen(ray.util.get_node_ip_address(), brought)
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(self._until_fenced(), name="until fenced"),
                loop.create_task(follow_membership(self._set_membership), name="follow membership"),
            ]
        return Member(
            self._process.host,
            node_name(),
            ray.get_runtime_context().get_node_id(),
            str(self._socket),
            stream=self._streams.address,
            certificate=self._streams.certificate,
        )

    async def membership(self) -> Membership:
        """Return the membership gone by: a directory that starts again learns from it what was drained."""
        return self._process.post.membership

    async def ping(self) -> int:
        """Show that the event loop turns; return the epoch gone by."""
        return self._process.post.membership.epoch

    async def deliver(self, origin: str, epoch: int, items: Sequence[Item]) -> None:
        """Take a parcel in."""
        self._process.deliver(origin, epoch, items)

    async def poke(self, goals: Sequence[Goal]) -> None:
        """Take up goals that were just accepted."""
        self._process.poke(goals)

    async def cancel(self, goal_id: str, by: str) -> bool:
        """Cancel a goal that this host runs."""
        return self._process.coordinator.cancel(goal_id, by)

    async def exchange(self, client: str, token: str, requests: Sequence[Any], wait_s: float) -> list[Any]:
        """See `DirectDoor.exchange`."""
        return await self._door.exchange(client, token, requests, wait_s)

    async def agents(self, limit: int, tenant: str = "") -> list[dict[str, Any]]:
        """Return active agents."""
        return self._process.agents(limit, tenant)

    async def status(self) -> dict[str, Any]:
        """Tell how busy this host is."""
        return self._process.status()

    async def stop(self) -> None:
        """Stop; what is under way goes on elsewhere."""
        await self._wire.close()
        await self._streams.close()
        await self._process.close()
        await self._auditor.close()

    async def until_death(self) -> None:
        """Never answer: the caller learns of this process's death from the failing call, at once."""
        await asyncio.Event().wait()

    def _set_membership(self, membership: Membership) -> None:
        self._streams.set_membership(membership)
        self._carrier.set_membership(membership)
        self._process.set_membership(membership)

    async def _until_fenced(self) -> None:
        await self._process.stream.fenced
        # Declared dead: whatever this process still does cannot be recorded, so it had better not do it.
        os._exit(70)
