"""The fleet as the front door sees it, and how its control plane is brought up on a Ray cluster.

Law: everything is found by name; whoever comes first makes it, whoever comes later finds it.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import ray

from nexus_ray.config import Settings
from nexus_ray.core.errors import NexusError, UnavailableError
from nexus_ray.ledger.goal import Goal, GoalRecord
from nexus_ray.observe.logs import get_logger
from nexus_ray.runtime.directory_actor import DirectoryActor
from nexus_ray.runtime.follow import drain_hosts, follow_membership, watch_membership
from nexus_ray.runtime.ledger_actor import LedgerActor
from nexus_ray.runtime.names import DIRECTORY, LEDGER, NAMESPACE
from nexus_ray.runtime.peer import Peer, host_peer
from nexus_ray.runtime.placement import Membership, Placement

log = get_logger("runtime.fleet")

_CALLS_MAX = 10_000


def ensure_control_plane(app_path: str, settings: Settings, **placed: Any) -> Any:
    """Make the directory actor, and the embedded ledger's where that is the ledger; return the directory's handle.

    `placed` are more options of Ray's, such as a scheduling strategy.
    """
    options: dict[str, Any] = {
        **placed,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": _CALLS_MAX,
    }
    if not settings.ledger.url:
        ray.remote(LedgerActor).options(name=LEDGER, **options).remote(settings)
    return ray.remote(DirectoryActor).options(name=DIRECTORY, **options).remote(app_path, settings)


class RayFleet:
    """Implements `front.Fleet`; follows the membership as long as its process lives."""

    def __init__(self, call_timeout_s: float = 5.0) -> None:
        self._call_timeout_s = call_timeout_s
        self._placement = Placement(Membership(0, ()))
        self._peers: dict[str, Peer] = {}
        self._following: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()

    async def poke(self, goals: Sequence[Goal]) -> None:
        """Tell the hosts that own these goals to look."""
        await self._follow()
        by_host: dict[str, list[Goal]] = {}
        for goal in goals:
            try:
                by_host.setdefault(self._placement.owner(goal.id).host, []).append(goal)
            except UnavailableError:
                return  # No hosts now: they will look by themselves when they come.
        for host, owned in by_host.items():
            self._tell(host, "poke", owned)

    async def poke_cancel(self, record: GoalRecord, by: str) -> None:
        """Tell the host that runs a goal to cancel it."""
        await self._follow()
        if record.host in self._peers:
            self._tell(record.host, "cancel", record.goal.id, by)

    async def agents(self, limit: int, tenant: str = "") -> list[dict[str, Any]]:
        """Return active agents of all hosts."""
        rows = [row for part in await self._ask_all("agents", limit, tenant) for row in part]
        return sorted(rows, key=lambda row: row["agent"])[:limit]

    async def hosts(self) -> list[dict[str, Any]]:
        """Return the hosts that answer."""
        return list(await self._ask_all("status"))

    async def drain(self, target: str, is_undone: bool) -> list[str]:
        """See `Directory.drain`."""
        return await drain_hosts(target, is_undone)

    def _tell(self, host: str, method: str, *arguments: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._told(self._peers[host], method, *arguments))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _told(self, peer: Peer, method: str, *arguments: Any) -> None:
        # Best effort: a host that does not hear it finds out by itself, within a second.
        with contextlib.suppress(NexusError, TimeoutError):
            await self._ask(peer, method, *arguments)

    async def _ask_all(self, method: str, *arguments: Any) -> list[Any]:
        await self._follow()
        answers = await asyncio.gather(
            *(self._ask(peer, method, *arguments) for peer in self._peers.values()), return_exceptions=True
        )
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    async def _ask(self, peer: Peer, method: str, *arguments: Any) -> Any:
        async with asyncio.timeout(self._call_timeout_s):
            return await peer.call(method, *arguments)

    async def _follow(self) -> None:
        if self._following is not None and not self._following.done():
            return
        try:
            self._take(await watch_membership(0))
        except NexusError as error:
            log.warning("fleet.no_directory", error=str(error))
            return
        following = follow_membership(self._take, self._placement.membership.epoch)
        self._following = asyncio.get_running_loop().create_task(following, name="follow membership")

    def _take(self, membership: Membership) -> None:
        if membership.epoch <= self._placement.membership.epoch:
            return
        before = self._peers
        self._peers = {member.host: before.get(member.host) or host_peer(member) for member in membership.members}
        for host, peer in before.items():
            if host not in self._peers:
                peer.close()
        self._placement = Placement(membership)
