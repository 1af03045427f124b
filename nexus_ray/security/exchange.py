"""The exchange: a log-in at a directory or an identity provider becomes a short token of the local issuer.

Law: every attempt is counted and all that fail read alike. An assertion opens once: that it was used is on record
before its token is given. Who fails often waits, as `security.throttle` says.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import NexusError, ResourceExhaustedError, UnauthenticatedError
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger
from nexus_ray.security.jose import refused
from nexus_ray.security.keys import SigningKey
from nexus_ray.security.login import LogIn
from nexus_ray.security.settings import SecuritySettings
from nexus_ray.security.throttle import Throttle, ThrottleSettings
from nexus_ray.security.tokens import TokenSettings, issue_token

if TYPE_CHECKING:  # Each needs libraries that not everybody installs.
    from nexus_ray.security.ldap import Directory
    from nexus_ray.security.saml import Begun, ServiceProvider

log = get_logger("security.exchange")

_NAME_CHARACTERS_MAX = 200


class Once(Protocol):
    """What was used and may not be used again, durable and one for all gateways of the fleet."""

    async def claim(self, name: str, at: float, until: float) -> bool:
        """Return true to the first who claims a name, and false to all others until an instant.

        Raises:
            UnavailableError: It cannot be put on record now.
        """
        ...


@dataclass(frozen=True, slots=True)
class Granted:
    """A token and how long it lives."""

    token: str
    lifetime_s: int
    id: str = ""


class Exchange:
    """Checks log-ins and signs tokens; used from one event loop only."""

    def __init__(
        self,
        settings: SecuritySettings,
        tokens: TokenSettings,
        key: Callable[[], SigningKey],
        once: Once,
        clock: Clock,
        directory: "Directory | None" = None,
        provider: "ServiceProvider | None" = None,
        throttle: Throttle | None = None,
        note: Callable[[UnauthenticatedError], None] = lambda error: None,
        granted: Callable[[LogIn, str], Awaitable[None]] | None = None,
    ) -> None:
        """`note` is told of refusals, and `granted` of who is to have a token of which id, before it is given."""
        self._settings = settings
        self._tokens = tokens
        self._key = key
        self._once = once
        self._clock = clock
        self._directory = directory
        self._saml = provider
        self._throttle = throttle or Throttle(ThrottleSettings(), clock)
        self._note = note
        self._write_down = granted
        self._threads = ThreadPoolExecutor(settings.saml.concurrent_max, "saml")
        self._busy = 0

    @property
    def response_bytes_max(self) -> int:
        """How long an identity provider's answer may be."""
        return self._settings.saml.response_bytes_max

    async def by_password(self, user: str, password: str, source: str) -> Granted:
        """Return a token for a user of the directory; `source` is the address that asks.

        Raises:
            UnauthenticatedError: Refused; all refusals read alike.
            ResourceExhaustedError: Too many at one time, or too many failures from there.
            UnavailableError: The directory does not answer.
        """
        if self._directory is None:
            raise refused("no_directory")
        return await self._granted(self._directory.log_in(user, password), "ldap", "password", source, _watched(user))

    def metadata(self) -> bytes:
        """Return what the identity provider is to know about this fleet; see `ServiceProvider.metadata`."""
        return self._provider().metadata()

    def begin(self) -> "Begun":
        """Return a request for the identity provider, and the cookie that its answer needs."""
        return self._provider().begin()

    async def by_assertion(self, response: str, cookie: str, source: str) -> Granted:
        """Return a token for whom an identity provider's answer names; refuses as `by_password` does."""
        provider = self._provider()
        return await self._granted(self._asserted(provider, response, cookie), "saml", "assertion", source)

    def close(self) -> None:
        """Take no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._directory is not None:
            self._directory.close()

    def _provider(self) -> "ServiceProvider":
        if self._saml is None:
            raise refused("no_identity_provider")
        return self._saml

    async def _asserted(self, provider: "ServiceProvider", response: str, cookie: str) -> LogIn:
        if self._busy >= self._settings.saml.concurrent_max:
            raise ResourceExhaustedError("too many log-ins at one time", retry_after_s=1.0)
        self._busy += 1
        try:
            running = asyncio.get_running_loop().run_in_executor(self._threads, provider.answered, response, cookie)
            answered = await running
        finally:
            self._busy -= 1
        # The assertion and the request that it answers: a provider that gives two to one request is refused too.
        for name in answered.once:
            if not await self._once.claim(f"saml/{name}", self._clock.now(), answered.until):
                raise refused("used_before")
        return answered.log_in

    async def _granted(
        self, checked: Coroutine[Any, Any, LogIn], provider: str, method: str, source: str, name: str = ""
    ) -> Granted:
        try:
            self._throttle.admit(source, name)
        except ResourceExhaustedError:
            checked.close()
            _count(provider, "refused", method)
            raise
        try:
            log_in = await checked
            granted = self._signed(log_in)
            if self._write_down is not None:
                await self._write_down(log_in, granted.id)
        except UnauthenticatedError as error:
            self._throttle.failed(source, name)
            self._note(error)
            _count(provider, "failure", method)
            log.info("exchange.refused", provider=provider, reason=error.details.get("reason"))
            raise
        except NexusError:
            _count(provider, "error", method)
            raise
        self._throttle.succeeded(source, name)
        _count(provider, "success", method)
        log.info("exchange.granted", provider=provider, principal=log_in.principal, tenant=log_in.tenant)
        return granted

    def _signed(self, log_in: LogIn) -> Granted:
        now = self._clock.now()
        lifetime_s = int(min(self._settings.exchanged_s, self._tokens.lifetime_max_s, log_in.ends_at - now))
        if lifetime_s < 1:
            raise refused("session_ended")
        id = secrets.token_hex(16)
        token = issue_token(
            self._key(), self._tokens, log_in.principal, log_in.roles, lifetime_s, now, jti=id, tenant=log_in.tenant,
            method=log_in.method, auth_time=int(log_in.authenticated_at), acr=log_in.acr, amr=list(log_in.amr),
        )  # fmt: skip
        if len(token) > self._tokens.token_bytes_max:
            raise refused("token_size")
        return Granted(token, lifetime_s, id)


def _watched(user: str) -> str:
    """Return under what name failures are counted: directories take `ADA` for `ada`."""
    return user[:_NAME_CHARACTERS_MAX].casefold()


def _count(provider: str, result: str, method: str) -> None:
    metrics.count("nexus_auth_attempts_total", provider=provider, result=result, method=method)
