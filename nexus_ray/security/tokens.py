"""Bearer tokens of the local issuer: JWTs that are checked against exactly what is configured, and nothing else.

Law: every failure is the same `UnauthenticatedError("authentication failed")`; only the log learns the reason. The
checks themselves are `security.jose`'s; here stands what a token of ours must say.
"""

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nexus_ray.core.clock import Clock, SystemClock
from nexus_ray.core.errors import InvalidArgumentError, NexusError
from nexus_ray.core.identity import Delegation
from nexus_ray.observe.logs import get_logger
from nexus_ray.security.jose import Rules, check_claims, parse, read_object, refused, seconds, verify
from nexus_ray.security.jwk import Key, base64url
from nexus_ray.security.keys import KeySet, SigningKey, load_key_set, public_keys_stamp
from nexus_ray.security.policy import is_role_name

log = get_logger("security.tokens")

_LOOK_S = 1.0  # How often a process looks for keys that have changed; for one that it does not know, at once.
_ALGORITHM = "EdDSA"
_TYPE = "nexus+jwt"
ACTORS_MAX = 4
"""Actors of one token: a service for a service for a user is two."""
CONFIRMATIONS = ("jkt", "x5t#S256")
"""What a token can be bound to: a key (RFC 9449) or a client certificate (RFC 8705)."""
_OPTIONAL: dict[str, Any] = {"tenant": "main", "method": "token", "acr": "", "amr": []}


class TokenSettings(BaseModel):
    """What a token must say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str = "nexus-local"
    """Who signs; a token that names another is refused."""
    audience: str = "nexus"
    """Whom a token is for; a fleet of another name takes none of this one's."""
    leeway_s: float = 5.0
    """Clock skew that is forgiven."""
    lifetime_max_s: float = 30 * 86_400.0
    """Longest life of a token; a stolen one ends."""
    token_bytes_max: int = 4096
    """A longer one is not looked at."""
    cached_max: int = 10_000
    """Verified tokens that are remembered."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says; `expires_at` and `authenticated_at` are wall-clock seconds.

    `method` is how the caller proved who it is before the token was made; `bound` names what the token is bound to, if
    it is: `jkt:` and a key's thumbprint (RFC 9449), or `x5t#S256:` and a certificate's (RFC 8705).
    """

    id: str
    subject: str
    issuer: str
    roles: tuple[str, ...]
    expires_at: float
    tenant: str = "main"
    method: str = "token"
    authenticated_at: float = 0.0
    acr: str = ""
    amr: tuple[str, ...] = ()
    bound: str = ""
    delegation: Delegation | None = None


def issue_token(
    key: SigningKey,
    settings: TokenSettings,
    principal: str,
    roles: Sequence[str],
    lifetime_s: float,
    now: float,
    **more: Any,
) -> str:
    """Return a signed token; `more` are further claims: `tenant`, `method`, `acr`, `amr`, `auth_time`, `cnf`, `act`.

    Raises:
        InvalidArgumentError: The lifetime is out of range, or the principal or a role is malformed.
    """
    if not 0 < lifetime_s <= settings.lifetime_max_s:
        raise InvalidArgumentError(f"a token lives more than 0 and at most {settings.lifetime_max_s:g} seconds")
    if not all(is_role_name(role) for role in roles):
        raise InvalidArgumentError("a role is a name without spaces")
    if not principal or len(principal) > 200 or not principal.isprintable():
        raise InvalidArgumentError("a principal is 1 to 200 printable characters")
    header = {"alg": _ALGORITHM, "typ": _TYPE, "kid": key.kid}
    claims: dict[str, Any] = {
        "iss": settings.issuer,
        "aud": settings.audience,
        "sub": principal,
        "iat": int(now),
        "nbf": int(now),
        "exp": int(now + lifetime_s),
        "jti": secrets.token_hex(16),
        "roles": list(roles),
        **more,
    }
    signed = f"{_encode(header)}.{_encode(claims)}"
    return f"{signed}.{base64url(key.private.sign(signed.encode()))}"


def rules_of(settings: TokenSettings) -> Rules:
    """Return what a token of the local issuer must say."""
    return Rules(
        issuer=settings.issuer,
        audiences=frozenset({settings.audience}),
        algorithms=frozenset({_ALGORITHM}),
        types=frozenset({_TYPE}),
        required=("nbf",),
        leeway_s=settings.leeway_s,
        lifetime_max_s=settings.lifetime_max_s,
        bytes_max=settings.token_bytes_max,
    )


class LocalIssuer:
    """This fleet's own issuer, as one among others."""

    name = "local"

    def __init__(
        self, key_set: KeySet, settings: TokenSettings, clock: Clock | None = None, folder: Path | None = None
    ) -> None:
        """`folder` is where the keys are from, and are followed to; they stay as they are without."""
        self._key_set = key_set
        self._keys = key_set.keys
        self._clock = clock or SystemClock()
        self._folder = folder
        self._stamp: object = public_keys_stamp(folder) if folder is not None else None
        self._looked_at = self._clock.monotonic()
        self._over_at = self._pick()
        self.rules = rules_of(settings)

    def keys(self) -> Mapping[str, Key]:
        """Return the keys of the state folder that are believed now."""
        if self._clock.monotonic() - self._looked_at >= _LOOK_S:
            self.look()
        if self._clock.now() >= self._over_at:
            self._over_at = self._pick()
        return self._keys

    def look(self) -> None:
        """Take up keys that were changed; a file that cannot be read changes nothing but the log."""
        self._looked_at = self._clock.monotonic()
        if self._folder is None or (stamp := public_keys_stamp(self._folder)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._key_set = load_key_set(self._folder)
        except NexusError as error:
            log.error("keys.refused", error=error.message)
            return
        self._over_at = self._pick()
        log.info("keys.taken_up", keys=len(self._keys))

    def _pick(self) -> float:
        """Keep the keys that are not over; return when the next one is."""
        now, until = self._clock.now(), self._key_set.until
        self._keys = {kid: key for kid, key in self._key_set.keys.items() if until.get(kid, math.inf) > now}
        return min((end for end in until.values() if end > now), default=math.inf)

    async def prepare(self, kid: Any) -> None:
        """Do nothing: the keys are here."""

    def read(self, claims: dict[str, Any], now: float) -> Claims:
        """Return what the claims of a token that is proved say of the caller.

        Raises:
            UnauthenticatedError: They do not meet the rules, or are malformed.
        """
        return read_claims(claims, self.rules, now)


def verify_token(token: str, key_set: KeySet, settings: TokenSettings, now: float) -> Claims:
    """Return what a token says, if all of it is in order.

    Raises:
        UnauthenticatedError: It is not; `details["reason"]` says which step refused it, for the log only.
    """
    rules = rules_of(settings)
    parsed = parse(token, rules.bytes_max)
    verify(parsed, key_set.keys, rules)
    return read_claims(read_object(parsed.payload), rules, now)


def read_claims(claims: dict[str, Any], rules: Rules, now: float) -> Claims:
    """Return what the claims of a token that is proved say of the caller.

    Raises:
        UnauthenticatedError: They do not meet the rules, or are malformed.
    """
    check_claims(claims, rules, now)
    subject, token_id, roles = claims.get("sub"), claims.get("jti"), claims.get("roles")
    if not (isinstance(subject, str) and subject and isinstance(token_id, str) and token_id):
        raise refused("subject")
    if not isinstance(roles, list) or not all(isinstance(role, str) and is_role_name(role) for role in roles):
        raise refused("roles")
    tenant, method, acr, amr = (claims.get(name, default) for name, default in _OPTIONAL.items())
    if not (isinstance(tenant, str) and tenant and isinstance(method, str) and isinstance(acr, str)):
        raise refused("tenant_or_method")
    if not isinstance(amr, list) or not all(isinstance(entry, str) for entry in amr):
        raise refused("amr")
    return Claims(
        token_id, subject, rules.issuer, tuple(roles), seconds(claims, "exp"), tenant, method,
        seconds(claims, "auth_time" if "auth_time" in claims else "iat"), acr, tuple(amr), read_confirmation(claims),
        _read_delegation(claims),
    )  # fmt: skip


def read_confirmation(claims: dict[str, Any]) -> str:
    """Return what a token is bound to, or nothing where it is bound to nothing; see `Claims`.

    Raises:
        UnauthenticatedError: It is bound by something that we cannot check.
    """
    if "cnf" not in claims:
        return ""
    confirmation = claims["cnf"]
    if not isinstance(confirmation, dict) or len(confirmation) != 1:
        raise refused("confirmation")
    ((kind, bound),) = confirmation.items()
    if kind not in CONFIRMATIONS or not isinstance(bound, str) or not bound:
        raise refused("confirmation")
    return f"{kind}:{bound}"


def delegation_claims(delegation: Delegation) -> dict[str, Any]:
    """Return the claims that say a delegation: `act`, each actor around those before (RFC 8693, 4.1), and ours."""
    act: dict[str, Any] = {}
    for actor in reversed(delegation.actors):
        act = {"sub": actor, **({"act": act} if act else {})}
    found: dict[str, Any] = {"nexus_parents": list(delegation.parents), "nexus_narrowed": delegation.is_narrowed}
    return {**found, "act": act} if act else found


def read_actors(act: Any) -> tuple[str, ...]:
    """Return who acts, by the claim `act`, the one who does now first.

    Raises:
        UnauthenticatedError: It is malformed, or too many.
    """
    actors: list[str] = []
    while act is not None:
        named = act.get("sub") if isinstance(act, dict) else None
        if not isinstance(named, str) or not named or len(named) > 200 or len(actors) >= ACTORS_MAX:
            raise refused("act")
        actors.append(named)
        act = act.get("act")
    return tuple(actors)


def _read_delegation(claims: dict[str, Any]) -> Delegation | None:
    if not {"act", "nexus_parents", "nexus_narrowed"} & claims.keys():
        return None
    parents, is_narrowed = claims.get("nexus_parents", []), claims.get("nexus_narrowed", False)
    is_list = isinstance(parents, list) and all(isinstance(parent, str) for parent in parents)
    if not is_list or not isinstance(is_narrowed, bool):
        raise refused("delegation")
    return Delegation(read_actors(claims.get("act")), tuple(parents), is_narrowed)


def _encode(value: dict[str, Any]) -> str:
    return base64url(json.dumps(value, separators=(",", ":")).encode())
