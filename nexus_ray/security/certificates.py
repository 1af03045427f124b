"""Certificates that a fleet makes for itself.

Law: within the fleet each stands for itself alone: who trusts it trusts that one key, and nobody can sign another in
its name. Only the front door, which strangers come to, has an authority: it signs for the addresses of that door.
"""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_AUTHORITY_DAYS = 3650.0  # It is given to machines elsewhere, so it stays.


def make_certificate(name: str, addresses: Sequence[str] = ()) -> tuple[str, bytes]:
    """Return a new certificate, PEM, for both ends of a connection, and its key and it in one PEM.

    Args:
        name: Its common name.
        addresses: IP addresses and host names that it is good for, for those who compare them.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))  # RFC 5280, 4.1.2.5: no end is known.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
    )
    if addresses:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(address) for address in addresses]), critical=False
        )
    certificate = _pem(builder.sign(key, hashes.SHA256()))
    return certificate, (_secret(key) + certificate).encode()


def make_authority(name: str, now: float) -> tuple[str, str]:
    """Return the certificate of a new authority, PEM, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = (
        _begun(subject, subject, key.public_key(), now, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pem(builder.sign(key, hashes.SHA256())), _secret(key)


def issue_certificate(authority: str, secret: str, addresses: Sequence[str], now: float, days: float) -> str:
    """Return a server's new key, its certificate for some addresses, and its authority's, in one PEM."""
    signer = x509.load_pem_x509_certificate(authority.encode())
    signing = serialization.load_pem_private_key(secret.encode(), password=None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nexus")])
    names = x509.SubjectAlternativeName([_general_name(address) for address in addresses])
    signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    builder = (
        _begun(subject, signer.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(signed_by, critical=False)
    )
    return _secret(key) + _pem(builder.sign(signing, hashes.SHA256())) + authority


def is_good_for(chain: str, authority: str, addresses: Sequence[str], until: float) -> bool:
    """Tell whether the first certificate of a PEM is an authority's, for these addresses and no other, until then."""
    try:
        certificate = x509.load_pem_x509_certificates(chain.encode())[0]
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.encode()))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    ends_at = certificate.not_valid_after_utc.timestamp()
    return set(names) == {_general_name(address) for address in addresses} and ends_at >= until


def fingerprint(certificate: str) -> str:
    """Return a certificate's SHA-256 as people compare it."""
    return x509.load_pem_x509_certificate(certificate.encode()).fingerprint(hashes.SHA256()).hex(":").upper()


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, days: float
) -> x509.CertificateBuilder:
    begins_at = datetime.fromtimestamp(now, UTC) - timedelta(hours=1)  # Clocks of clients differ.
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins_at).not_valid_after(begins_at + timedelta(days=days))
    )  # fmt: skip


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _secret(key: ec.EllipticCurvePrivateKey) -> str:
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()).decode()


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)
