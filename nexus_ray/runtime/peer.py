"""A peer: an actor of the fleet, called the shortest way there is.

Law: one way to call, two transports. On this machine over the actor's socket, otherwise as a Ray actor; what the far
side raised on purpose comes back as it was, and everything else is `UnavailableError` or `InternalError`.
"""

import asyncio
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from nexus_ray.core.errors import FailedPreconditionError, UnavailableError
from nexus_ray.runtime.names import NAMESPACE
from nexus_ray.runtime.placement import Member
from nexus_ray.runtime.ray_errors import translate
from nexus_ray.runtime.wire import WireClient

_LOOK_AGAIN_S = 1.0  # How soon a socket that was not there is looked for again; until then Ray carries.
_PATH_BYTES_MAX = 100  # The kernel takes 107 for the whole path of a socket.
_NAME_CHARACTERS_MAX = 40


def socket_folder(state_dir: Path) -> Path:
    """Return the folder of a fleet's sockets; make it, closed to others, where it is not there.

    Raises:
        FailedPreconditionError: The folder belongs to somebody else.
    """
    folder = state_dir.absolute() / "run"
    if len(os.fsencode(folder)) + 1 + _NAME_CHARACTERS_MAX > _PATH_BYTES_MAX:
        name = hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()
        folder = Path(tempfile.gettempdir()) / f"nexus-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or not folder.is_dir():
        raise FailedPreconditionError(f"others have a hand in {folder}: remove it, and it is made anew")
    return folder


class Peer:
    """One actor, by its name and the socket it listens on; used from one event loop only."""

    def __init__(self, name: str, address: Path | None) -> None:
        """`address` is None for an actor of another machine."""
        self.name = name
        self._address = address
        self._wire: WireClient | None = None
        self._connecting = asyncio.Lock()
        self._look_again_at = 0.0
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
            return await wire.call(method, *arguments)
        try:
            if self._actor is None:
                self._actor = ray.get_actor(self.name, namespace=NAMESPACE)
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
        """Hang up."""
        if self._wire is not None:
            self._wire.close()

    async def _connect(self) -> WireClient | None:
        if self._address is None or time.monotonic() < self._look_again_at:
            return None
        async with self._connecting:
            if self._wire is not None and self._wire.is_open:
                return self._wire
            try:
                self._wire = await WireClient.connect(self._address)
            except UnavailableError:
                self._wire = None
                self._look_again_at = time.monotonic() + _LOOK_AGAIN_S
            return self._wire


def host_peer(member: Member) -> Peer:
    """Return the way to a host from this machine."""
    is_here = member.node_id == ray.get_runtime_context().get_node_id()
    return Peer(member.host, Path(member.address) if is_here and member.address else None)
