"""The one shape of a SAML response that is looked at: exactly where everything stands, before any signature is checked.

Law: what two readers could read differently is refused. Wrapped signatures, comments inside names, entities and a
second assertion all need a document that does not have this shape, whatever a library makes of it.
Sources: SAML Core 2.0, 5.4 (signatures); Somorovsky et al., On Breaking SAML (2012), for the wrappings.
"""

from typing import Any

from lxml import etree

from nexus_ray.security.jose import refused

SAMLP = "urn:oasis:names:tc:SAML:2.0:protocol"
SAML = "urn:oasis:names:tc:SAML:2.0:assertion"
DS = "http://www.w3.org/2000/09/xmldsig#"
_EXCLUSIVE = "http://www.w3.org/2001/10/xml-exc-c14n#"
_ENVELOPED = f"{DS}enveloped-signature"
_MORE = "http://www.w3.org/2001/04/xmldsig-more#"
_SIGNATURES = frozenset(f"{_MORE}{kind}-sha{bits}" for kind in ("rsa", "ecdsa") for bits in (256, 384, 512))
_DIGESTS = frozenset(
    {"http://www.w3.org/2001/04/xmlenc#sha256", f"{_MORE}sha384", "http://www.w3.org/2001/04/xmlenc#sha512"}
)
_ELEMENTS_MAX = 3000  # Some thousand groups.
_DEPTH_MAX = 20
_ID_NAMES = frozenset({"id", "{http://www.w3.org/xml/1998/namespace}id"})
_SIGNED = [f"{{{DS}}}{name}" for name in ("CanonicalizationMethod", "SignatureMethod", "Reference")]
_REFERENCE = [f"{{{DS}}}{name}" for name in ("Transforms", "DigestMethod", "DigestValue")]
_SIGNATURE = [f"{{{DS}}}{name}" for name in ("SignedInfo", "SignatureValue")]


def read(raw: bytes) -> Any:
    """Return the root of a response that has the shape.

    Raises:
        UnauthenticatedError: It has not; `details["reason"]` says where.
    """
    # 1. Text that every reader sees alike: UTF-8, and no document type, entity, comment, CDATA or instruction.
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise refused("encoding") from None
    if "<!" in text or "<?" in text.removeprefix("<?xml ") or "\0" in text:
        raise refused("markup")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(raw, parser)
    except (etree.XMLSyntaxError, ValueError):
        raise refused("xml") from None
    if (root.getroottree().docinfo.encoding or "UTF-8").upper() != "UTF-8":
        raise refused("encoding")
    # 2. Not too much of it.
    _check_size(root)
    # 3. One response that holds one assertion, both at their places, and nowhere a second one.
    if root.tag != f"{{{SAMLP}}}Response":
        raise refused("root")
    assertions = list(root.iter(f"{{{SAML}}}Assertion", f"{{{SAML}}}EncryptedAssertion", f"{{{SAMLP}}}Response"))
    if len(assertions) != 2 or assertions[0] is not root or assertions[1].getparent() is not root:
        raise refused("assertions")
    assertion = assertions[1]
    if assertion.tag != f"{{{SAML}}}Assertion":
        raise refused("encrypted")
    # 4. Every id once, whatever its attribute is called.
    ids = [value for element in root.iter() for name, value in element.attrib.items() if name.lower() in _ID_NAMES]
    if len(set(ids)) != len(ids):
        raise refused("ids")
    # 5. Two signatures, of these two, each over all of what it stands in.
    signatures = list(root.iter(f"{{{DS}}}Signature"))
    if [signature.getparent() for signature in signatures] != [root, assertion]:
        raise refused("signatures")
    for signature in signatures:
        _check_signature(signature)
    return root


def _check_size(root: Any) -> None:
    depth = count = 0
    for event, _ in etree.iterwalk(root, events=("start", "end")):
        depth += 1 if event == "start" else -1
        count += event == "start"
        if depth > _DEPTH_MAX or count > _ELEMENTS_MAX:
            raise refused("size")


def _check_signature(signature: Any) -> None:
    parts = list(signature)
    if [part.tag for part in parts[:2]] != _SIGNATURE or [part.tag for part in parts[2:]] not in (
        [],
        [f"{{{DS}}}KeyInfo"],
    ):
        raise refused("signature_parts")  # An `Object` is where wrapped elements hide.
    signed = list(parts[0])
    if [part.tag for part in signed] != _SIGNED:
        raise refused("signed_info")
    canonicalization, method, reference = signed
    if canonicalization.get("Algorithm") != _EXCLUSIVE or method.get("Algorithm") not in _SIGNATURES or len(method):
        raise refused("signature_algorithm")
    # Never the empty one, which stands for the whole document.
    if reference.get("URI") != f"#{signature.getparent().get('ID')}" or [part.tag for part in reference] != _REFERENCE:
        raise refused("reference")
    transforms, digest, _ = reference
    if [transform.get("Algorithm") for transform in transforms] != [_ENVELOPED, _EXCLUSIVE]:
        raise refused("transforms")
    if digest.get("Algorithm") not in _DIGESTS:
        raise refused("digest_algorithm")
