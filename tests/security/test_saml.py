"""Log-ins by SAML: what a good answer opens, and every way that is known of making a bad one look good."""

import base64
import copy
import os
import random
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import xmlsec
from lxml import etree
from pydantic import ValidationError

from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import FailedPreconditionError, UnauthenticatedError
from nexus_ray.security.login import SamlSettings
from nexus_ray.security.saml import Answered, ServiceProvider
from tests.support.identity_provider import ACS, FLEET, NAME, NAMES, SHA1, SHA256, URL, IdentityProvider, posted

Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def idp(tmp_path_factory: pytest.TempPathFactory) -> IdentityProvider:
    return IdentityProvider(tmp_path_factory.mktemp("idp"))


class Here:
    """This fleet, and a browser that has asked to log in."""

    def __init__(self, idp: IdentityProvider, **more: Any) -> None:
        self.clock = ManualClock(time.time())
        found = {
            "entity_id": FLEET, "acs_url": ACS, "idp_entity_id": NAME, "idp_url": URL,
            "idp_certificates": [idp.certificate], "roles": {"ops": ("operator",)}, **more,
        }  # fmt: skip
        self.settings = SamlSettings.model_validate(found)
        self.provider = ServiceProvider(self.settings, b"secret", self.clock)
        self.begun = self.provider.begin()
        self.request = request_of(self.begun.url).get("ID")

    def take(self, response: str, cookie: str | None = None) -> Answered:
        return self.provider.answered(response, self.begun.cookie if cookie is None else cookie)

    def refuses(self, response: str, cookie: str | None = None) -> str:
        with pytest.raises(UnauthenticatedError) as caught:
            self.take(response, cookie)
        assert caught.value.message == "authentication failed"
        return str(caught.value.details["reason"])


def request_of(url: str) -> Any:
    (text,) = parse_qs(urlsplit(url).query)["SAMLRequest"]
    return etree.fromstring(zlib.decompress(base64.b64decode(text), -15))


@pytest.fixture
def here(idp: IdentityProvider) -> Here:
    return Here(idp)


def test_a_good_answer_says_who_that_is(here: Here, idp: IdentityProvider) -> None:
    found = here.take(idp.answer(here.request))

    assert found.log_in.principal == "saml:ada@example" and found.log_in.roles == ("operator",)
    assert (found.log_in.tenant, found.log_in.provider, found.log_in.method) == ("main", "saml", "assertion")
    assert found.log_in.acr.endswith("PasswordProtectedTransport")
    assert abs(found.log_in.authenticated_at - here.clock.now()) < 2
    assert found.until > here.clock.now() + 120


def test_a_request_names_this_fleet_and_where_the_answer_goes(here: Here) -> None:
    request = request_of(here.begun.url)

    assert here.begun.url.startswith(f"{URL}?SAMLRequest=")
    assert (request.get("AssertionConsumerServiceURL"), request.get("Destination")) == (ACS, URL)
    assert request.findtext("a:Issuer", namespaces=NAMES) == FLEET


def test_the_metadata_asks_for_signed_assertions_at_our_address(here: Here) -> None:
    metadata = etree.fromstring(here.provider.metadata())
    (service,) = metadata.iter("{*}SPSSODescriptor")
    (consumer,) = metadata.iter("{*}AssertionConsumerService")

    assert metadata.get("entityID") == FLEET and consumer.get("Location") == ACS
    assert service.get("WantAssertionsSigned") == "true"


def test_another_attribute_may_be_the_name(idp: IdentityProvider) -> None:
    here = Here(idp, name_attribute="groups")

    assert here.take(idp.answer(here.request, format="2.0:nameid-format:transient")).log_in.principal == "saml:ops"


def test_a_key_is_changed_with_both_certificates_named(idp: IdentityProvider, tmp_path: Path) -> None:
    new = IdentityProvider(tmp_path, "new")
    here = Here(idp, idp_certificates=[idp.certificate, new.certificate])

    assert here.take(idp.answer(here.request)).once == here.take(new.answer(here.request)).once
    assert Here(idp).refuses(new.answer(Here(idp).request)) == "request"
    other = Here(idp)
    assert other.refuses(new.answer(other.request)) == "signature"


UNTRUE: dict[str, tuple[dict[str, Any], str]] = {
    "another audience": ({"audience": "https://other.example"}, "audience"),
    "an audience that begins alike": ({"audience": f"{FLEET}/x"}, "audience"),
    "another recipient": ({"recipient": "https://other.example/acs"}, "recipient"),
    "a recipient that holds ours": ({"recipient": f"{ACS}.evil.example"}, "recipient"),
    "another destination": ({"destination": "https://other.example/acs"}, "destination"),
    "a destination that begins alike": ({"destination": f"{ACS}/x"}, "destination"),
    "no destination": ({"destination": ""}, "destination"),
    "another issuer": ({"issuer": "https://other.example"}, "issuer"),
    "another request confirmed": ({"confirmed": "_other"}, "confirmation"),
    "not a bearer": ({"method": "urn:oasis:names:tc:SAML:2.0:cm:sender-vouches"}, "confirmation"),
    "a bearer from when on": ({"more": ' NotBefore="2020-01-01T00:00:00Z"'}, "confirmation"),
    "not a success": ({"status": "Responder"}, "status"),
    "stale": ({"late_s": -200.0}, "expired"),
    "issued long ago": ({"late_s": -400.0, "until": "2100-01-01T00:00:00Z"}, "issued"),
    "not yet": ({"late_s": 60.0}, "issued"),
    "valid later": ({"since": "2100-01-01T00:00:00Z"}, "not_yet_valid"),
    "no instant": ({"until": "soon"}, "instant"),
    "a session that ended": ({"session": ' SessionNotOnOrAfter="2020-01-01T00:00:00Z"'}, "library"),
    "transient": ({"format": "2.0:nameid-format:transient"}, "name"),
    "no name": ({"name": ""}, "library"),
    "no group that grants": ({"group": "others"}, "no_role"),
    "a name with a line in it": ({"name": "ada&#10;admin"}, "principal"),
}  # fmt: skip


@pytest.mark.parametrize("which", UNTRUE)
def test_what_is_signed_but_not_for_us_now_is_refused(here: Here, idp: IdentityProvider, which: str) -> None:
    changes, reason = UNTRUE[which]

    assert here.refuses(idp.answer(here.request, **changes)) in (reason, "principal")


def test_only_the_browser_that_asked_may_bring_the_answer(here: Here, idp: IdentityProvider) -> None:
    answer = idp.answer(here.request)

    assert here.refuses(answer, here.provider.begin().cookie) == "request"
    assert here.refuses(answer, "") == "request" and here.refuses(answer, "\u00fc") == "request"
    assert here.refuses(idp.answer("_0123")) == "request"
    assert here.refuses(idp.answer(f"n{'0' * 74}")) == "request"
    assert ServiceProvider(here.settings, b"secret", here.clock).answered(answer, here.begun.cookie)
    with pytest.raises(UnauthenticatedError):
        ServiceProvider(here.settings, b"other", here.clock).answered(answer, here.begun.cookie)


def test_an_answer_to_nothing_is_refused(here: Here, idp: IdentityProvider) -> None:
    root = idp.document(here.request)
    del root.attrib["InResponseTo"]
    idp.sign(root.find("a:Assertion", NAMES))
    idp.sign(root)

    assert here.refuses(posted(root)) == "request"


def test_a_request_is_over_after_its_time(here: Here, idp: IdentityProvider) -> None:
    here.clock.advance(here.settings.request_s + 1)

    assert here.refuses(idp.answer(here.request)) == "request_age"


def test_both_are_signed_by_the_configured_key_with_a_good_algorithm(
    here: Here, idp: IdentityProvider, tmp_path: Path
) -> None:
    stranger = IdentityProvider(tmp_path, "stranger")
    unsigned = idp.document(here.request)
    only_response, only_assertion, mixed = (copy.deepcopy(unsigned) for _ in range(3))
    idp.sign(only_response)
    idp.sign(only_assertion.find("a:Assertion", NAMES))
    stranger.sign(mixed.find("a:Assertion", NAMES))
    idp.sign(mixed)

    for root in (unsigned, only_response, only_assertion):
        assert here.refuses(posted(root)) == "signatures"
    assert here.refuses(posted(mixed)) == "signature"
    assert here.refuses(stranger.answer(here.request)) == "signature"
    assert here.refuses(idp.answer(here.request, algorithms=SHA1)) == "signature_algorithm"
    assert here.refuses(idp.answer(here.request, algorithms=(SHA256[0], SHA1[1]))) == "digest_algorithm"


def test_a_symmetric_signature_with_the_certificate_as_its_secret_is_refused(here: Here, idp: IdentityProvider) -> None:
    root = idp.signed(here.request)
    method = root.find("ds:Signature/ds:SignedInfo/ds:SignatureMethod", NAMES)
    method.set("Algorithm", "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256")

    assert here.refuses(posted(root)) == "signature_algorithm"


def _evil(assertion: Any) -> Any:
    """Return a copy that names somebody else, with another id and no signature."""
    evil = copy.deepcopy(assertion)
    evil.set("ID", "_evil")
    evil.find("a:Subject/a:NameID", NAMES).text = "root@example"
    signature = evil.find("ds:Signature", NAMES)
    if signature is not None:
        evil.remove(signature)
    return evil


def _wrapped(root: Any, number: int) -> Any:
    """Return the `number`th of the eight signature wrappings, as SAML Raider counts them."""
    original = copy.deepcopy(root)
    assertion = root.find("a:Assertion", NAMES)
    signature = root.find("ds:Signature", NAMES)
    own = assertion.find("ds:Signature", NAMES)
    evil = _evil(assertion)
    if number in (1, 2):  # A whole second response, inside the signature or before it.
        root.set("ID", "_evil")
        assertion.find("a:Subject/a:NameID", NAMES).text = "root@example"
        original.remove(original.find("ds:Signature", NAMES))
        if number == 1:
            signature.append(original)
        else:
            signature.addprevious(original)
    elif number == 3:  # The evil assertion before the signed one.
        assertion.addprevious(evil)
    elif number == 4:  # The signed one inside the evil one.
        root.replace(assertion, evil)
        evil.append(assertion)
    elif number == 5:  # The evil one has the signature, the signed one stands at the end.
        assertion.remove(own)
        evil.insert(1, own)
        assertion.addprevious(evil)
    elif number == 6:  # And the signed one inside that signature.
        assertion.remove(own)
        root.replace(assertion, evil)
        evil.insert(1, own)
        own.append(assertion)
    elif number == 7:  # In an element where a schema lets anything stand.
        extensions = etree.Element(f"{{{NAMES['p']}}}Extensions")
        extensions.append(evil)
        assertion.addprevious(extensions)
    else:  # The signed one within an object of the signature.
        root.replace(assertion, evil)
        assertion.remove(own)
        evil.insert(1, own)
        etree.SubElement(own, f"{{{NAMES['ds']}}}Object").append(assertion)
    return root


@pytest.mark.parametrize("keeps_response_signature", [True, False])
@pytest.mark.parametrize("number", range(1, 9))
def test_a_wrapped_signature_opens_nothing(
    here: Here, idp: IdentityProvider, number: int, keeps_response_signature: bool
) -> None:
    root = _wrapped(idp.signed(here.request), number)
    if not keeps_response_signature:
        outer = root.find("ds:Signature", NAMES)
        if outer is not None:
            root.remove(outer)

    assert here.refuses(posted(root)) in ("assertions", "signatures", "signature_parts", "signature", "ids")


MARKUP: dict[str, Callable[[str], str]] = {
    "a comment in the name": lambda text: text.replace("ada@example", "ada@example<!---->.evil"),
    "an instruction in the name": lambda text: text.replace("ada@example", "ada@example<?x?>.evil"),
    "a section in the name": lambda text: text.replace("ada@example", "<![CDATA[ada@example]]>"),
    "an external entity": lambda text: '<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + text.replace(
        "ada@example", "&x;"),
    "a remote document type": lambda text: '<!DOCTYPE r SYSTEM "http://127.0.0.1:1/x.dtd">' + text,
    "a parameter entity": lambda text: '<!DOCTYPE r [<!ENTITY % x SYSTEM "http://127.0.0.1:1/x">%x;]>' + text,
    "entities that multiply": lambda text: "<!DOCTYPE r [" + "".join(
        f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "lol"}">' for n in range(10)) + "]>" + text.replace(
        "ada@example", "&e9;"),
    "an entity nobody knows": lambda text: text.replace("ada@example", "&x;"),
    "a style sheet": lambda text: '<?xml-stylesheet href="x"?>' + text,
    "no element": lambda text: "", "half of it": lambda text: text[: len(text) // 2],
    "another root": lambda text: f"<x>{text}</x>", "deep": lambda text: "<x>" * 5000 + "</x>" * 5000,
    "wide": lambda text: text.replace("</a:AttributeStatement>", "<x/>" * 4000 + "</a:AttributeStatement>"),
}  # fmt: skip


@pytest.mark.parametrize("which", MARKUP)
def test_markup_that_readers_see_differently_is_refused_unread(here: Here, idp: IdentityProvider, which: str) -> None:
    text = etree.tostring(idp.signed(here.request)).decode()

    reason = here.refuses(base64.b64encode(MARKUP[which](text).encode()).decode())

    assert reason in ("markup", "xml", "root", "size")


def test_only_utf_8_in_base64_of_a_bounded_size_is_read(here: Here, idp: IdentityProvider) -> None:
    text = etree.tostring(idp.signed(here.request)).decode()

    assert here.refuses(base64.b64encode(text.encode("utf-16")).decode()) in ("encoding", "markup")
    utf_7 = b"<?xml version='1.0' encoding='utf-7'?>" + text.encode()
    assert here.refuses(base64.b64encode(utf_7).decode()) in ("encoding", "xml")
    assert here.refuses("x" * (here.settings.response_bytes_max + 1)) == "size"
    for wrong in ("%%%", "a", "\u00fc", "=", "YQ==YQ=="):
        assert here.refuses(wrong) in ("base64", "encoding", "xml")
    good = idp.answer(here.request)
    assert here.take("\r\n".join(good[n : n + 76] for n in range(0, len(good), 76)))


TRICKS: dict[str, Change] = {
    "the empty reference": lambda reference: reference.set("URI", ""),
    "another reference": lambda reference: reference.set("URI", "#_evil"),
    "a remote reference": lambda reference: reference.set("URI", "http://127.0.0.1:1/x"),
    "a second reference": lambda reference: reference.addnext(copy.deepcopy(reference)),
    "a transform more": lambda reference: etree.SubElement(
        reference[0], f"{{{NAMES['ds']}}}Transform", Algorithm="http://www.w3.org/TR/1999/REC-xslt-19991116"),
    "a transform by xpath": lambda reference: reference[0][0].set(
        "Algorithm", "http://www.w3.org/TR/1999/REC-xpath-19991116"),
    "canonical with comments": lambda reference: reference.getprevious().getprevious().set(
        "Algorithm", "http://www.w3.org/2001/10/xml-exc-c14n#WithComments"),
    "a short signature": lambda reference: etree.SubElement(
        reference.getprevious(), f"{{{NAMES['ds']}}}HMACOutputLength"),
    "an id a second time": lambda reference: reference.getroottree().getroot()[0].set("Id", "_assertion"),
}  # fmt: skip


@pytest.mark.parametrize("which", TRICKS)
def test_a_signature_says_no_more_than_one_does(here: Here, idp: IdentityProvider, which: str) -> None:
    root = idp.signed(here.request)

    TRICKS[which](root.find("a:Assertion/ds:Signature/ds:SignedInfo/ds:Reference", NAMES))

    assert here.refuses(posted(root)) in (
        "reference", "signed_info", "transforms", "signature_algorithm", "ids"
    )  # fmt: skip


def _mutated(raw: bytes, dice: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        at = dice.randrange(len(changed))
        kind = dice.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del changed[at : at + dice.choice((1, 2, 16, 200))]
        elif kind == 2:
            start = dice.randrange(len(raw))
            changed[at:at] = raw[start : start + dice.choice((1, 16, 300, 2000))]
        elif kind == 3:
            changed[at] = dice.choice(b"<>&\"'#/ =\0")
        else:
            tags = [b"<a:Assertion ID='_x'/>", b"&#x41;", b"<a:NameID>root</a:NameID>", b"<ds:Object/>", b" ID='_x'"]
            changed[at:at] = dice.choice(tags)
    return bytes(changed)


def _meaning(raw: bytes) -> bytes:
    """Return all that is said outside of the signatures, where base64 may be written in many ways."""
    root = etree.fromstring(raw)
    for signature in list(root.iter(f"{{{NAMES['ds']}}}Signature")):
        signature.getparent().remove(signature)
    return bytes(etree.tostring(root, method="c14n", exclusive=True))


def test_no_mutation_of_a_good_answer_says_anything_else(here: Here, idp: IdentityProvider) -> None:
    seed = int(os.environ.get("SAML_SEED", "0")) or 20_260
    count = int(os.environ.get("SAML_MUTATIONS", "300"))
    dice = random.Random(seed)
    raw = etree.tostring(idp.signed(here.request))
    good = here.take(base64.b64encode(raw).decode())
    meaning = _meaning(raw)

    for number in range(count):
        mutant = _mutated(raw, dice)
        try:
            found = here.take(base64.b64encode(mutant).decode())
        except UnauthenticatedError:
            continue
        # Another way of writing the very same: quotes, spaces inside of tags, lines within a signature.
        assert found == good and _meaning(mutant) == meaning, (seed, number, mutant)


WRONG: dict[str, dict[str, Any]] = {
    "plain": {"acs_url": "http://fleet.example/acs"}, "plain idp": {"idp_url": "http://idp.example"},
    "no certificate": {"idp_certificates": []}, "no roles": {"roles": {}}, "a quote": {"entity_id": 'a"b'},
    "no issuer": {"idp_entity_id": ""}, "no host": {"acs_url": "https:///acs"},
}  # fmt: skip


@pytest.mark.parametrize("which", WRONG)
def test_settings_that_would_be_unsafe_are_refused(idp: IdentityProvider, which: str) -> None:
    with pytest.raises(ValidationError):
        Here(idp, **WRONG[which])


def test_a_certificate_that_cannot_be_read_is_told_at_the_start(idp: IdentityProvider, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no certificate")

    for name in ("none.pem", "text.pem"):
        with pytest.raises(FailedPreconditionError):
            Here(idp, idp_certificates=[tmp_path / name])


def test_the_two_libraries_share_one_parser() -> None:
    assert xmlsec.get_libxml_version() == etree.LIBXML_VERSION
