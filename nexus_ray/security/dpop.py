"""Proofs of possession (DPoP): who presents a token that is bound to a key shows, for each request, that it holds it.

Law: a proof is for one method, one URL, one token and one use. Ids are remembered for as long as a proof may live; when
there is no room for one more, the proof is refused.
Source: RFC 9449, section 4.3, whose numbers the steps are near to.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from nexus_ray.security.client_certificates import PeerCertificate
from nexus_ray.security.jose import check_signature, parse, read_object, refused, same, seconds, token_hash
from nexus_ray.security.jwk import ALGORITHMS, read_key, thumbprint
from nexus_ray.security.settings import SecuritySettings

_ALGORITHMS = ALGORITHMS - {"HS256"}
_BYTES_MAX = 4096
_ID_CHARACTERS_MAX = 200
_LEEWAY_S = 5.0
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Shown:
    """How a credential was presented: with which scheme, which proofs beside it, and for what request.

    `url` is the address of the request as this fleet knows itself, "" where it does not. `certificate` is the
    client's that the connection was made with, if it was with one.
    """

    scheme: str = "bearer"
    proofs: tuple[str, ...] = ()
    method: str = ""
    url: str = ""
    certificate: PeerCertificate | None = None


class Proofs:
    """Checks proofs, and remembers them so that none is used twice in this process."""

    def __init__(self, settings: SecuritySettings) -> None:
        self._settings = settings
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()  # Until when, the oldest first.

    def check(self, shown: Shown, token: str, bound: str, now: float) -> None:
        """Refuse a bound token that comes without its proof, and a proof with a token that is not bound.

        Args:
            shown: How the token came.
            token: The token itself.
            bound: What it is bound to, "" where that is nothing; see `security.tokens.Claims`.
            now: Wall-clock seconds.

        Raises:
            UnauthenticatedError: No, or not this proof.
        """
        kind, _, bound = bound.partition(":")
        if kind == "x5t#S256":
            if shown.certificate is None or not same(shown.certificate.thumbprint, bound):
                raise refused("certificate_of_another")
            kind = bound = ""
        if not kind:
            if shown.scheme == "dpop" or shown.proofs:
                raise refused("proof_of_unbound_token")
            return
        # 1. One proof, with the scheme that says so.
        if shown.scheme != "dpop" or len(shown.proofs) != 1:
            raise refused("no_proof")
        # 2. A signed token that says what it is, with its own public key and nothing else in the header.
        parsed = parse(shown.proofs[0], _BYTES_MAX)
        header = parsed.header
        if set(header) != {"typ", "alg", "jwk"} or header["typ"] != "dpop+jwt":
            raise refused("proof_header")
        algorithm = header["alg"]
        key = read_key(header["jwk"])
        if key is None or not isinstance(algorithm, str) or algorithm not in _ALGORITHMS & key.algorithms:
            raise refused("proof_key")
        # 3. The key is the one that the token is bound to; looked at before the signature, which costs more.
        if not same(thumbprint(header["jwk"]), bound):
            raise refused("proof_of_another_key")
        check_signature(parsed, key, algorithm)
        # 4. For this request, this token, and now.
        claims = read_object(parsed.payload)
        if claims.get("htm") != shown.method or not shown.url or _address(claims.get("htu")) != _address(shown.url):
            raise refused("proof_of_another_request")
        if not same(claims.get("ath"), token_hash(token)):
            raise refused("proof_of_another_token")
        issued_at = seconds(claims, "iat")
        if not now - self._settings.proof_age_s - _LEEWAY_S <= issued_at <= now + _LEEWAY_S:
            raise refused("proof_time")
        # 5. Once.
        name = claims.get("jti")
        if not isinstance(name, str) or not 0 < len(name) <= _ID_CHARACTERS_MAX:
            raise refused("proof_id")
        self._remember((bound, name), now)

    def _remember(self, proof: tuple[str, str], now: float) -> None:
        while self._seen and next(iter(self._seen.values())) < now:
            self._seen.popitem(last=False)
        if proof in self._seen:
            raise refused("proof_used")
        if len(self._seen) >= self._settings.proofs_max:
            raise refused("proofs_full")
        # From now and not from `iat`, so that they stand in the order in which they end; longer than any proof lives.
        self._seen[proof] = now + self._settings.proof_age_s + 2 * _LEEWAY_S


def _address(url: Any) -> tuple[str, str, int, str] | None:
    """Return scheme, host, port and path of a URL, without query and fragment (RFC 9449, 4.3, step 9)."""
    if not isinstance(url, str):
        return None
    try:
        parts = urlsplit(url)
        scheme, port = parts.scheme.lower(), parts.port
    except ValueError:
        return None
    if scheme not in _PORTS or not parts.hostname or parts.username is not None:
        return None
    return scheme, parts.hostname, port or _PORTS[scheme], parts.path or "/"
