"""Log-ins by SAML 2.0: the service provider's half of the browser profile, for one identity provider.

Law: an answer is believed when it answers a request that this fleet made for this very browser, when response and
assertion are both signed by the configured key over the whole of themselves, and when everything in it names us to
the letter. That it is used once is seen to by `security.exchange`.
Sources: SAML 2.0 Profiles, 4.1; Core, 5.4; the library's own checks come last, and its gaps are closed here: it takes
an answer without audience, recipient, destination or `InResponseTo`, and compares two of them by their beginning.
"""

import base64
import binascii
import hashlib
import hmac
import math
import secrets
import zlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from lxml import etree
from onelogin.saml2.response import OneLogin_Saml2_Response
from onelogin.saml2.settings import OneLogin_Saml2_Settings
from onelogin.saml2.utils import OneLogin_Saml2_Utils

from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import FailedPreconditionError, UnauthenticatedError
from nexus_ray.security.jose import refused
from nexus_ray.security.login import LogIn, SamlSettings, principal_of, roles_of
from nexus_ray.security.saml_shape import SAML, SAMLP, read

_BEARER = "urn:oasis:names:tc:SAML:2.0:cm:bearer"
_POST = "urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST"
_REDIRECT = "urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect"
_SUCCESS = "urn:oasis:names:tc:SAML:2.0:status:Success"
_TRANSIENT = "urn:oasis:names:tc:SAML:2.0:nameid-format:transient"
_RSA_BITS_MIN = 2048
_SPACES = str.maketrans("", "", " \t\r\n")
_ID_LENGTH = 1 + 10 + 32 + 32
_NAMES = {"p": SAMLP, "a": SAML}


@dataclass(frozen=True, slots=True)
class Begun:
    """A request for a log-in: where the browser goes, and what it must bring back with the answer."""

    url: str
    cookie: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A good answer; `once` names what must not be used a second time before `until`."""

    log_in: LogIn
    once: tuple[str, str]
    until: float


class ServiceProvider:
    """Asks the identity provider and checks its answers; holds no state, so that any process can check any answer."""

    def __init__(self, settings: SamlSettings, secret: bytes, clock: Clock) -> None:
        """Read the certificates; `secret` is known to all gateways of the fleet and to nobody else.

        Raises:
            FailedPreconditionError: A certificate cannot be read or is too weak.
        """
        self._settings = settings
        self._clock = clock
        self._secret = hmac.digest(secret, b"nexus saml request", "sha256")
        self._certificates = [_certificate(path) for path in settings.idp_certificates]
        self._library = _library_settings(settings, self._certificates)
        acs = urlsplit(settings.acs_url)
        # Out of the settings: what a request says about its own address is what the caller wrote.
        self._request = {
            "https": "on" if acs.scheme == "https" else "off",
            "http_host": acs.netloc,
            "script_name": acs.path,
        }

    def metadata(self) -> bytes:
        """Return what the identity provider is to know about this fleet."""
        found = self._library.get_sp_metadata()
        return found.encode() if isinstance(found, str) else bytes(found)

    def begin(self) -> Begun:
        """Return a request of ours."""
        cookie = secrets.token_urlsafe(24)
        now = int(self._clock.now())
        id = self._id_of(f"{now:010x}{secrets.token_hex(16)}", cookie)
        settings = self._settings
        instant = OneLogin_Saml2_Utils.parse_time_to_SAML(now)
        request = etree.Element(
            f"{{{SAMLP}}}AuthnRequest", nsmap={"samlp": SAMLP, "saml": SAML}, ID=id, Version="2.0",
            IssueInstant=instant, Destination=settings.idp_url, ProtocolBinding=_POST,
            AssertionConsumerServiceURL=settings.acs_url,
        )  # fmt: skip
        etree.SubElement(request, f"{{{SAML}}}Issuer").text = settings.entity_id
        deflated = zlib.compress(etree.tostring(request))[2:-4]
        query = urlencode({"SAMLRequest": base64.b64encode(deflated).decode()})
        return Begun(f"{settings.idp_url}{'&' if '?' in settings.idp_url else '?'}{query}", cookie)

    def answered(self, response: str, cookie: str) -> Answered:
        """Return what an answer says, the text of `SAMLResponse`; it takes some milliseconds of computing.

        Raises:
            UnauthenticatedError: It is not good; `details["reason"]` says which step refused it, for the log only.
        """
        now = self._clock.now()
        # 1. Size, then base64.
        if len(response) > self._settings.response_bytes_max:
            raise refused("size")
        try:
            raw = base64.b64decode(response.translate(_SPACES), validate=True)
        except (binascii.Error, ValueError):
            raise refused("base64") from None
        # 2. The shape.
        root = read(raw)
        assertion = root.find("a:Assertion", _NAMES)
        # 3. A request that we made, for this browser, not long ago. Before the signatures, for it costs nothing.
        request_id = root.get("InResponseTo", "")
        began_at = self._began_at(request_id, cookie)
        if not now - self._settings.request_s < began_at <= now + 1:
            raise refused("request_age")
        # 4. Both signatures, before anything in it is believed.
        self._check_signatures(root)
        # 5. All that names us, or the time.
        until = self._check_names(root, assertion, request_id)
        self._check_times(root, assertion, now)
        # 6. What the library checks besides: the schema, the status, and once more what stands above.
        self._ask_library(base64.b64encode(raw).decode(), request_id)
        # 7. Who.
        digest = hashlib.sha256(f"{self._settings.idp_entity_id}\0{assertion.get('ID')}".encode()).hexdigest()
        return Answered(
            self._log_in(assertion, now), (f"assertion/{digest}", f"request/{request_id}"),
            max(until, began_at + self._settings.request_s) + self._settings.leeway_s + 1.0,
        )  # fmt: skip

    def _id_of(self, seed: str, cookie: str) -> str:
        return f"n{seed}{hmac.digest(self._secret, f'{seed}/{cookie}'.encode(), 'sha256')[:16].hex()}"

    def _began_at(self, request_id: str, cookie: str) -> int:
        seed = request_id[1:43]
        is_ours = cookie.isascii() and request_id.isascii() and len(request_id) == _ID_LENGTH
        if not is_ours or not hmac.compare_digest(self._id_of(seed, cookie), request_id):
            raise refused("request")
        return int(seed[:10], 16)

    def _check_signatures(self, root: Any) -> None:
        for xpath in (OneLogin_Saml2_Utils.RESPONSE_SIGNATURE_XPATH, OneLogin_Saml2_Utils.ASSERTION_SIGNATURE_XPATH):
            if not OneLogin_Saml2_Utils.validate_sign(root, xpath=xpath, multicerts=self._certificates):
                raise refused("signature")

    def _check_names(self, root: Any, assertion: Any, request_id: str) -> float:
        """Check who is meant; return until when the assertion could be used."""
        settings = self._settings
        if root.get("Destination") != settings.acs_url:
            raise refused("destination")
        statuses = root.findall("p:Status/p:StatusCode", _NAMES)
        if [status.get("Value") for status in statuses] != [_SUCCESS]:
            raise refused("status")
        for element in (root, assertion):
            issuers = element.findall("a:Issuer", _NAMES)
            if [issuer.text for issuer in issuers] != [settings.idp_entity_id] or element.get("Version") != "2.0":
                raise refused("issuer")
        # All restrictions must hold, and each names one of several.
        restrictions = assertion.findall("a:Conditions/a:AudienceRestriction", _NAMES)
        if not restrictions or not all(
            settings.entity_id in [audience.text for audience in restriction.findall("a:Audience", _NAMES)]
            for restriction in restrictions
        ):
            raise refused("audience")
        confirmations = assertion.findall("a:Subject/a:SubjectConfirmation", _NAMES)
        if len(confirmations) != 1 or confirmations[0].get("Method") != _BEARER:
            raise refused("confirmation")
        confirmed = confirmations[0].findall("a:SubjectConfirmationData", _NAMES)
        if len(confirmed) != 1 or confirmed[0].get("Recipient") != settings.acs_url:
            raise refused("recipient")
        # A bearer's must not say from when on, and must say until when (Profiles, 4.1.4.2).
        if confirmed[0].get("InResponseTo") != request_id or confirmed[0].get("NotBefore") is not None:
            raise refused("confirmation")
        until = _seconds(confirmed[0].get("NotOnOrAfter"))
        if self._clock.now() >= until + settings.leeway_s:
            raise refused("expired")
        return until

    def _check_times(self, root: Any, assertion: Any, now: float) -> None:
        settings = self._settings
        for element in (root, assertion):
            issued_at = _seconds(element.get("IssueInstant"))
            if not now - settings.assertion_age_s - settings.leeway_s <= issued_at <= now + settings.leeway_s:
                raise refused("issued")
        conditions = _one(assertion, "a:Conditions")
        if now >= _seconds(conditions.get("NotOnOrAfter")) + settings.leeway_s:
            raise refused("expired")
        if conditions.get("NotBefore") and _seconds(conditions.get("NotBefore")) > now + settings.leeway_s:
            raise refused("not_yet_valid")

    def _ask_library(self, response: str, request_id: str) -> None:
        try:
            OneLogin_Saml2_Response(self._library, response).is_valid(self._request, request_id, raise_exceptions=True)
        except Exception as error:  # Of xmlsec, of lxml, of its own, and plain ones.
            raise UnauthenticatedError("authentication failed", reason="library", error=str(error)[:200]) from None

    def _log_in(self, assertion: Any, now: float) -> LogIn:
        settings = self._settings
        attributes: dict[str, list[str]] = {}
        for attribute in assertion.findall("a:AttributeStatement/a:Attribute", _NAMES):
            values = [value.text or "" for value in attribute.findall("a:AttributeValue", _NAMES) if not len(value)]
            attributes.setdefault(attribute.get("Name", ""), []).extend(values)
        if settings.name_attribute:
            names = attributes.get(settings.name_attribute, [])
        else:
            found = assertion.findall("a:Subject/a:NameID", _NAMES)
            names = [name.text or "" for name in found if name.get("Format") != _TRANSIENT and not len(name)]
        if len(names) != 1:
            raise refused("name")
        statement = _one(assertion, "a:AuthnStatement")
        ends_at = _seconds(statement.get("SessionNotOnOrAfter")) if statement.get("SessionNotOnOrAfter") else math.inf
        if ends_at <= now:
            raise refused("session_ended")
        return LogIn(
            provider="saml", method="assertion", principal=principal_of("saml", names[0]),
            roles=roles_of(attributes.get(settings.groups_attribute, []), settings.roles), tenant=settings.tenant,
            authenticated_at=min(now, _seconds(statement.get("AuthnInstant"))),
            acr=(_one(statement, "a:AuthnContext").findtext("a:AuthnContextClassRef", "", _NAMES) or "")[:200],
            ends_at=ends_at,
        )  # fmt: skip


def _one(element: Any, path: str) -> Any:
    found = element.findall(path, _NAMES)
    if len(found) != 1:
        raise refused(path)
    return found[0]


def _library_settings(settings: SamlSettings, certificates: list[str]) -> OneLogin_Saml2_Settings:
    consumer = {"url": settings.acs_url, "binding": _POST}
    service = {"url": settings.idp_url, "binding": _REDIRECT}
    signing = {"signing": certificates}
    security = {
        "wantAssertionsSigned": True, "wantMessagesSigned": True, "rejectDeprecatedAlgorithm": True,
        "wantAttributeStatement": False, "requestedAuthnContext": False,
    }  # fmt: skip
    return OneLogin_Saml2_Settings({
        "strict": True, "debug": False, "security": security,
        "sp": {"entityId": settings.entity_id, "assertionConsumerService": consumer},
        "idp": {"entityId": settings.idp_entity_id, "singleSignOnService": service, "x509certMulti": signing},
    })  # fmt: skip


def _certificate(path: Any) -> str:
    # Its dates are not looked at: it is only how the key is written down, and taking it out of the settings ends it.
    try:
        text = path.read_text()
        key = x509.load_pem_x509_certificate(text.encode()).public_key()
    except (OSError, ValueError) as error:
        raise FailedPreconditionError(f"security.saml: the certificate {path} cannot be read: {error}") from None
    if not (isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_BITS_MIN) and not isinstance(
        key, ec.EllipticCurvePublicKey
    ):
        raise FailedPreconditionError(f"security.saml: the key of {path} is neither RSA of 2048 bits nor elliptic")
    return str(text)


def _seconds(instant: str | None) -> float:
    try:
        return float(OneLogin_Saml2_Utils.parse_SAML_to_time(instant or ""))
    except Exception:  # A ValueError, or what strptime and the library's own parser raise.
        raise refused("instant") from None
