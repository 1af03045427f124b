"""Authentication: a credential becomes a `Session`, or is refused like every other one.

Law: the only place that makes sessions for callers from outside. Every attempt is counted. Who issued a token is asked
of the token only to choose whose keys and rules it must satisfy, `iss` among them.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import UnauthenticatedError
from nexus_ray.core.identity import Session
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger
from nexus_ray.security.client_certificates import PROVIDER, ClientCertificates, PeerCertificate
from nexus_ray.security.dpop import Proofs, Shown
from nexus_ray.security.jose import Parsed, Rules, is_over, parse, read_object, refused, verify
from nexus_ray.security.jwk import Key
from nexus_ray.security.keys import KeySet, load_key_set
from nexus_ray.security.oidc import OidcIssuer
from nexus_ray.security.settings import SecuritySettings
from nexus_ray.security.tokens import Claims, LocalIssuer, TokenSettings

log = get_logger("security.authn")

_BEARER = Shown()


class Issuer(Protocol):
    """Whose tokens are taken: its name here, its rules, its keys, and what its claims mean."""

    name: str
    rules: Rules

    def keys(self) -> Mapping[str, Key]:
        """Return the keys that are believed now, by their ids."""
        ...

    async def prepare(self, kid: Any) -> None:
        """Have the key of this id, if it can be had; never raises for want of it."""
        ...

    def read(self, claims: dict[str, Any], now: float) -> Claims:
        """Return who the claims of a token that is proved are about; refuses what does not meet the rules."""
        ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """A token that was verified: it holds for as long as its key is believed."""

    session: Session
    issuer: Issuer
    key: Key


class Authenticator:
    """Checks tokens of the local issuer and of every provider that is configured."""

    def __init__(
        self,
        key_set: KeySet,
        settings: TokenSettings,
        clock: Clock,
        issuers: Sequence[Issuer] = (),
        security: SecuritySettings | None = None,
        folder: Path | None = None,
    ) -> None:
        """`folder` is where the keys of the local issuer are followed to, if they are."""
        self._settings = settings
        self._clock = clock
        self._local = LocalIssuer(key_set, settings, clock, folder)
        self._issuers: dict[str, Issuer] = {issuer.rules.issuer: issuer for issuer in (*issuers, self._local)}
        self._bytes_max = max(issuer.rules.bytes_max for issuer in self._issuers.values())
        security = security or SecuritySettings()
        self._proofs = Proofs(security)
        has_certificates = security.certificates.ca_file is not None
        self._certificates = ClientCertificates(security.certificates, clock) if has_certificates else None
        self._seen: OrderedDict[bytes, _Seen] = OrderedDict()

    @classmethod
    def from_folder(
        cls, folder: Path, settings: TokenSettings, clock: Clock, security: SecuritySettings | None = None
    ) -> "Authenticator":
        """Return an authenticator over the public keys of a state folder, and the providers of the settings.

        Raises:
            FailedPreconditionError: There are none.
        """
        security = security or SecuritySettings()
        issuers = [OidcIssuer(name, provider, clock) for name, provider in security.oidc.items()]
        return cls(load_key_set(folder), settings, clock, issuers, security, folder)

    @property
    def is_ready(self) -> bool:
        """Tell whether there is a key to check with."""
        return bool(self._local.keys())

    async def identify(self, credential: str | None, shown: Shown = _BEARER) -> Session:
        """Return who presents a credential, having asked its provider for keys first where that is needed.

        Raises:
            UnauthenticatedError: Nobody that we know; all refusals read alike.
        """
        is_short = credential is not None and len(credential) <= self._bytes_max
        if credential and is_short and len(self._issuers) > 1:
            if (seen := self._seen.get(_name(credential))) is not None:
                await seen.issuer.prepare(seen.key.kid)  # Its key may have been withdrawn since.
                return self.authenticate(credential, shown)
            try:
                parsed = parse(credential, self._bytes_max)
                issuer = self._issuer(read_object(parsed.payload))
            except UnauthenticatedError:
                pass  # It is refused, and counted, below.
            else:
                await issuer.prepare(parsed.header.get("kid"))
        return self.authenticate(credential, shown)

    def authenticate(self, credential: str | None, shown: Shown = _BEARER) -> Session:
        """Return who presents `credential`, the token of an `Authorization` header, by the keys that are at hand.

        Without any, the certificate of the connection is the credential.

        Raises:
            UnauthenticatedError: Nobody that we know; all refusals read alike.
        """
        now = self._clock.now()
        provider, method = self._local.name, "dpop" if shown.scheme == "dpop" else "token"
        if credential is None and shown.certificate is not None and self._certificates is not None:
            return self._by_certificate(self._certificates, shown.certificate)
        try:
            if not credential:
                raise refused("missing")
            if len(credential) > self._bytes_max:
                raise refused("size")  # Before it is hashed: a long one costs as little as a short one.
            # The hash, so that no token stays in memory in clear.
            name = _name(credential)
            seen = self._seen.get(name)
            if seen is None:
                parsed = parse(credential, self._bytes_max)
                claims = read_object(parsed.payload)
                issuer = self._issuer(claims)
                provider = issuer.name
                seen = self._check(credential, parsed, claims, issuer, now)
            else:
                provider = seen.issuer.name
                self._check_again(name, seen, now)
            self._proofs.check(shown, credential, seen.session.bound, now)
        except UnauthenticatedError as error:
            metrics.count("nexus_auth_attempts_total", provider=provider, result="failure", method=method)
            log.info("authn.refused", provider=provider, reason=error.details.get("reason"))
            raise
        metrics.count("nexus_auth_attempts_total", provider=provider, result="success", method=method)
        self._seen[name] = seen
        if len(self._seen) > self._settings.cached_max:
            self._seen.popitem(last=False)
        return seen.session

    def _by_certificate(self, certificates: ClientCertificates, peer: PeerCertificate) -> Session:
        result = "failure"
        try:
            session = certificates.session(peer)
            result = "success"
            return session
        except UnauthenticatedError as error:
            log.info("authn.refused", provider=PROVIDER, reason=error.details.get("reason"))
            raise
        finally:
            metrics.count("nexus_auth_attempts_total", provider=PROVIDER, result=result, method=PROVIDER)

    def _issuer(self, claims: dict[str, Any]) -> Issuer:
        """Return whose token this says it is; what nobody is known for, the local issuer refuses."""
        named = claims.get("iss")
        return self._issuers.get(named, self._local) if isinstance(named, str) else self._local

    def _check(self, token: str, parsed: Parsed, raw: dict[str, Any], issuer: Issuer, now: float) -> _Seen:
        if len(token) > issuer.rules.bytes_max:
            raise refused("size")
        if is_over(raw, issuer.rules, now):
            raise refused("expired")  # Before its signature, which is what costs: whoever signed it, it is over.
        keys, kid = issuer.keys(), parsed.header.get("kid")
        if issuer is self._local and isinstance(kid, str) and kid not in keys:
            self._local.look()  # It may be the first token of a new key.
            keys = issuer.keys()
        key = verify(parsed, keys, issuer.rules)
        claims = issuer.read(raw, now)
        session = Session(
            claims.id or _name(token).hex(), claims.subject, claims.issuer, claims.roles, claims.expires_at,
            claims.tenant, claims.method, claims.authenticated_at, claims.acr, claims.amr, claims.bound,
            claims.delegation,
        )  # fmt: skip
        return _Seen(session, issuer, key)

    def _check_again(self, name: bytes, seen: _Seen, now: float) -> None:
        rules = seen.issuer.rules
        if seen.session.expires_at <= now - rules.leeway_s:
            raise refused("expired")  # And stays known, so that it costs as little the next time.
        if seen.issuer.keys().get(seen.key.kid) != seen.key:
            del self._seen[name]
            raise refused("key_is_gone")


def _name(credential: str) -> bytes:
    return hashlib.blake2b(credential.encode("utf-8", "surrogatepass"), digest_size=32).digest()
