"""Whom a client certificate names, and which name none: what TLS has proved already, these read."""

import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import ValidationError

from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import UnauthenticatedError
from nexus_ray.core.identity import Session
from nexus_ray.security.client_certificates import ClientCertificates, PeerCertificate
from nexus_ray.security.login import CertificateSettings
from nexus_ray.security.settings import SecuritySettings

NOW = 1_800_000_000.0
KEY = ec.generate_private_key(ec.SECP256R1())
ID = "spiffe://corp.example/ci/builder"
CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


def make(*uris: str, subject: str = "CN=ann", more: tuple[Any, ...] = (), dns: str = "") -> PeerCertificate:
    name = x509.Name.from_rfc4514_string(subject)
    begin = datetime.datetime.fromtimestamp(NOW - 60, datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).public_key(KEY.public_key()).serial_number(1)
    builder = builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clients")]))
    builder = builder.not_valid_before(begin).not_valid_after(begin + datetime.timedelta(hours=1))
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(dns)] if dns else []
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension in more:
        builder = builder.add_extension(extension, critical=False)
    return PeerCertificate(builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER))


def usage(**said: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{name: said.get(name, False) for name in names})


def read(peer: PeerCertificate, clock: ManualClock | None = None, **settings: Any) -> Session:
    given = {"ca_file": Path("ca.pem"), "trust_domain": "corp.example", **settings}
    return ClientCertificates(CertificateSettings.model_validate(given), clock or ManualClock(NOW)).session(peer)


def test_a_certificate_is_a_session_of_its_spiffe_id() -> None:
    peer = make(ID, dns="builder.corp.example", more=(CLIENT, usage(digital_signature=True)))

    session = read(peer, roles={"spiffe://corp.example/ci/*": ["reader"], ID: ["submitter", "reader"], "x*": ["admin"]})

    assert (session.principal, session.roles, session.tenant) == (f"certificate:{ID}", ("submitter", "reader"), "main")
    assert (session.method, session.issuer, session.expires_at) == ("certificate", "certificate", NOW + 3540)
    assert session.id == f"x5t#S256:{peer.thumbprint}" and read(peer).id == session.id


def test_what_stands_in_no_table_grants_nothing() -> None:
    assert read(make(ID), roles={f"{ID}x": ["admin"], "spiffe://corp.example/*/builder": ["admin"]}).roles == ()


def test_the_tenant_is_the_one_that_says_most_and_who_has_none_is_refused() -> None:
    tenants = {"*": "all", "spiffe://corp.example/ci/*": "ci", "spiffe://corp.example/*": "corp"}

    assert read(make(ID), tenants=tenants).tenant == "ci"
    with pytest.raises(UnauthenticatedError) as caught:
        read(make(ID), tenants={"spiffe://corp.example/prod/*": "prod"})
    assert caught.value.details == {"reason": "tenant"}


def test_a_subject_is_a_name_where_that_is_wanted() -> None:
    session = read(make(subject="CN=ann,O=Corp"), principal="subject", roles={"CN=ann,O=Corp": ["reader"]})

    assert (session.principal, session.roles) == ("certificate:CN=ann,O=Corp", ("reader",))
    # What is in one part of a subject cannot end it and begin another.
    assert read(make(subject="CN=ann\\,O=Corp"), principal="subject", roles={"CN=ann,O=Corp": ["reader"]}).roles == ()


@pytest.mark.parametrize(
    "uris",
    [
        (), (ID, ID), (ID, "https://corp.example/x"), ("https://corp.example/ci",), ("spiffe://corp.example",),
        ("spiffe://corp.example/",), ("spiffe://corp.example/ci/",), ("spiffe://corp.example//ci",),
        ("spiffe://corp.example/ci/../admin",), ("spiffe://corp.example/./ci",), ("spiffe://Corp.example/ci",),
        ("spiffe://other.example/ci/builder",), ("spiffe://corp.example:8443/ci",), ("spiffe://a@corp.example/ci",),
        ("spiffe://corp.example/ci?x=1",), ("spiffe://corp.example/ci#x",), ("spiffe://corp.example/c%69",),
        ("SPIFFE://corp.example/ci",), ("spiffe://corp.example/" + "x" * 200,), (ID + "\n",),
    ],
)  # fmt: skip
def test_what_is_not_one_spiffe_id_of_ours_is_nobody(uris: tuple[str, ...]) -> None:
    with pytest.raises(UnauthenticatedError, match="authentication failed"):
        read(make(*uris))


@pytest.mark.parametrize(
    "more",
    [(SERVER,), (usage(key_encipherment=True),), (x509.BasicConstraints(ca=True, path_length=None),),
     (usage(key_cert_sign=True), CLIENT)],
)  # fmt: skip
def test_what_is_for_something_else_is_no_log_in(more: tuple[Any, ...]) -> None:
    with pytest.raises(UnauthenticatedError):
        read(make(ID, more=more))


@pytest.mark.parametrize("subject", ["", "CN=" + "x" * 60 + ",O=" + "y" * 60 + ",OU=" + "z" * 64 + ",L=w"])
def test_no_subject_or_too_long_a_one_is_nobody(subject: str) -> None:
    with pytest.raises(UnauthenticatedError):
        read(make(subject=subject), principal="subject")


def test_bytes_that_are_no_certificate_are_nobody() -> None:
    with pytest.raises(UnauthenticatedError):
        read(PeerCertificate(b"nonsense"))


def test_a_certificate_that_ends_while_its_connection_stands_ends_the_session() -> None:
    clock = ManualClock(NOW)
    certificates = ClientCertificates(CertificateSettings(ca_file=Path("x"), trust_domain="corp.example"), clock)
    peer = make(ID)
    assert certificates.session(peer) is certificates.session(peer)

    clock.advance(3541)

    with pytest.raises(UnauthenticatedError):
        certificates.session(peer)
    with pytest.raises(UnauthenticatedError):
        read(peer, ManualClock(NOW - 120))


@pytest.mark.parametrize(
    "settings",
    [{"certificates": {"ca_file": "ca.pem"}}, {"certificates": {"principal": "dns"}},
     {"oidc": {"certificate": {"issuer": "https://idp.example", "audience": "x"}}}],
)  # fmt: skip
def test_settings_that_would_let_in_somebody_else_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SecuritySettings.model_validate(settings)
