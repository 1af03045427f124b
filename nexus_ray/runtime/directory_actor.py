"""The directory as a Ray actor, and host processes as Ray actors.

Law: hosts are detached, so they outlive the directory; a directory that restarts finds them by name.
"""

import asyncio
import os
import re
from collections.abc import Sequence
from typing import Any

import ray
import ray.util
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nexus_ray.config import Settings
from nexus_ray.core.errors import FencedError
from nexus_ray.runtime.boot import configure_process
from nexus_ray.runtime.directory import Directory, Found
from nexus_ray.runtime.host_actor import AgentHost
from nexus_ray.runtime.names import HOST_PREFIX, NAMESPACE, host_name
from nexus_ray.runtime.placement import Member, Membership, Slot
from nexus_ray.runtime.ray_errors import translate
from nexus_ray.runtime.which_ledger import open_ledger

_CALLS_MAX = 10_000  # Ray's own default of 1,000 would make parked polls crowd out parcels.
_HOST = re.compile(re.escape(HOST_PREFIX) + r"(\d+)-\w+")
_ANSWER_S = 5.0  # A host that was found by name and does not answer within this is taken for hung.


class RayHosts:
    """Implements `HostProcesses` with Ray actors."""

    def __init__(self, app_path: str, settings: Settings) -> None:
        self._app_path = app_path
        self._settings = settings
        self._actors: dict[str, Any] = {}

    async def slots(self) -> Sequence[Slot]:
        """Return `hosts_per_node` slots for each machine of the cluster that can run anything."""
        try:
            nodes = await asyncio.to_thread(ray.nodes)
        except Exception as error:
            raise translate(error, "the cluster") from None
        # A head without CPUs is kept for Ray's own processes; see the KubeRay manual.
        working = sorted(node["NodeID"] for node in nodes if node["Alive"] and node["Resources"].get("CPU"))
        return [Slot(node, number) for node in working for number in range(self._settings.runtime.hosts_per_node)]

    async def spawn(self, slot: Slot) -> Member:
        """Start a host actor under a name that was never used before."""
        name = host_name(slot.number)
        try:
            actor = (
                ray.remote(AgentHost)
                .options(
                    name=name,
                    namespace=NAMESPACE,
                    lifetime="detached",
                    num_cpus=0,
                    max_restarts=0,
                    max_task_retries=0,
                    max_concurrency=_CALLS_MAX,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(slot.node_id, soft=False),
                )
                .remote(name, self._app_path, self._settings)
            )
            member: Member = await actor.start.remote()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise translate(error, f"host {name}") from None
        self._actors[member.host] = actor
        return member

    async def discover(self) -> Sequence[Found]:
        """Return the host actors that live."""
        try:
            listed = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
        except Exception as error:
            raise translate(error, "the cluster") from None
        names = [entry["name"] for entry in listed if entry["namespace"] == NAMESPACE]
        hosts = [(name, match) for name in names if (match := _HOST.fullmatch(name))]
        found = await asyncio.gather(*(self._find(name, int(match[1])) for name, match in hosts))
        return [one for one in found if one is not None]

    async def _find(self, name: str, number: int) -> Found | None:
        try:
            actor = self._actors[name] = await asyncio.to_thread(ray.get_actor, name, namespace=NAMESPACE)
        except ValueError:
            return None  # Died since it was listed.
        try:
            async with asyncio.timeout(_ANSWER_S):
                member = await actor.start.remote()
                return Found(Slot(member.node_id, number), member, await actor.membership.remote())
        except (TimeoutError, ray.exceptions.RayError):
            return Found(None, Member(name, "", ""), Membership(0, ()))

    async def ping(self, member: Member) -> int:
        """Return when the host answers: the epoch that it goes by."""
        try:
            return int(await self._actors[member.host].ping.remote())
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise translate(error, f"host {member.host}") from None

    async def until_death(self, member: Member) -> None:
        """Return when the process has died."""
        try:
            await self._actors[member.host].until_death.remote()
        except asyncio.CancelledError:
            raise
        except Exception:
            return

    async def kill(self, member: Member) -> None:
        """End the process for good."""
        actor = self._actors.pop(member.host, None)
        if actor is not None:
            ray.kill(actor, no_restart=True)


class DirectoryActor:
    """Owns a `Directory`."""

    def __init__(self, app_path: str, settings: Settings) -> None:
        configure_process(settings, "directory")
        self._app_path = app_path
        self._settings = settings
        self._directory: Directory | None = None
        self._starting = asyncio.Lock()

    async def watch(self, epoch: int, wait_s: float) -> Membership:
        """Return the membership as soon as it is newer than `epoch`, or as it is after `wait_s`."""
        return await (await self._begun()).watch(epoch, wait_s)

    async def drain(self, target: str, is_undone: bool) -> list[str]:
        """See `Directory.drain`."""
        return await (await self._begun()).drain(target, is_undone)

    async def stop(self) -> None:
        """Stop watching."""
        if self._directory is not None:
            await self._directory.stop()

    async def _begun(self) -> Directory:
        async with self._starting:
            if self._directory is None:
                hosts = RayHosts(self._app_path, self._settings)
                ledger = open_ledger(self._settings, "directory")
                directory = Directory(hosts, ledger, self._settings.runtime.health_interval_s)
                try:
                    await directory.start()
                except FencedError:
                    _end()
                directory.resigned.add_done_callback(lambda _: _end())
                self._directory = directory
        return self._directory


def _end() -> None:
    # There is a successor. If it is this very actor that is wanted, Ray starts it anew, and it begins from what is.
    os._exit(70)
