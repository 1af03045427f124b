"""Bearer tokens of the local issuer: JWTs that are checked against exactly what is configured, and nothing else.

Law: every failure is the same `UnauthenticatedError("authentication failed")`; only the log learns the reason.
Sources: RFC 7515, 7519, 8037, 8725.
"""

import base64
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from pydantic import BaseModel, ConfigDict

from nexus_ray.core.errors import InvalidArgumentError, UnauthenticatedError
from nexus_ray.security.authz import is_role_name
from nexus_ray.security.keys import KeySet, SigningKey, base64url

_ALGORITHM = "EdDSA"
_TYPE = "nexus+jwt"
_SECONDS_MAX = 2.0**53  # Above it a float skips seconds; the year is 285 million.


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
    """What a verified token says; `expires_at` is wall-clock seconds."""

    id: str
    subject: str
    issuer: str
    roles: tuple[str, ...]
    expires_at: float


def issue_token(
    key: SigningKey, settings: TokenSettings, principal: str, roles: Sequence[str], lifetime_s: float, now: float
) -> str:
    """Return a signed token.

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
    claims = {
        "iss": settings.issuer,
        "aud": settings.audience,
        "sub": principal,
        "iat": int(now),
        "nbf": int(now),
        "exp": int(now + lifetime_s),
        "jti": secrets.token_hex(16),
        "roles": list(roles),
    }
    signed = f"{_encode(header)}.{_encode(claims)}"
    return f"{signed}.{base64url(key.private.sign(signed.encode()))}"


def verify_token(token: str, key_set: KeySet, settings: TokenSettings, now: float) -> Claims:
    """Return what a token says, if all of it is in order.

    Raises:
        UnauthenticatedError: It is not; `details["reason"]` says which step refused it, for the log only.
    """
    # 1. Size, before any work.
    if len(token) > settings.token_bytes_max or not token.isascii():
        raise refused("size")
    # 2. Three parts of canonical base64url.
    parts = token.split(".")
    if len(parts) != 3:
        raise refused("parts")
    raw_header, raw_claims, signature = (_decode(part) for part in parts)
    # 3. The header: exactly alg, typ and kid. Nothing that names a key from outside, nothing critical.
    header = _object(raw_header)
    if set(header) != {"alg", "typ", "kid"}:
        raise refused("header_fields")
    # 4. The algorithm and the type are ours, to the letter.
    if header["alg"] != _ALGORITHM or header["typ"] != _TYPE:
        raise refused("algorithm_or_type")
    # 5. The key is one of this issuer's.
    kid = header["kid"]
    public = key_set.keys.get(kid) if isinstance(kid, str) else None
    if public is None:
        raise refused("unknown_key")
    # 6. The signature, over the bytes as they came.
    try:
        public.verify(signature, f"{parts[0]}.{parts[1]}".encode())
    except InvalidSignature:
        raise refused("signature") from None
    # 7. Issuer and audience.
    claims = _object(raw_claims)
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if claims.get("iss") != settings.issuer or settings.audience not in audiences:
        raise refused("issuer_or_audience")
    # 8. The times: all there, numbers, in order, and not longer than allowed.
    issued_at, not_before, expires_at = (_seconds(claims, name) for name in ("iat", "nbf", "exp"))
    if expires_at <= now - settings.leeway_s:
        raise refused("expired")
    if max(not_before, issued_at) > now + settings.leeway_s:
        raise refused("not_yet_valid")
    if not 0 < expires_at - issued_at <= settings.lifetime_max_s:
        raise refused("lifetime")
    # 9. Who, with which roles.
    subject, token_id, roles = claims.get("sub"), claims.get("jti"), claims.get("roles")
    if not (isinstance(subject, str) and subject and isinstance(token_id, str) and token_id):
        raise refused("subject")
    if not isinstance(roles, list) or not all(isinstance(role, str) and is_role_name(role) for role in roles):
        raise refused("roles")
    return Claims(token_id, subject, settings.issuer, tuple(roles), expires_at)


def refused(reason: str) -> UnauthenticatedError:
    """Return the one error that every refused credential gets; `reason` is for the log."""
    return UnauthenticatedError("authentication failed", reason=reason)


def _encode(value: dict[str, Any]) -> str:
    return base64url(json.dumps(value, separators=(",", ":")).encode())


def _decode(part: str) -> bytes:
    try:
        raw = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise refused("base64") from None
    if base64url(raw) != part:
        raise refused("base64")  # Another spelling of the same bytes: padding, or bits that are thrown away.
    return raw


def _object(raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    try:
        value = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise refused("json") from None
    if not isinstance(value, dict):
        raise refused("json")
    return value


def _seconds(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    # A bound and not only a check for finiteness: a whole number may be too large for a float at all.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _SECONDS_MAX:
        raise refused(f"claim_{name}")
    return float(value)
