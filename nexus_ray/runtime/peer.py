"""A peer: an actor of the fleet, called the shortest way there is.

Law: one way to call, three transports. On this machine over the actor's socket, between hosts of two machines over a
stream, and as a Ray actor where neither can be had: nobody waits long for a connection, since Ray carries meanwhile.
What the far side raised on purpose comes back as it was, everything else is `UnavailableError` or `InternalError`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray

from nexus_ray.core.errors import UnavailableError
from nexus_ray.ledger.goal import Goal
from nexus_ray.observe import metrics
from nexus_ray.runtime.items import Item
from nexus_ray.runtime.names import NAMESPACE
from nexus_ray.runtime.placement import Member, Membership
from nexus_ray.runtime.ray_errors import translate
from nexus_ray.runtime.streams import Streams
from nexus_ray.runtime.wire import WireClient

_DIAL_WAIT_S = 0.1  # A handshake takes 5 ms; whoever has waited this long goes by Ray, and the dialling goes on.
_DIAL_AGAIN_S = 0.25  # After nobody answered; doubled each time, so that a wall between machines costs next to nothing.
_DIAL_AGAIN_S_MAX = 8.0
_ANSWER_S = 15.0  # A host takes a parcel in at once; one that hangs has been replaced by then.

Dial = Callable[[], Awaitable[WireClient]]
"""Connects, or raises `UnavailableError`."""


class Peer:
    """One actor, by its name and the way to its wire; used from one event loop only."""

    def __init__(self, name: str, dial: Dial | None, way: str = "socket") -> None:
        """`dial` is None where there is only Ray; `way` is what `nexus_peer_calls_total` calls it."""
        self.name = name
        self._dial = dial
        self._way = way
        self._wire: WireClient | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._dial_until = self._dial_again_at = 0.0
        self._pause_s = _DIAL_AGAIN_S
        self._actor: Any = None

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the actor and return its answer.

        Raises:
            NexusError: What the actor raised.
            UnavailableError: With `details["is_lost"]` it is the actor that does not answer, or the call was lost on
                the way: it is not known whether it was carried out.
        """
        wire = self._wire
        if wire is None or not wire.is_open:
            wire = await self._connect()
        if wire is not None:
            metrics.count("nexus_peer_calls_total", way=self._way)
            return await wire.call(method, *arguments)
        metrics.count("nexus_peer_calls_total", way="ray")
        try:
            if self._actor is None:
                # In a thread: where Ray's head is away, looking up takes until it is back.
                self._actor = await asyncio.to_thread(ray.get_actor, self.name, namespace=NAMESPACE)
            return await getattr(self._actor, method).remote(*arguments)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            translated = translate(error, self.name)
            if not isinstance(error, ray.exceptions.RayTaskError):
                self._actor = None
                translated.details["is_lost"] = True
            raise translated from None

    def close(self) -> None:
        """Hang up; another call dials again."""
        if self._dialling is not None:
            self._dialling.cancel()
        if self._wire is not None:
            self._wire.close()

    async def _connect(self) -> WireClient | None:
        now = time.monotonic()
        if self._dial is None or (self._dialling is None and now < self._dial_again_at):
            return None
        if self._dialling is None:
            self._dial_until = now + _DIAL_WAIT_S
            self._dialling = asyncio.get_running_loop().create_task(self._keep_dialling(self._dial), name="dial")
        if now < self._dial_until:
            await asyncio.wait({self._dialling}, timeout=self._dial_until - now)
        return self._wire if self._wire is not None and self._wire.is_open else None

    async def _keep_dialling(self, dial: Dial) -> None:
        try:
            self._wire = await dial()
            self._pause_s = _DIAL_AGAIN_S
        except UnavailableError:
            self._wire = None
            self._dial_again_at = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _DIAL_AGAIN_S_MAX)
        finally:
            self._dialling = None


class PeerCarrier:
    """Carries parcels to other hosts, whichever way there is. Implements `Carrier`."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._peers: dict[str, Peer] = {}

    def set_membership(self, membership: Membership) -> None:
        """Hang up on hosts that have left; who waits for one of them is told that nobody knows."""
        for host in self._peers.keys() - {member.host for member in membership.members}:
            self._peers.pop(host).close()

    async def carry(self, member: Member, origin: str, epoch: int, items: Sequence[Item]) -> None:
        """Return when the other host has the parcel."""
        await self._call(member, "deliver", origin, epoch, items)

    async def hand_on(self, member: Member, goals: Sequence[Goal]) -> None:
        """Tell another host of goals that are its own now."""
        await self._call(member, "poke", goals)

    async def _call(self, member: Member, method: str, *arguments: Any) -> None:
        peer = self._peers.get(member.host)
        if peer is None:
            peer = self._peers[member.host] = host_peer(member, self._streams)
        try:
            async with asyncio.timeout(_ANSWER_S):
                await peer.call(method, *arguments)
        except TimeoutError:
            peer.close()  # A connection that brings no answer is not asked again.
            raise UnavailableError(f"host {member.host} does not answer", host=member.host, is_lost=True) from None


def host_peer(member: Member, streams: Streams | None = None) -> Peer:
    """Return the way to a host from this machine; over a stream only for who has `streams`, which are the hosts."""
    if member.node_id == ray.get_runtime_context().get_node_id() and member.address:
        return Peer(member.host, partial(WireClient.connect, Path(member.address)))
    if streams is not None and member.stream:
        return Peer(member.host, partial(streams.dial, member), "stream")
    return Peer(member.host, None)
