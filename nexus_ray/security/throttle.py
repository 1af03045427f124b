"""The limit on failed authentications: who guesses is told to wait, and nobody else is.

Law: what is counted is a source, and a name that was claimed from that source; never a name alone, for then whoever
knows it could lock its owner out. So a good credential from another source always gets in. Up to a volume, failures
are mistakes and cost nothing; who asks without any credential guesses nothing and is not counted.
"""

import base64
import ipaddress
import json
from collections import OrderedDict
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import ResourceExhaustedError
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger

log = get_logger("security.throttle")

_TOKEN_CHARACTERS_MAX = 4096
_NAME_CHARACTERS_MAX = 200


class ThrottleSettings(BaseModel):
    """How many failed authentications are let be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name_failures_max: int = Field(
        20, ge=1, description="Failures for one claimed name from one source within the window that are mistakes."
    )
    source_failures_max: int = Field(
        200, ge=1, description="Failures from one source within the window, whatever names: many may share an address."
    )
    window_s: float = Field(60.0, gt=0, description="After so long without a failure, all is forgotten.")
    lock_s: float = Field(5.0, gt=0, description="How long the first lock lasts; each further one twice as long.")
    lock_s_max: float = Field(300.0, gt=0, description="Longest lock: a device that was mended gets in again.")
    watched_max: int = Field(10_000, ge=1, description="Sources and names that are watched, some 300 bytes each.")


@dataclass(slots=True)
class _Watched:
    """What is known of a source, or of a name from a source; instants are monotonic seconds."""

    failures: int = 0
    locks: int = 0
    failed_at: float = 0.0
    locked_until: float = 0.0


class Throttle:
    """Counts failures and refuses whoever has too many; used from one event loop only."""

    def __init__(self, settings: ThrottleSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._watched: OrderedDict[tuple[str, str], _Watched] = OrderedDict()

    def is_watching(self, source: str) -> bool:
        """Tell whether anything from this source failed lately."""
        return (source_of(source), "") in self._watched

    def admit(self, source: str, name: str) -> None:
        """Refuse an attempt that comes too soon after too many failures, before anything of it is looked at.

        Raises:
            ResourceExhaustedError: `details["retry_after_s"]` says when to come back.
        """
        now = self._clock.monotonic()
        source = source_of(source)
        for key in ((source, ""), (source, name)):
            watched = self._watched.get(key)
            if watched is not None and watched.locked_until > now:
                metrics.count(
                    "nexus_security_violations_total",
                    violation_type="too_many_failures", severity="medium", source="gate",
                )  # fmt: skip
                raise ResourceExhaustedError(
                    "too many failed attempts from here", retry_after_s=watched.locked_until - now
                )

    def failed(self, source: str, name: str) -> None:
        """Count a failure."""
        settings = self._settings
        source = source_of(source)
        self._count((source, ""), settings.source_failures_max)
        if name:
            self._count((source, name), settings.name_failures_max)

    def succeeded(self, source: str, name: str) -> None:
        """Forget what failed for a name from a source: its owner has come in from there."""
        self._watched.pop((source_of(source), name), None)

    def _count(self, key: tuple[str, str], failures_max: int) -> None:
        settings = self._settings
        now = self._clock.monotonic()
        watched = self._watched.setdefault(key, _Watched())
        self._watched.move_to_end(key)
        if now - max(watched.failed_at, watched.locked_until) > settings.window_s:
            watched.failures = watched.locks = 0
        watched.failures += 1
        watched.failed_at = now
        if watched.failures > failures_max:
            lock_s = min(settings.lock_s * 2.0 ** min(watched.locks, 30), settings.lock_s_max)
            watched.locked_until = now + lock_s
            watched.locks += 1
            log.warning("throttle.locked", source=key[0], has_name=bool(key[1]), lock_s=lock_s)
        while len(self._watched) > settings.watched_max:
            self._watched.popitem(last=False)


def source_of(address: str) -> str:
    """Return what counts as one source: an IPv4 address, or the /64 that one IPv6 subscriber is given whole."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:100]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((parsed, 64), strict=False).network_address)
    return str(parsed)


def claimed_name(credential: str | None) -> str:
    """Return whom an unverified token says it names, or nothing: only to count by, never to believe."""
    parts = (credential or "")[:_TOKEN_CHARACTERS_MAX].split(".")
    if len(parts) != 3:
        return ""
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return ""
    name = claims.get("sub") if isinstance(claims, dict) else None
    return name[:_NAME_CHARACTERS_MAX] if isinstance(name, str) else ""
