"""Revocation: sessions that were revoked and identities that were suspended, known in every process within a second.

Law: the list is on record before anybody is told that it holds, and every process follows the record. One that cannot
learn the list says no to everybody: a list that is too old is no list. A check is two look-ups and no wait.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import NexusError, UnauthenticatedError, UnavailableError
from nexus_ray.core.identity import Delegation, Session
from nexus_ray.observe.logs import get_logger

log = get_logger("security.revocation")

SESSION = "session"
"""The kind of mark that says that a session is revoked; its name is the tenant and the session's id."""
IDENTITY = "identity"
"""The kind of mark that says that an identity is suspended; its name is the tenant and the principal."""
KINDS = (SESSION, IDENTITY)
_PAGE = 1000


class RevocationSettings(BaseModel):
    """How the list of revoked sessions and suspended identities is followed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    look_every_s: float = Field(
        0.25, gt=0, description="How often a process looks for news: what is suspended ends within a second."
    )
    stale_s: float = Field(
        10.0, gt=0, description="A list that could not be looked at for so long is too old, and the answer is no; "
        "longer than a killed ledger takes to be back."
    )  # fmt: skip
    listed_max: int = Field(
        100_000, gt=0, description="Entries that a process holds, 200 bytes each; above that nothing more is revoked."
    )


class Marked(Protocol):
    """An entry of the record."""

    @property
    def kind(self) -> str:
        """`SESSION` or `IDENTITY`."""
        ...

    @property
    def name(self) -> str:
        """Whom it is about."""
        ...

    @property
    def until(self) -> float:
        """The wall-clock second from which on it holds no more."""
        ...

    @property
    def version(self) -> int:
        """Above that of everything that changed before."""
        ...


class Record(Protocol):
    """Where the list is on record."""

    async def marks(self, kinds: Sequence[str], after_version: int, limit: int) -> Sequence[Marked]:
        """Return what changed after a version, in order, `limit` at the most."""
        ...


def name_of(tenant: str, name: str) -> str:
    """Return the name of a mark about a session or an identity of a tenant."""
    # With the length, so that no tenant's name runs into what follows it.
    return f"{len(tenant)}:{tenant}/{name}"


class Revocations:
    """The list as one process knows it; used from one event loop only."""

    def __init__(self, record: Record, settings: RevocationSettings, clock: Clock) -> None:
        self._record = record
        self._settings = settings
        self._clock = clock
        self._until: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
        self._version = 0
        self._looked_at: float | None = None  # Monotonic seconds; when the look that was answered last began.
        self._looking = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None
        self._listeners: set[asyncio.Event] = set()

    @property
    def listed(self) -> int:
        """How many entries hold."""
        return sum(len(listed) for listed in self._until.values())

    async def check(self, session: Session) -> None:
        """Refuse a session that is revoked, or whose identity is suspended, or an actor's or a parent's of it.

        Raises:
            UnauthenticatedError: It is; outside that reads like every other failure.
            UnavailableError: The list is not known, or is too old.
        """
        if self._following is None or self._following.done():
            self._following = asyncio.get_running_loop().create_task(self._follow(), name="follow revocations")
        if self._is_stale():
            await self._look_or_refuse()
        now = self._clock.now()
        if self._until[SESSION].get(name_of(session.tenant, session.id), 0.0) > now:
            raise UnauthenticatedError("authentication failed", reason="session_revoked")
        if self._until[IDENTITY].get(name_of(session.tenant, session.principal), 0.0) > now:
            raise UnauthenticatedError("authentication failed", reason="identity_suspended")
        if session.delegation is not None:
            self._check_delegation(session.tenant, session.delegation, now)

    def _check_delegation(self, tenant: str, delegation: Delegation, now: float) -> None:
        if any(self._until[SESSION].get(name_of(tenant, parent), 0.0) > now for parent in delegation.parents):
            raise UnauthenticatedError("authentication failed", reason="session_revoked")
        if any(self._until[IDENTITY].get(name_of(tenant, actor), 0.0) > now for actor in delegation.actors):
            raise UnauthenticatedError("authentication failed", reason="identity_suspended")

    @contextlib.contextmanager
    def waking(self, event: asyncio.Event) -> Iterator[None]:
        """Set an event whenever the list changes or gets too old, for as long as the block lasts."""
        self._listeners.add(event)
        try:
            yield
        finally:
            self._listeners.discard(event)

    async def look(self) -> None:
        """Read what changed since the last look.

        Raises:
            NexusError: It cannot be read.
        """
        async with self._looking:
            began_at = self._clock.monotonic()
            is_changed = False
            while True:
                page = await self._record.marks(KINDS, self._version, _PAGE)
                for mark in page:
                    self._until[mark.kind][mark.name] = mark.until
                    self._version = mark.version
                    is_changed = True
                if len(page) < _PAGE:
                    break
            self._looked_at = began_at
        if is_changed:
            self._forget_what_is_over()
            self._wake()

    async def close(self) -> None:
        """Follow no more."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])

    def _is_stale(self) -> bool:
        return self._looked_at is None or self._clock.monotonic() - self._looked_at > self._settings.stale_s

    async def _look_or_refuse(self) -> None:
        try:
            async with asyncio.timeout(self._settings.look_every_s * 4):
                await self.look()
        except (NexusError, TimeoutError) as error:
            log.warning("revocation.list_unknown", error=str(error) or type(error).__name__)
            raise UnavailableError("who may still come in is not known just now", retry_after_s=1.0) from None

    async def _follow(self) -> None:
        was_stale = False
        while True:
            await asyncio.sleep(self._settings.look_every_s)
            try:
                async with asyncio.timeout(self._settings.stale_s):
                    await self.look()
            except (NexusError, TimeoutError) as error:
                log.warning("revocation.not_followed", error=str(error) or type(error).__name__)
            except Exception:
                log.exception("revocation.follow_failed")
            if self._is_stale() and not was_stale:
                self._wake()
            was_stale = self._is_stale()

    def _forget_what_is_over(self) -> None:
        now = self._clock.now()
        for listed in self._until.values():
            for name in [name for name, until in listed.items() if until <= now]:
                del listed[name]

    def _wake(self) -> None:
        for event in self._listeners:
            event.set()
