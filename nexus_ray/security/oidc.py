"""Access tokens of an OpenID Connect provider: its keys, kept fresh, and what its claims mean here.

Law: the issuer is exact, the audience is ours, the tenant is listed, and roles come out of a table: what the table does
not name grants nothing. Keys are fetched at a bounded rate, and old ones serve for a bounded time.
Sources: OpenID Connect Discovery 1.0, RFC 9068.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import NexusError, UnavailableError
from nexus_ray.core.identity import Delegation
from nexus_ray.observe.logs import get_logger
from nexus_ray.security.fetch import get_json, is_loopback_url
from nexus_ray.security.jose import Rules, check_claims, refused, seconds
from nexus_ray.security.jwk import Key, read_key_set
from nexus_ray.security.policy import is_role_name
from nexus_ray.security.settings import OidcProvider
from nexus_ray.security.tokens import Claims, read_actors, read_confirmation

log = get_logger("security.oidc")

_PRINCIPAL_MAX = 200


class OidcIssuer:
    """One provider; used from one event loop only."""

    def __init__(self, name: str, settings: OidcProvider, clock: Clock) -> None:
        self.name = name
        self.rules = Rules(
            issuer=settings.issuer,
            audiences=frozenset({settings.audience}),
            algorithms=frozenset(settings.algorithms),
            types=frozenset(settings.types),
            required=(settings.principal_claim,),
            ignored=frozenset({"x5t", "x5t#S256"}),  # Thumbprints of certificates: big providers add them; unused.
            leeway_s=settings.leeway_s,
            lifetime_max_s=settings.lifetime_max_s,
            bytes_max=settings.token_bytes_max,
        )
        self._settings = settings
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._fetched_at = float("-inf")
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    def keys(self) -> Mapping[str, Key]:
        """Return the keys that may be believed now; none when the last answer is too old."""
        is_usable = self._clock.monotonic() - self._fetched_at < self._settings.keys_stale_s
        return self._keys if is_usable else {}

    async def prepare(self, kid: Any) -> None:
        """Have the keys that a token with this `kid` needs, if they can be had.

        An unknown key is asked for once a cool-down. Keys that have aged are asked for again beside the request, which
        goes on with the old ones, unless nobody has asked for long: the first after a quiet night waits, or a key that
        was withdrawn meanwhile would be good once more. It never raises for the provider's sake: without the key the
        token is refused.
        """
        now = self._clock.monotonic()
        is_known = isinstance(kid, str) and kid in self.keys()
        if is_known and now - self._fetched_at < self._settings.keys_fresh_s:
            return
        was_idle = now - self._asked_at >= 2 * self._settings.keys_fresh_s
        if self._asking is None and now - self._asked_at >= self._settings.cooldown_s:
            self._asked_at = now
            self._asking = asyncio.get_running_loop().create_task(self._ask(), name=f"keys of {self.name}")
        if self._asking is not None and (was_idle or not is_known):
            # Shielded: the first who asks may hang up, the others still wait for the answer.
            await asyncio.shield(self._asking)

    async def _ask(self) -> None:
        try:
            document = await self._get(
                f"{self._settings.issuer.rstrip('/')}/.well-known/openid-configuration"
            )
            address = document.get("jwks_uri") if isinstance(document, dict) else None
            if not isinstance(address, str) or document.get("issuer") != self._settings.issuer:
                raise UnavailableError("the discovery document is another issuer's")
            self._keys = read_key_set(await self._get(address))
            self._fetched_at = self._clock.monotonic()
            log.info("oidc.keys", provider=self.name, keys=len(self._keys))
        except (NexusError, ValueError) as error:
            log.warning("oidc.keys_failed", provider=self.name, reason=str(error))
        finally:
            self._asking = None

    async def _get(self, url: str) -> Any:
        settings = self._settings
        return await get_json(
            url,
            timeout_s=settings.timeout_s,
            bytes_max=settings.document_bytes_max,
            may_be_loopback=is_loopback_url(settings.issuer),
            may_be_private=settings.private_addresses,
        )

    def read(self, claims: dict[str, Any], now: float) -> Claims:
        """Return what the claims of a token that is proved say of the caller.

        Raises:
            UnauthenticatedError: They do not meet the rules, or are malformed.
        """
        check_claims(claims, self.rules, now)
        settings = self._settings
        subject = claims[settings.principal_claim]
        if not isinstance(subject, str) or not subject.isprintable() or len(subject) > _PRINCIPAL_MAX:
            raise refused("subject")
        tenant = "main"
        if settings.tenant_claim:
            named = claims.get(settings.tenant_claim)
            if not isinstance(named, str) or named not in settings.tenants:
                raise refused("tenant")
            tenant = settings.tenants[named]
        acr, amr = claims.get("acr", ""), claims.get("amr", [])
        if not isinstance(acr, str) or (settings.acr_values and acr not in settings.acr_values):
            raise refused("acr")
        if not isinstance(amr, list) or not all(isinstance(entry, str) for entry in amr):
            raise refused("amr")
        token_id = claims.get("jti")
        at = seconds(claims, "auth_time" if "auth_time" in claims else "iat")
        return Claims(
            token_id if isinstance(token_id, str) and token_id else "", f"{self.name}:{subject}", settings.issuer,
            self._roles(claims), seconds(claims, "exp"), tenant, "oidc", at, acr, tuple(amr), read_confirmation(claims),
            self._delegation(claims),
        )  # fmt: skip

    def _delegation(self, claims: dict[str, Any]) -> Delegation | None:
        """Keep who acts for the subject, as the provider says it (RFC 8693, 4.1)."""
        actors = read_actors(claims.get("act"))
        return Delegation(tuple(f"{self.name}:{actor}" for actor in actors)) if actors else None

    def _roles(self, claims: dict[str, Any]) -> tuple[str, ...]:
        value: Any = claims
        for name in self._settings.roles_claim.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        held = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
        table = self._settings.roles
        granted = (role for entry in held if isinstance(entry, str) for role in table.get(entry, ()))
        return tuple(dict.fromkeys(role for role in granted if is_role_name(role)))

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking
