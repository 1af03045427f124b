"""Token exchange: who holds a token gets another one for it, that can do less, for a service that acts for its owner.

Law: a new token has never more than its subject's: of its roles only, in its tenant, bound to what it was bound to,
and over when that one is over, was revoked, or belongs to somebody who was suspended; the actor's too. That it was
given is on record before it is. A refusal says which rule of the protocol was broken, and of tokens only that one of
them is not accepted.
Source: RFC 8693; the errors are RFC 6749's, 5.2.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import InvalidArgumentError, ResourceExhaustedError, UnauthenticatedError
from nexus_ray.core.identity import Delegation, Session
from nexus_ray.security.dpop import Shown
from nexus_ray.security.jose import refused
from nexus_ray.security.keys import SigningKey
from nexus_ray.security.settings import SecuritySettings
from nexus_ray.security.throttle import Throttle, claimed_name
from nexus_ray.security.tokens import ACTORS_MAX, TokenSettings, delegation_claims, issue_token

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
TOKEN_TYPES = frozenset({ACCESS_TOKEN, "urn:ietf:params:oauth:token-type:jwt"})
_FIELDS = frozenset({
    "grant_type", "subject_token", "subject_token_type", "actor_token", "actor_token_type", "requested_token_type",
    "scope", "audience", "resource",
})  # fmt: skip
_MINUTE_S = 60.0
_PARENTS_MAX = 8  # Exchanges of exchanged tokens, and their actors; each is looked up at every request.

Identify = Callable[[str, Shown], Awaitable[Session]]
WriteDown = Callable[[Session, dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Exchanged:
    """A token, how long it lives, what it may do, and whether it needs proofs of possession."""

    token: str
    lifetime_s: int
    roles: tuple[str, ...]
    needs_proof: bool


class TokenExchange:
    """Exchanges tokens; used from one event loop only."""

    def __init__(
        self,
        settings: SecuritySettings,
        tokens: TokenSettings,
        key: Callable[[], SigningKey],
        clock: Clock,
        identify: Identify,
        throttle: Throttle,
        write_down: WriteDown,
    ) -> None:
        """`identify` is the front door's; `write_down` puts a subject and facts on record."""
        self._settings = settings
        self._tokens = tokens
        self._key = key
        self._clock = clock
        self._identify = identify
        self._throttle = throttle
        self._write_down = write_down
        self._given: dict[tuple[str, str], int] = {}  # Of this minute, by tenant and principal.
        self._minute_ends_at = 0.0
        self._targets = frozenset({tokens.audience, settings.public_url.rstrip("/")} - {""})

    async def exchange(self, fields: dict[str, str], shown: Shown, source: str) -> Exchanged:
        """Return a token for the one in `fields`, the parameters of the request.

        Args:
            fields: By their names in RFC 8693, each once; empty ones count as not given.
            shown: How the subject's token came: its proof, and the certificate of the connection.
            source: The address that asks.

        Raises:
            InvalidArgumentError: `details["error"]` is the word of RFC 6749 for what is wrong.
            UnauthenticatedError: A token is not accepted.
            ResourceExhaustedError: Too many failures from there, or too many tokens for one principal.
            UnavailableError: It cannot be written down, or who may still come in is not known.
        """
        given = {name: value for name, value in fields.items() if value}
        _check_fields(given)
        token = given["subject_token"]
        name = claimed_name(token)
        self._throttle.admit(source, name)
        try:
            subject = await self._identify(token, shown)
            actor = None
            if "actor_token" in given:
                # Of two proofs of possession a request has one, so an actor's token may be bound to a certificate only.
                actor = await self._identify(given["actor_token"], Shown(certificate=shown.certificate))
            delegation = _delegation(subject, actor, "scope" in given)
        except UnauthenticatedError:
            self._throttle.failed(source, name)
            raise
        self._throttle.succeeded(source, name)
        self._check_target(given)
        self._count(subject)
        roles = _roles(subject, given.get("scope"))
        ends_at = min(subject.expires_at, actor.expires_at if actor else subject.expires_at)
        return await self._granted(subject, delegation, roles, ends_at)

    def _count(self, subject: Session) -> None:
        now = self._clock.monotonic()
        if now >= self._minute_ends_at:
            self._given.clear()
            self._minute_ends_at = now + _MINUTE_S
        name = (subject.tenant, subject.principal)
        self._given[name] = count = self._given.get(name, 0) + 1
        if count > self._settings.exchanges_a_minute_max:
            wait_s = self._minute_ends_at - now
            raise ResourceExhaustedError("as many tokens were exchanged as may be in a minute", retry_after_s=wait_s)

    def _check_target(self, given: dict[str, str]) -> None:
        for name in ("audience", "resource"):
            if name in given and given[name].rstrip("/") not in self._targets:
                raise _wrong("invalid_target", "a token of this fleet is for this fleet only")

    async def _granted(
        self, subject: Session, delegation: Delegation, roles: Sequence[str], ends_at: float
    ) -> Exchanged:
        now = self._clock.now()
        lifetime_s = int(min(self._settings.exchanged_s, self._tokens.lifetime_max_s, ends_at - now))
        if lifetime_s < 1:
            raise refused("expired")
        kind, _, value = subject.bound.partition(":")
        id = secrets.token_hex(16)
        token = issue_token(
            self._key(), self._tokens, subject.principal, roles, lifetime_s, now, jti=id, tenant=subject.tenant,
            method="exchange", auth_time=int(subject.authenticated_at), acr=subject.acr, amr=list(subject.amr),
            **delegation_claims(delegation), **({"cnf": {kind: value}} if value else {}),
        )  # fmt: skip
        if len(token) > self._tokens.token_bytes_max:
            raise _wrong("invalid_request", "the token would be too long: ask for fewer roles")
        facts = {"id": id, "roles": list(roles), "actors": list(delegation.actors), "expires_at": now + lifetime_s}
        await self._write_down(subject, facts)
        return Exchanged(token, lifetime_s, tuple(roles), kind == "jkt")


def _check_fields(given: dict[str, str]) -> None:
    if not set(given) <= _FIELDS or not {"subject_token", "subject_token_type"} <= set(given):
        raise _wrong("invalid_request", "it has subject_token and subject_token_type, and no parameter that is unknown")
    if ("actor_token" in given) != ("actor_token_type" in given):
        raise _wrong("invalid_request", "actor_token and actor_token_type come together")
    kinds = (given.get(name) for name in ("subject_token_type", "actor_token_type", "requested_token_type"))
    if not set(kinds) <= TOKEN_TYPES | {None}:
        raise _wrong("invalid_request", "access tokens are taken and given, and nothing else")


def _delegation(subject: Session, actor: Session | None, is_narrowed: bool) -> Delegation:
    """Return what the new token says of where it came from.

    Raises:
        UnauthenticatedError: The actor's is no token to act with.
        InvalidArgumentError: Too many have acted before.
    """
    before = subject.delegation or Delegation()
    parents, actors = (subject.id, *before.parents), before.actors
    if actor is not None:
        # One of another tenant is nobody here; and who himself acts for another would lend that one's name out.
        if actor.tenant != subject.tenant or actor.delegation is not None:
            raise refused("actor")
        parents, actors = (*parents, actor.id), (actor.principal, *actors)
    if len(actors) > ACTORS_MAX or len(parents) > _PARENTS_MAX:
        raise _wrong("invalid_request", "this token was exchanged too often")
    return Delegation(actors, parents, before.is_narrowed or is_narrowed)


def _roles(subject: Session, scope: str | None) -> Sequence[str]:
    if scope is None:
        return subject.roles
    roles = list(dict.fromkeys(scope.split(" ")))
    if not set(roles) <= set(subject.roles):
        raise _wrong("invalid_scope", "a scope names roles that the subject's token has")
    return roles


def _wrong(error: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, error=error)
