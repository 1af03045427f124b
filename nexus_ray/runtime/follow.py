"""Following the directory: every process that cares keeps one call parked there and learns of each new membership.

Law: pulled, not pushed. A directory that restarts is asked again by everybody, which is also what wakes it.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import ray

from nexus_ray.core.errors import NexusError
from nexus_ray.observe.logs import get_logger
from nexus_ray.runtime.names import DIRECTORY, NAMESPACE
from nexus_ray.runtime.placement import Membership
from nexus_ray.runtime.ray_errors import translate

log = get_logger("runtime.follow")

_WATCH_S = 30.0
_ASK_AGAIN_S = 0.5


async def watch_membership(epoch: int, wait_s: float = _WATCH_S) -> Membership:
    """Return the membership as soon as it is newer than `epoch`, or as it is after `wait_s` seconds.

    Raises:
        UnavailableError: The directory does not answer.
    """
    membership: Membership = await _ask("watch", epoch, wait_s)
    return membership


async def drain_hosts(target: str, is_undone: bool) -> list[str]:
    """See `Directory.drain`.

    Raises:
        UnavailableError: The directory does not answer.
    """
    return list(await _ask("drain", target, is_undone))


async def _ask(method: str, *arguments: Any) -> Any:
    try:
        # In a thread: where Ray's head is away, looking up takes until it is back, and a host has work to do.
        directory = await asyncio.to_thread(ray.get_actor, DIRECTORY, namespace=NAMESPACE)
        return await getattr(directory, method).remote(*arguments)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        raise translate(error, "the directory") from None


async def follow_membership(take: Callable[[Membership], None], epoch: int = 0) -> None:
    """Hand every membership newer than `epoch` to `take`; never returns."""
    while True:
        try:
            membership = await watch_membership(epoch)
        except NexusError as error:
            log.warning("follow.no_directory", error=str(error))
            await asyncio.sleep(_ASK_AGAIN_S)
            continue
        if membership.epoch > epoch:
            epoch = membership.epoch
            take(membership)
