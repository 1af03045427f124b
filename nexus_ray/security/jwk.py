"""Keys that check signatures, read from JSON Web Keys.

Law: a key is taken only if all that it says of itself fits: kind, curve, algorithm, `use`, `key_ops`, strength. One
that does not is left out, so a token that names it is refused. Two keys of one id are both left out.
Sources: RFC 7517, 7518, 7638, 8037; NIST SP 800-131A for the strength.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES: dict[str, tuple[str, ec.EllipticCurve]] = {
    "P-256": ("ES256", ec.SECP256R1()),
    "P-384": ("ES384", ec.SECP384R1()),
    "P-521": ("ES512", ec.SECP521R1()),
}
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
ALGORITHMS = _RSA | {"EdDSA", "ES256", "ES384", "ES512", "HS256"}
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})
_RSA_BITS_MIN, _RSA_BITS_MAX = 2048, 8192  # Below is weak; above, one look costs milliseconds.
_EXPONENT_MAX = 2**32
_SECRET_BYTES_MIN = 32  # As long as the hash (RFC 7518, 3.2).
_KEYS_MAX = 100  # A key set of one issuer has two or three.

_Material = Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey | bytes


@dataclass(frozen=True, slots=True)
class Key:
    """A key, and the algorithms that it may be used with."""

    kid: str
    algorithms: frozenset[str]
    material: _Material

    def verify(self, algorithm: str, signature: bytes, signed: bytes) -> None:
        """Refuse a signature that is not this key's.

        Raises:
            InvalidSignature: It is not, or the algorithm is not one of the key's.
        """
        if algorithm not in self.algorithms:
            raise InvalidSignature
        material = self.material
        if isinstance(material, Ed25519PublicKey):
            material.verify(signature, signed)
        elif isinstance(material, ec.EllipticCurvePublicKey):
            # r and s, each as long as the curve's order and not one byte more (RFC 7518, 3.4).
            size = (material.curve.key_size + 7) // 8
            if len(signature) != 2 * size:
                raise InvalidSignature
            r, s = int.from_bytes(signature[:size]), int.from_bytes(signature[size:])
            material.verify(encode_dss_signature(r, s), signed, ec.ECDSA(_HASHES[algorithm[2:]]))
        elif isinstance(material, rsa.RSAPublicKey):
            chosen = _HASHES[algorithm[2:]]
            salted = padding.PSS(padding.MGF1(chosen), chosen.digest_size)
            material.verify(signature, signed, salted if algorithm[0] == "P" else padding.PKCS1v15(), chosen)
        elif not hmac.compare_digest(hmac.digest(material, signed, "sha256"), signature):
            raise InvalidSignature


def read_key_set(document: Any, *, is_secret: bool = False) -> dict[str, Key]:
    """Return the keys of a JWK set that can check signatures, by their ids.

    Args:
        document: What the JSON said.
        is_secret: Whether the set was configured here and may hold symmetric keys; one from the net never may.

    Raises:
        ValueError: It is not a key set.
    """
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > _KEYS_MAX:
        raise ValueError("not a key set")
    named = Counter(
        entry["kid"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("kid"), str)
    )
    found = (read_key(entry, is_secret=is_secret) for entry in entries)
    return {key.kid: key for key in found if key is not None and named[key.kid] == 1}


def read_key(entry: Any, *, is_secret: bool = False) -> Key | None:
    """Return the key that a JWK describes, or nothing where it is not for checking signatures."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kid", ""), str):
        return None
    if "use" in entry and entry["use"] != "sig":
        return None
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if set(map(str, operations)) - {"sign", "verify"} or len(set(map(str, operations))) != len(operations):
        return None  # A key that also does something else is not made for signatures (RFC 7517, 4.3).
    if not is_secret and _PRIVATE_MEMBERS & set(entry):
        return None  # Whoever publishes a private key has lost it.
    try:
        read = _KINDS[entry["kty"]] if entry["kty"] != "oct" or is_secret else None
        if read is None:
            return None
        algorithms, material = read(entry)
    except (KeyError, TypeError, ValueError):
        return None
    if "alg" in entry:
        if not isinstance(entry["alg"], str) or entry["alg"] not in algorithms:
            return None
        algorithms = frozenset({entry["alg"]})
    return Key(entry.get("kid", ""), algorithms, material)


def thumbprint(entry: dict[str, Any]) -> str:
    """Return the SHA-256 thumbprint of a JWK in base64url (RFC 7638).

    Raises:
        KeyError: A member that the kind needs is missing.
    """
    names = {"RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")}[entry["kty"]]
    canonical = json.dumps({name: entry[name] for name in names}, separators=(",", ":"), sort_keys=True)
    return base64url(hashlib.sha256(canonical.encode()).digest())


def base64url(value: bytes) -> str:
    """Return bytes in base64url without padding."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _octets(entry: dict[str, Any], name: str) -> bytes:
    text = entry[name]
    if not isinstance(text, str):
        raise ValueError("not base64url")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if base64url(raw) != text:
        raise ValueError("not base64url")
    return raw


def _okp(entry: dict[str, Any]) -> tuple[frozenset[str], _Material]:
    if entry["crv"] != "Ed25519":
        raise ValueError("another curve")
    return frozenset({"EdDSA"}), Ed25519PublicKey.from_public_bytes(_octets(entry, "x"))


def _ec(entry: dict[str, Any]) -> tuple[frozenset[str], _Material]:
    algorithm, curve = _CURVES[entry["crv"]]
    size = (curve.key_size + 7) // 8
    x, y = _octets(entry, "x"), _octets(entry, "y")
    if len(x) != size or len(y) != size:
        raise ValueError("coordinates of another length")
    # `public_key` refuses a point that is not on the curve.
    return frozenset({algorithm}), ec.EllipticCurvePublicNumbers(
        int.from_bytes(x), int.from_bytes(y), curve
    ).public_key()


def _rsa(entry: dict[str, Any]) -> tuple[frozenset[str], _Material]:
    n, e = int.from_bytes(_octets(entry, "n")), int.from_bytes(_octets(entry, "e"))
    if not _RSA_BITS_MIN <= n.bit_length() <= _RSA_BITS_MAX or not 65_537 <= e < _EXPONENT_MAX:
        raise ValueError("too weak, or too dear")
    return _RSA, rsa.RSAPublicNumbers(e, n).public_key()


def _oct(entry: dict[str, Any]) -> tuple[frozenset[str], _Material]:
    secret = _octets(entry, "k")
    if len(secret) < _SECRET_BYTES_MIN:
        raise ValueError("too weak")
    return frozenset({"HS256"}), secret


_KINDS: dict[str, Callable[[dict[str, Any]], tuple[frozenset[str], _Material]]] = {
    "OKP": _okp, "EC": _ec, "RSA": _rsa, "oct": _oct,
}  # fmt: skip
