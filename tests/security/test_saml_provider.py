"""Log-ins by SAML with an identity provider that is not ours: pysaml2, which signs with Debian's xmlsec1."""

import os
import shutil
import warnings
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from lxml import etree

from tests.security.test_saml import Here
from tests.support.identity_provider import NAME, URL, IdentityProvider, posted

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # It imports what its own dependencies call old.
    from saml2 import BINDING_HTTP_REDIRECT
    from saml2.config import IdPConfig
    from saml2.saml import NAMEID_FORMAT_PERSISTENT, NameID
    from saml2.server import Server
    from saml2.xmldsig import DIGEST_SHA1, DIGEST_SHA256, SIG_RSA_SHA1, SIG_RSA_SHA256

_GROUPS = "urn:oid:1.3.6.1.4.1.5923.1.1.1.1"  # eduPersonAffiliation
_CONTEXT = "urn:oasis:names:tc:SAML:2.0:ac:classes:PasswordProtectedTransport"


@pytest.fixture(scope="module")
def idp(tmp_path_factory: pytest.TempPathFactory) -> IdentityProvider:
    if shutil.which("xmlsec1") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no xmlsec1 here: apt install xmlsec1")
    return IdentityProvider(tmp_path_factory.mktemp("idp"))


@pytest.fixture
def here(idp: IdentityProvider) -> Here:
    return Here(idp, groups_attribute=_GROUPS)


@pytest.fixture(scope="module")
def real(idp: IdentityProvider) -> "RealProvider":
    return RealProvider(Here(idp), idp)


class RealProvider:
    """The provider, told of this fleet by its metadata."""

    def __init__(self, here: Here, idp: IdentityProvider) -> None:
        config = {
            "entityid": NAME, "xmlsec_binary": shutil.which("xmlsec1"), "key_file": str(idp.key_file),
            "cert_file": str(idp.certificate), "metadata": {"inline": [here.provider.metadata().decode()]},
            "service": {"idp": {
                "endpoints": {"single_sign_on_service": [(URL, BINDING_HTTP_REDIRECT)]},
                "policy": {"default": {"lifetime": {"minutes": 2}}},
            }},
        }  # fmt: skip
        self._server = Server(config=IdPConfig().load(config))

    def answer(self, url: str, **more: Any) -> str:
        (request,) = parse_qs(urlsplit(url).query)["SAMLRequest"]
        message = self._server.parse_authn_request(request, BINDING_HTTP_REDIRECT).message
        arguments = self._server.response_args(message)
        signing = {
            "sign_response": True, "sign_assertion": True, "sign_alg": SIG_RSA_SHA256, "digest_alg": DIGEST_SHA256,
            **more,
        }  # fmt: skip
        response = self._server.create_authn_response(
            {"eduPersonAffiliation": ["ops"]}, userid="ada",
            name_id=NameID(format=NAMEID_FORMAT_PERSISTENT, text="ada"),
            authn={"class_ref": _CONTEXT, "authn_auth": NAME}, **arguments, **signing,
        )  # fmt: skip
        return posted_text(str(response))


def posted_text(text: str) -> str:
    return posted(etree.fromstring(text.encode()))


def test_it_reads_our_metadata_and_request_and_we_take_its_answer(here: Here, real: RealProvider) -> None:
    found = here.take(real.answer(here.begun.url))

    assert (found.log_in.principal, found.log_in.roles) == ("saml:ada", ("operator",))
    assert found.log_in.acr == _CONTEXT


SIGNING: dict[str, tuple[dict[str, Any], str]] = {
    "only the response": ({"sign_assertion": False}, "signatures"),
    "only the assertion": ({"sign_response": False}, "signatures"),
    "nothing": ({"sign_assertion": False, "sign_response": False}, "signatures"),
    "its default of old": ({"sign_alg": SIG_RSA_SHA1, "digest_alg": DIGEST_SHA1}, "signature_algorithm"),
}


@pytest.mark.parametrize("which", SIGNING)
def test_what_it_signs_in_part_or_weakly_is_refused(here: Here, real: RealProvider, which: str) -> None:
    more, reason = SIGNING[which]

    assert here.refuses(real.answer(here.begun.url, **more)) == reason


def test_its_answer_to_one_browser_is_none_to_another(here: Here, idp: IdentityProvider, real: RealProvider) -> None:
    other = Here(idp, groups_attribute=_GROUPS)

    assert other.refuses(real.answer(here.begun.url)) == "request"
