"""Bound tokens (DPoP): worth nothing without the key, and each proof is for one request, once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nexus_ray.core.clock import ManualClock, SystemClock
from nexus_ray.core.errors import UnauthenticatedError
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.dpop import Shown
from nexus_ray.security.jose import token_hash
from nexus_ray.security.jwk import thumbprint
from nexus_ray.security.keys import SigningKey
from nexus_ray.security.settings import OidcProvider, SecuritySettings
from nexus_ray.security.tokens import TokenSettings, issue_token
from tests.security.conftest import NOW, b64
from tests.security.oidc_server import OidcServer, claims_of

URL = "http://127.0.0.1:8600/v1/goals"
SEED = Ed25519PrivateKey.generate()
JWK = {"kty": "OKP", "crv": "Ed25519", "x": b64(SEED.public_key().public_bytes_raw())}


@pytest.fixture
def token(key: SigningKey) -> str:
    return issue_token(key, TokenSettings(), "ann", ["reader"], 600, NOW, cnf={"jkt": thumbprint(JWK)})


def proof(
    token: str, header: Any = None, claims: Any = None, sign: Callable[[bytes], bytes] = SEED.sign, raw: str = ""
) -> str:
    """Return a proof for `token`; `header` and `claims` are changed as told, None takes a field out."""
    full_header = {"typ": "dpop+jwt", "alg": "EdDSA", "jwk": JWK, **(header or {})}
    full_claims = {"htm": "POST", "htu": URL, "iat": NOW, "jti": "1", "ath": token_hash(token), **(claims or {})}
    parts = [
        b64(json.dumps({name: value for name, value in fields.items() if value is not None}).encode())
        for fields in (full_header, full_claims)
    ]
    signed = ".".join(parts)
    return f"{signed}.{raw or b64(sign(signed.encode()))}"


def shown(*proofs: str, scheme: str = "dpop", method: str = "POST", url: str = URL) -> Shown:
    return Shown(scheme, proofs, method, url)


def refuse(authenticator: Authenticator, token: str, how: Shown, reason: str) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        authenticator.authenticate(token, how)
    assert (str(caught.value), caught.value.details) == ("authentication failed", {"reason": reason})


def test_a_bound_token_is_taken_with_a_fresh_proof_for_each_request(authenticator: Authenticator, token: str) -> None:
    for number in range(3):
        session = authenticator.authenticate(token, shown(proof(token, claims={"jti": str(number)})))
        assert (session.principal, session.roles) == ("ann", ("reader",))


def test_a_bound_token_alone_is_worth_nothing(authenticator: Authenticator, token: str) -> None:
    good = proof(token)

    for how in (Shown(), shown(), shown(good, scheme="bearer"), shown(good, good)):
        refuse(authenticator, token, how, "no_proof")
    authenticator.authenticate(token, shown(good))
    refuse(authenticator, token, Shown(), "no_proof")


def test_a_token_that_is_not_bound_comes_without_proof(authenticator: Authenticator, key: SigningKey) -> None:
    free = issue_token(key, TokenSettings(), "ann", [], 600, NOW)

    refuse(authenticator, free, shown(proof(free)), "proof_of_unbound_token")
    refuse(authenticator, free, shown(), "proof_of_unbound_token")
    assert authenticator.authenticate(free).principal == "ann"


@pytest.mark.parametrize(
    "bound", [{}, {"jkt": ""}, {"jkt": 1}, {"x5t": "x"}, {"x5t#S256": 1}, {"jkt": "x", "jwk": {}}, "x", None, []]
)
def test_a_token_bound_by_what_we_cannot_check_is_refused(
    authenticator: Authenticator, key: SigningKey, bound: Any
) -> None:
    token = issue_token(key, TokenSettings(), "ann", [], 600, NOW, cnf=bound)

    refuse(authenticator, token, Shown(), "confirmation")


def test_a_proof_is_used_once_and_a_refused_one_is_not_used_up(
    authenticator: Authenticator, token: str, clock: ManualClock
) -> None:
    good = proof(token)
    refuse(authenticator, token, shown(good, method="GET"), "proof_of_another_request")

    authenticator.authenticate(token, shown(good))

    for seconds in (0, 60, 5.5):
        clock.advance(seconds)
        reason = "proof_used" if seconds != 5.5 else "proof_time"
        refuse(authenticator, token, shown(good), reason)


def test_when_no_more_proofs_can_be_remembered_they_are_refused_until_the_oldest_end(
    key: SigningKey, tmp_path: Path, token: str, clock: ManualClock
) -> None:
    authenticator = Authenticator.from_folder(tmp_path, TokenSettings(), clock, SecuritySettings(proofs_max=2))
    for number in range(2):
        authenticator.authenticate(token, shown(proof(token, claims={"jti": str(number)})))

    refuse(authenticator, token, shown(proof(token, claims={"jti": "2"})), "proofs_full")

    clock.advance(71)
    authenticator.authenticate(token, shown(proof(token, claims={"jti": "2", "iat": NOW + 71})))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"typ": "JWT"}, "proof_header"), ({"typ": None}, "proof_header"), ({"jwk": None}, "proof_header"),
        ({"kid": "k"}, "proof_header"), ({"crit": []}, "proof_header"), ({"alg": "none"}, "proof_key"),
        ({"alg": "HS256"}, "proof_key"), ({"alg": "ES256"}, "proof_key"), ({"alg": ["EdDSA"]}, "proof_key"),
        ({"jwk": {}}, "proof_key"), ({"jwk": []}, "proof_key"), ({"jwk": {**JWK, "d": "AA"}}, "proof_key"),
        ({"jwk": {"kty": "oct", "k": b64(b"s" * 32)}}, "proof_key"), ({"jwk": {**JWK, "use": "enc"}}, "proof_key"),
        ({"jwk": {**JWK, "alg": ["EdDSA"]}}, "proof_key"), ({"jwk": {**JWK, "crv": ["x"]}}, "proof_key"),
        ({"jwk": {**JWK, "kid": 1}}, "proof_key"),
    ],
)  # fmt: skip
def test_a_proof_with_another_header_is_refused(
    authenticator: Authenticator, token: str, header: Any, reason: str
) -> None:
    refuse(authenticator, token, shown(proof(token, header)), reason)


def test_a_proof_with_another_key_is_refused_however_well_it_is_signed(
    authenticator: Authenticator, token: str
) -> None:
    other = Ed25519PrivateKey.generate()
    theirs = {**JWK, "x": b64(other.public_key().public_bytes_raw())}

    refuse(authenticator, token, shown(proof(token, {"jwk": theirs}, sign=other.sign)), "proof_of_another_key")
    refuse(authenticator, token, shown(proof(token, sign=other.sign)), "signature")
    refuse(authenticator, token, shown(proof(token, raw=b64(bytes(64)))), "signature")
    refuse(authenticator, token, shown("garbage"), "parts")
    refuse(authenticator, token, shown("x" * 5000), "size")


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"htm": "GET"}, "proof_of_another_request"), ({"htm": "post"}, "proof_of_another_request"),
        ({"htm": None}, "proof_of_another_request"), ({"htu": None}, "proof_of_another_request"),
        ({"htu": "https://127.0.0.1:8600/v1/goals"}, "proof_of_another_request"),
        ({"htu": "http://127.0.0.1:8601/v1/goals"}, "proof_of_another_request"),
        ({"htu": "http://127.0.0.2:8600/v1/goals"}, "proof_of_another_request"),
        ({"htu": "http://127.0.0.1:8600/v1/goals/"}, "proof_of_another_request"),
        ({"htu": "http://127.0.0.1:8600/V1/goals"}, "proof_of_another_request"),
        ({"htu": "/v1/goals"}, "proof_of_another_request"), ({"htu": [URL]}, "proof_of_another_request"),
        ({"htu": "http://u@127.0.0.1:8600/v1/goals"}, "proof_of_another_request"),
        ({"htu": "http://[::1"}, "proof_of_another_request"), ({"htu": "http://a:x/"}, "proof_of_another_request"),
        ({"ath": None}, "proof_of_another_token"), ({"ath": "x"}, "proof_of_another_token"),
        ({"ath": [1]}, "proof_of_another_token"), ({"ath": "\u00e4"}, "proof_of_another_token"),
        ({"iat": NOW - 66}, "proof_time"), ({"iat": NOW + 6}, "proof_time"), ({"iat": None}, "claim_iat"),
        ({"iat": "now"}, "claim_iat"), ({"iat": True}, "claim_iat"), ({"jti": None}, "proof_id"),
        ({"jti": ""}, "proof_id"), ({"jti": 1}, "proof_id"), ({"jti": "x" * 201}, "proof_id"),
    ],
)  # fmt: skip
def test_a_proof_for_something_else_is_refused(
    authenticator: Authenticator, token: str, claims: Any, reason: str
) -> None:
    refuse(authenticator, token, shown(proof(token, claims=claims)), reason)


@pytest.mark.parametrize("htu", [URL + "?a=b#c", "HTTP://127.0.0.1:8600/v1/goals", URL])
def test_query_fragment_and_the_case_of_the_scheme_do_not_matter(
    authenticator: Authenticator, token: str, htu: str
) -> None:
    assert authenticator.authenticate(token, shown(proof(token, claims={"htu": htu}))).principal == "ann"


def test_where_the_fleet_does_not_know_its_own_address_no_proof_fits(authenticator: Authenticator, token: str) -> None:
    refuse(authenticator, token, shown(proof(token, claims={"htu": ""}), url=""), "proof_of_another_request")


async def test_a_token_that_a_real_provider_bound_is_taken_with_our_proof(
    server: OidcServer, key: SigningKey, tmp_path: Path
) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    point = private.public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256", "x": b64(point.x.to_bytes(32, "big")), "y": b64(point.y.to_bytes(32, "big"))}

    def sign(text: bytes) -> bytes:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        r, s = decode_dss_signature(private.sign(text, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    clock = ManualClock(SystemClock().now())
    header = {"alg": "ES256", "jwk": jwk}
    at = {"iat": int(clock.now())}
    asking = proof("", header, {**at, "htu": f"{server.issuer}/token", "ath": None}, sign)
    token = server.robot_token(DPoP=asking)
    corp = OidcProvider(issuer=server.issuer, audience="urn:nexus")
    authenticator = Authenticator.from_folder(tmp_path, TokenSettings(), clock, SecuritySettings(oidc={"corp": corp}))

    session = await authenticator.identify(token, shown(proof(token, header, at, sign)))

    assert claims_of(token)["cnf"] == {"jkt": thumbprint(jwk)}
    assert session.principal == "corp:robot"
    with pytest.raises(UnauthenticatedError):
        await authenticator.identify(token)
