"""Placement: which member a name belongs to, computed by whoever asks, the same everywhere.

Law: pure. Weighted rendezvous hashing: when a member leaves, only what it had moves; when one joins, it takes its
share from all. Source: Thaler and Ravishankar 1998; weights by Schindelhauer and Schomaker 2005.
"""

import hashlib
import math
from dataclasses import dataclass

from nexus_ray.core.errors import UnavailableError
from nexus_ray.core.identity import AgentId

_CACHE_NAMES_MAX = 100_000  # About 20 MB; cleared whole when full, since order of use would cost more than a miss.


@dataclass(frozen=True, slots=True)
class Member:
    """One host: its name, its machine's name and Ray's id of it, its socket there, its weight and version pool.

    `stream` is where it listens for hosts of other machines ("IP:PORT"), `certificate` (PEM) what it shows them and
    they are shown; both are empty where Ray carries.
    """

    host: str
    node: str
    node_id: str
    address: str = ""
    weight: float = 1.0
    pool: str = "main"
    stream: str = ""
    certificate: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """A place for one host: a machine by Ray's id of it, and a number on it."""

    node_id: str
    number: int


@dataclass(frozen=True, slots=True)
class Membership:
    """Who is a member under `epoch`; a larger epoch is newer. Hosts in `drained` places have weight 0."""

    epoch: int
    members: tuple[Member, ...]
    drained: tuple[Slot, ...] = ()


def owner(membership: Membership, name: str) -> Member:
    """Return the member that `name` belongs to; members of weight 0 get nothing.

    Raises:
        UnavailableError: Nobody is there.
    """
    best: Member | None = None
    best_score = 0.0
    for member in membership.members:
        if member.weight <= 0:
            continue
        hashed = hashlib.blake2b(name.encode(), key=member.host.encode()[:64], digest_size=8).digest()
        # A half added: the share lies strictly between 0 and 1, so its logarithm is finite and not 0.
        share = (int.from_bytes(hashed, "big") + 0.5) / 2.0**64
        score = -member.weight / math.log(share) if share < 1.0 else math.inf
        if best is None or score > best_score:
            best, best_score = member, score
    if best is None:
        raise UnavailableError("the fleet has no hosts now", retry_after_s=1.0)
    return best


class Placement:
    """One membership, with a cache of what was asked."""

    __slots__ = ("_cache", "membership")

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self._cache: dict[str | AgentId, Member] = {}

    def owner(self, name: str | AgentId) -> Member:
        """Return the member that a goal's id, or an agent by its name, belongs to; see `owner`."""
        member = self._cache.get(name)
        if member is None:
            if len(self._cache) >= _CACHE_NAMES_MAX:
                self._cache.clear()
            member = self._cache[name] = owner(self.membership, str(name))
        return member
