"""Client certificates as a log-in: whom a certificate names that TLS has proved, and what that one may do here.

Law: only a certificate that came out of a handshake is ever looked at, and never what a header says of one. TLS has
checked chain, times and possession; here stands what the name in it means: one name, of a form that the settings say,
and roles out of a table. The times are looked at again with each request, for a connection may outlive them.
Sources: RFC 8705; the SPIFFE standards X509-SVID and SPIFFE-ID.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import FailedPreconditionError
from nexus_ray.core.identity import Session
from nexus_ray.security.jose import refused
from nexus_ray.security.jwk import base64url
from nexus_ray.security.login import CertificateSettings, principal_of
from nexus_ray.security.policy import is_role_name

PROVIDER = "certificate"
_SPIFFE = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/[A-Za-z0-9._-]+)+)\Z")
_SEEN_MAX = 10_000  # Certificates that were read, some 500 bytes each.
ValueT = TypeVar("ValueT")


class PeerCertificate:
    """The certificate that the other end of a connection has proved to be its own."""

    def __init__(self, der: bytes) -> None:
        self.der = der

    @cached_property
    def thumbprint(self) -> str:
        """Its SHA-256 in base64url, as tokens name it (`x5t#S256`)."""
        return base64url(hashlib.sha256(self.der).digest())


class ClientCertificates:
    """Makes sessions of certificates; used from one event loop only."""

    def __init__(self, settings: CertificateSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._seen: OrderedDict[str, tuple[Session, float]] = OrderedDict()

    def session(self, peer: PeerCertificate) -> Session:
        """Return whose certificate this is.

        Raises:
            UnauthenticatedError: It names nobody here, or its time is not now.
        """
        known = self._seen.get(peer.thumbprint)
        if known is None:
            known = self._read(peer)
            self._seen[peer.thumbprint] = known
            if len(self._seen) > _SEEN_MAX:
                self._seen.popitem(last=False)
        session, begins_at = known
        if not begins_at <= self._clock.now() < session.expires_at:
            raise refused("certificate_time")
        return session

    def _read(self, peer: PeerCertificate) -> tuple[Session, float]:
        try:
            certificate = x509.load_der_x509_certificate(peer.der)
            extensions = {one.oid: one.value for one in certificate.extensions}
            begins_at = certificate.not_valid_before_utc.timestamp()
            ends_at = certificate.not_valid_after_utc.timestamp()
            subject = certificate.subject.rfc4514_string()
        except (ValueError, x509.DuplicateExtension):
            raise refused("certificate_malformed") from None
        _check_use(extensions)
        settings = self._settings
        name = _spiffe_id(extensions, settings.trust_domain) if settings.principal == "spiffe" else subject
        roles = tuple(dict.fromkeys(role for given in _matching(settings.roles, name) for role in given))
        tenants = _matching(settings.tenants, name)
        if settings.tenants and not tenants:
            raise refused("tenant")
        session = Session(
            f"x5t#S256:{peer.thumbprint}", principal_of(PROVIDER, name), PROVIDER, tuple(filter(is_role_name, roles)),
            ends_at, tenants[0] if tenants else "main", PROVIDER, begins_at,
        )  # fmt: skip
        return session, begins_at


def check_authorities(path: Path) -> None:
    """Refuse a file of authorities that TLS could not use.

    Raises:
        FailedPreconditionError: It is not there, or holds no certificate.
    """
    try:
        x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise FailedPreconditionError(f"the file of authorities {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise FailedPreconditionError(f"{path} holds no certificates") from None


def _check_use(extensions: Mapping[x509.ObjectIdentifier, Any]) -> None:
    """Refuse a certificate that is not one of a client."""
    basic = extensions.get(x509.BasicConstraints.oid)
    if basic is not None and basic.ca:
        raise refused("certificate_of_an_authority")
    usage = extensions.get(x509.KeyUsage.oid)
    if usage is not None and not usage.digital_signature:
        raise refused("certificate_for_another_use")
    extended = extensions.get(x509.ExtendedKeyUsage.oid)
    if extended is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in extended:
        raise refused("certificate_for_another_use")


def _spiffe_id(extensions: Mapping[x509.ObjectIdentifier, Any], trust_domain: str) -> str:
    """Return the one SPIFFE id of a certificate, of our trust domain (X509-SVID, 2 and 5.2)."""
    names = extensions.get(x509.SubjectAlternativeName.oid)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []
    match = _SPIFFE.match(uris[0]) if len(uris) == 1 else None
    if match is None or match[1] != trust_domain or not {".", ".."}.isdisjoint(match[2].split("/")):
        raise refused("spiffe_id")
    return str(uris[0])


def _matching(table: Mapping[str, ValueT], name: str) -> list[ValueT]:
    """Return what a table says of a name, by itself or by how it begins; what says most stands first."""
    found = [
        entry for entry in table
        if entry == name or (entry.endswith("*") and name.startswith(entry[:-1]))
    ]  # fmt: skip
    return [table[entry] for entry in sorted(found, key=lambda entry: (entry == name, len(entry)), reverse=True)]
