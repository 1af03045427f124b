"""Signed tokens in their compact form (JWS, JWT), read strictly: what is accepted is what the rules name.

Law: a token is refused unless every step says yes, and chooses nothing for itself: algorithm, key and type are looked
up among what was configured. Nothing is fetched, and no key comes out of a token. There is no `none`, and no HMAC
where the key is public, because a key knows its own algorithms.
Sources: RFC 7515, 7517, 7518, 7519, 8037, 8725.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature

from nexus_ray.core.errors import UnauthenticatedError
from nexus_ray.security.jwk import ALGORITHMS, Key, base64url

_NEVER = frozenset({"jku", "x5u", "x5c", "jwk", "crit", "b64"})  # They name a key from outside, or change the rules.
_SECONDS_MAX = 2.0**53  # Above it a float skips seconds; the year is 285 million.


@dataclass(frozen=True, slots=True)
class Rules:
    """What the tokens of one issuer must say.

    `types` are values of `typ`, "" where it may be missing; `ignored` are header fields that may stand there and mean
    nothing; `required` are claims beside `iss`, `aud`, `iat` and `exp`.
    """

    issuer: str
    audiences: frozenset[str]
    algorithms: frozenset[str]
    types: frozenset[str]
    required: tuple[str, ...] = ("sub",)
    ignored: frozenset[str] = frozenset()
    leeway_s: float = 5.0
    lifetime_max_s: float = 86_400.0
    bytes_max: int = 4096

    def __post_init__(self) -> None:
        if not self.algorithms or not self.algorithms <= ALGORITHMS or self.ignored & _NEVER:
            raise ValueError("rules name known algorithms, and ignore nothing that must be refused")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A token that is well-formed; nothing of it is proved."""

    header: dict[str, Any]
    payload: bytes
    signed: bytes
    signature: bytes


def refused(reason: str) -> UnauthenticatedError:
    """Return the one error that every refused credential gets; `reason` is for the log."""
    return UnauthenticatedError("authentication failed", reason=reason)


def parse(token: str, bytes_max: int) -> Parsed:
    """Return the three parts of a token.

    Raises:
        UnauthenticatedError: Too long, not three parts of canonical base64url, or the header is no object of JSON.
    """
    # 1. Size, before any work.
    if len(token) > bytes_max or not token.isascii():
        raise refused("size")
    # 2. Three parts of canonical base64url.
    parts = token.split(".")
    if len(parts) != 3:
        raise refused("parts")
    raw_header, payload, signature = (decode(part) for part in parts)
    # 3. A header with names that stand once.
    return Parsed(read_object(raw_header), payload, f"{parts[0]}.{parts[1]}".encode(), signature)


def verify(parsed: Parsed, keys: Mapping[str, Key], rules: Rules) -> Key:
    """Return the key that signed, if the header is in order and the signature is of one of `keys`.

    Raises:
        UnauthenticatedError: It is not; `details["reason"]` says which step refused it, for the log only.
    """
    header = parsed.header
    # 4. The header: alg, typ and kid. Nothing that names a key from outside, nothing critical, nothing unknown.
    names = set(header) - rules.ignored
    if not {"alg", "kid"} <= names or not names <= {"alg", "typ", "kid"}:
        raise refused("header_fields")
    if "typ" not in names and "" not in rules.types:
        raise refused("header_fields")
    # 5. The algorithm and the type are configured, to the letter.
    algorithm, kind = header["alg"], header.get("typ", "")
    if not isinstance(algorithm, str) or not isinstance(kind, str):
        raise refused("algorithm_or_type")
    if algorithm not in rules.algorithms or kind not in rules.types or ("typ" in names and not kind):
        raise refused("algorithm_or_type")
    # 6. The key is one of this issuer's, and made for this algorithm.
    kid = header["kid"]
    key = keys.get(kid) if isinstance(kid, str) else None
    if key is None:
        raise refused("unknown_key")
    if algorithm not in key.algorithms:
        raise refused("key_is_for_another_algorithm")
    # 7. The signature, over the bytes as they came.
    check_signature(parsed, key, algorithm)
    return key


def check_signature(parsed: Parsed, key: Key, algorithm: str) -> None:
    """Refuse what `key` did not sign.

    Raises:
        UnauthenticatedError: The signature is another's.
    """
    try:
        key.verify(algorithm, parsed.signature, parsed.signed)
    except InvalidSignature:
        raise refused("signature") from None


def check_claims(claims: dict[str, Any], rules: Rules, now: float) -> None:
    """Refuse claims that do not meet the rules at `now`, in wall-clock seconds.

    Raises:
        UnauthenticatedError: One is missing or wrong.
    """
    # 8. Issuer and audience.
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    named = any(isinstance(entry, str) and entry in rules.audiences for entry in audiences)
    if claims.get("iss") != rules.issuer or not named:
        raise refused("issuer_or_audience")
    # 9. The times: numbers, in order, and not longer than allowed.
    issued_at, expires_at = seconds(claims, "iat"), seconds(claims, "exp")
    not_before = seconds(claims, "nbf") if "nbf" in claims or "nbf" in rules.required else issued_at
    if expires_at <= now - rules.leeway_s:
        raise refused("expired")
    if max(not_before, issued_at) > now + rules.leeway_s:
        raise refused("not_yet_valid")
    if not 0 < expires_at - issued_at <= rules.lifetime_max_s:
        raise refused("lifetime")
    # 10. The rest of what must be there.
    for name in rules.required:
        if claims.get(name) in (None, ""):
            raise refused(f"claim_{name}")


def is_over(claims: dict[str, Any], rules: Rules, now: float) -> bool:
    """Tell whether a token says itself that its time has passed; one that does not is not proved by that."""
    expires_at = claims.get("exp")
    if isinstance(expires_at, bool) or not isinstance(expires_at, int | float):
        return False
    return 0 <= expires_at <= now - rules.leeway_s


def decode(part: str) -> bytes:
    """Return the bytes of canonical base64url.

    Raises:
        UnauthenticatedError: It is another spelling: padding, bits that are thrown away, or another alphabet.
    """
    try:
        raw = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise refused("base64") from None
    if base64url(raw) != part:
        raise refused("base64")
    return raw


def read_object(raw: bytes, depth_max: int = 8) -> dict[str, Any]:
    """Return an object of JSON in UTF-8, each name once, that nests at most `depth_max` deep.

    Raises:
        UnauthenticatedError: It is not one.
    """
    try:
        # Decoded here, for `json` would also take UTF-16 and UTF-32.
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # Half a surrogate pair is no text.
    except (ValueError, RecursionError):
        raise refused("json") from None
    is_shallow = raw.count(b"{") + raw.count(b"[") <= depth_max
    if not isinstance(value, dict) or not (is_shallow or _is_within(value, depth_max)):
        raise refused("json")
    return value


def seconds(claims: dict[str, Any], name: str) -> float:
    """Return a claim that is an instant.

    Raises:
        UnauthenticatedError: It is missing, or no number that a clock could show.
    """
    value = claims.get(name)
    # A bound and not only a check for finiteness: a whole number may be too large for a float at all.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _SECONDS_MAX:
        raise refused(f"claim_{name}")
    return float(value)


def token_hash(token: str) -> str:
    """Return the SHA-256 of a token in base64url, as `ath` says it (RFC 9449)."""
    return base64url(hashlib.sha256(token.encode("ascii", "replace")).digest())


def same(one: Any, other: str) -> bool:
    """Compare in time that does not tell how much is equal; what is no text is never equal."""
    return isinstance(one, str) and hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _is_within(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_within(item, depth - 1) for item in inner)
