"""The hosts as the front door sees them.

Law: goals are on disk before anything is asked here, so whatever is only asked for the sake of speed may fail.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from nexus_ray.ledger.goal import Goal, GoalRecord


class Fleet(Protocol):
    """What the front door needs of the hosts."""

    async def poke(self, goals: Sequence[Goal]) -> None:
        """Tell the hosts that own these goals to look; best effort, hosts find them by themselves too."""
        ...

    async def poke_cancel(self, record: GoalRecord, by: str) -> None:
        """Tell the host that runs a goal to cancel it; best effort."""
        ...

    async def agents(self, limit: int, tenant: str = "") -> list[dict[str, Any]]:
        """Return active agents of all hosts."""
        ...

    async def hosts(self) -> list[dict[str, Any]]:
        """Return the hosts, and how busy each is."""
        ...

    async def drain(self, target: str, is_undone: bool) -> list[str]:
        """Have a host, or all of a machine's, take no more, or take their share again; return the hosts."""
        ...
