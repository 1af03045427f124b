"""A SAML identity provider that says whatever a test wants it to, and signs that."""

import base64
import datetime
import time
from pathlib import Path
from typing import Any

import xmlsec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from lxml import etree

NAME = "https://idp.example/metadata"
URL = "https://idp.example/sso"
ACS = "https://fleet.example/v1/saml/acs"
FLEET = "https://fleet.example/v1/saml/metadata"
BEARER = "urn:oasis:names:tc:SAML:2.0:cm:bearer"
SHA256 = xmlsec.Transform.RSA_SHA256, xmlsec.Transform.SHA256
SHA1 = xmlsec.Transform.RSA_SHA1, xmlsec.Transform.SHA1
NAMES = {
    "p": "urn:oasis:names:tc:SAML:2.0:protocol", "a": "urn:oasis:names:tc:SAML:2.0:assertion",
    "ds": "http://www.w3.org/2000/09/xmldsig#",
}  # fmt: skip
TEMPLATE = """\
<p:Response xmlns:p="urn:oasis:names:tc:SAML:2.0:protocol" xmlns:a="urn:oasis:names:tc:SAML:2.0:assertion" \
ID="_response" Version="2.0" IssueInstant="{issued}" Destination="{destination}" InResponseTo="{request}">\
<a:Issuer>{issuer}</a:Issuer><p:Status><p:StatusCode Value="urn:oasis:names:tc:SAML:2.0:status:{status}"/></p:Status>\
<a:Assertion ID="{id}" Version="2.0" IssueInstant="{issued}"><a:Issuer>{issuer}</a:Issuer>\
<a:Subject><a:NameID Format="urn:oasis:names:tc:SAML:{format}">{name}</a:NameID>\
<a:SubjectConfirmation Method="{method}"><a:SubjectConfirmationData InResponseTo="{confirmed}" \
NotOnOrAfter="{until}" Recipient="{recipient}"{more}/></a:SubjectConfirmation></a:Subject>\
<a:Conditions NotBefore="{since}" NotOnOrAfter="{until}">\
<a:AudienceRestriction><a:Audience>{audience}</a:Audience></a:AudienceRestriction></a:Conditions>\
<a:AuthnStatement AuthnInstant="{issued}" SessionIndex="1"{session}><a:AuthnContext>\
<a:AuthnContextClassRef>urn:oasis:names:tc:SAML:2.0:ac:classes:PasswordProtectedTransport</a:AuthnContextClassRef>\
</a:AuthnContext></a:AuthnStatement><a:AttributeStatement><a:Attribute Name="groups">\
<a:AttributeValue>{group}</a:AttributeValue></a:Attribute></a:AttributeStatement></a:Assertion></p:Response>"""


def instant(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class IdentityProvider:
    """A key, its certificate, and answers."""

    def __init__(self, folder: Path, name: str = "idp") -> None:
        key = rsa.generate_private_key(65537, 2048)
        kind = serialization.PrivateFormat.PKCS8
        self.key = key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
        subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        made = made.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        self.certificate = folder / f"{name}.pem"
        pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        self.certificate.write_bytes(pem)
        self.key_file = folder / f"{name}.key"
        self.key_file.write_bytes(self.key)

    def document(self, request: str, **changes: Any) -> Any:
        """Return an answer that is not signed yet."""
        now = time.time() + changes.pop("late_s", 0.0)
        fields = {
            "issued": instant(now), "since": instant(now - 1), "until": instant(now + 120), "destination": ACS,
            "recipient": ACS, "request": request, "confirmed": request, "issuer": NAME, "status": "Success",
            "id": "_assertion", "name": "ada@example", "format": "1.1:nameid-format:emailAddress", "method": BEARER,
            "audience": FLEET, "group": "ops", "more": "", "session": "", **changes,
        }  # fmt: skip
        return etree.fromstring(TEMPLATE.format(**fields))

    def sign(self, element: Any, algorithms: Any = SHA256) -> None:
        """Sign an element over itself, after its issuer."""
        method, digest = algorithms
        signature = xmlsec.template.create(element, xmlsec.Transform.EXCL_C14N, method, ns="ds")
        reference = xmlsec.template.add_reference(signature, digest, uri=f"#{element.get('ID')}")
        xmlsec.template.add_transform(reference, xmlsec.Transform.ENVELOPED)
        xmlsec.template.add_transform(reference, xmlsec.Transform.EXCL_C14N)
        element.insert(1, signature)
        xmlsec.tree.add_ids(element, ["ID"])
        context = xmlsec.SignatureContext()
        context.key = xmlsec.Key.from_memory(self.key, xmlsec.KeyFormat.PEM)
        context.sign(signature)

    def signed(self, request: str, *, algorithms: Any = SHA256, **changes: Any) -> Any:
        """Return an answer of which assertion and response are signed."""
        root = self.document(request, **changes)
        self.sign(root.find("a:Assertion", NAMES), algorithms)
        self.sign(root, algorithms)
        return root

    def answer(self, request: str, **changes: Any) -> str:
        """Return what a browser would post."""
        return posted(self.signed(request, **changes))


def posted(root: Any) -> str:
    return base64.b64encode(etree.tostring(root)).decode()
