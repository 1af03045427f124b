"""Attack stories on bearer tokens: every one of them hears the same, and learns nothing."""

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import InvalidArgumentError, UnauthenticatedError
from nexus_ray.observe import metrics
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.keys import SigningKey, load_or_create_issuer_key
from nexus_ray.security.tokens import TokenSettings, issue_token
from tests.security.conftest import NOW, Forge, b64

FAR = "9" * 400


def refuse(authenticator: Authenticator, token: Any, reason: str) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        authenticator.authenticate(token)
    assert str(caught.value) == "authentication failed"
    assert caught.value.details == {"reason": reason}


def test_a_token_of_the_local_issuer_is_let_in(
    authenticator: Authenticator, key: SigningKey, clock: ManualClock
) -> None:
    token = issue_token(key, TokenSettings(), "ann", ["reader", "operator"], 60, clock.now())

    session = authenticator.authenticate(token)

    assert (session.principal, session.issuer, session.roles) == ("ann", "nexus-local", ("reader", "operator"))
    assert session.expires_at == NOW + 60 and session.id not in token
    assert authenticator.authenticate(token) is session


def test_a_forged_token_that_changes_nothing_is_let_in(authenticator: Authenticator, forge: Forge) -> None:
    assert authenticator.authenticate(forge()).principal == "ann"


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (None, "missing"), ("", "missing"), ("garbage", "parts"), ("a.b", "parts"), ("a.b.c.d", "parts"),
        ("..", "json"), ("a.b.c", "base64"), ("Bearer x.y.z", "base64"), ("ü.b.c", "size"), ("\ud800.b.c", "size"),
        ("x" * 4097, "size"), ("e30.e30.e30", "header_fields"), ("W10.e30.", "json"), ("bnVsbA.e30.", "json"),
        (b64(b"[" * 3000) + ".e30.", "json"), (b64(b'{"n":' + b"1" * 2900 + b"}") + ".e30.", "header_fields"),
        (b64(b"\xff\xfe") + ".e30.", "json"), ("e30.e30.\n", "base64"),
    ],
)  # fmt: skip
def test_what_is_no_token_is_refused(authenticator: Authenticator, token: Any, reason: str) -> None:
    refuse(authenticator, token, reason)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"alg": "none"}, "algorithm_or_type"), ({"alg": "None"}, "algorithm_or_type"),
        ({"alg": "HS256"}, "algorithm_or_type"), ({"alg": "eddsa"}, "algorithm_or_type"),
        ({"alg": ["EdDSA"]}, "algorithm_or_type"), ({"alg": None}, "header_fields"),
        ({"typ": "JWT"}, "algorithm_or_type"), ({"typ": None}, "header_fields"),
        ({"kid": "no-such"}, "unknown_key"), ({"kid": ""}, "unknown_key"), ({"kid": 1}, "unknown_key"),
        ({"kid": ["x"]}, "unknown_key"), ({"kid": {}}, "unknown_key"), ({"kid": None}, "header_fields"),
        ({"jku": "https://evil.example/keys"}, "header_fields"), ({"jwk": {"kty": "OKP"}}, "header_fields"),
        ({"crit": ["exp"]}, "header_fields"), ({"x5u": "x"}, "header_fields"), ({"b64": False}, "header_fields"),
    ],
)  # fmt: skip
def test_a_header_that_is_not_ours_to_the_letter_is_refused(
    authenticator: Authenticator, forge: Forge, header: dict[str, Any], reason: str
) -> None:
    refuse(authenticator, forge(header), reason)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "other"}, "issuer_or_audience"), ({"iss": None}, "issuer_or_audience"),
        ({"iss": ["nexus-local"]}, "issuer_or_audience"), ({"aud": "other"}, "issuer_or_audience"),
        ({"aud": None}, "issuer_or_audience"), ({"aud": []}, "issuer_or_audience"),
        ({"aud": ["x", "y"]}, "issuer_or_audience"), ({"aud": {"nexus": 1}}, "issuer_or_audience"),
        ({"exp": NOW - 6}, "expired"), ({"exp": NOW - 5}, "expired"), ({"nbf": NOW + 6}, "not_yet_valid"),
        ({"iat": NOW + 6}, "not_yet_valid"), ({"exp": NOW + 31 * 86_400}, "lifetime"),
        ({"iat": NOW, "exp": NOW}, "lifetime"), ({"iat": NOW + 1, "exp": NOW - 1}, "lifetime"),
        *[({name: bad}, f"claim_{name}") for name in ("exp", "nbf", "iat")
          for bad in (None, True, False, "60", -1, [NOW], 1e300, 10**308)],
        *[({name: bad}, "json") for name in ("exp", "other") for bad in (float("nan"), float("inf"), float("-inf"))],
        ({"sub": None}, "subject"), ({"sub": ""}, "subject"), ({"sub": 1}, "subject"), ({"jti": None}, "subject"),
        ({"jti": ""}, "subject"), ({"roles": None}, "roles"), ({"roles": "operator"}, "roles"),
        ({"roles": {"operator": 1}}, "roles"), ({"roles": ["reader", 1]}, "roles"), ({"roles": [""]}, "roles"),
        ({"roles": ["reader operator"]}, "roles"), ({"roles": ["operator\n"]}, "roles"),
    ],
)  # fmt: skip
def test_claims_that_are_missing_or_wrong_are_refused_though_they_are_signed(
    authenticator: Authenticator, forge: Forge, claims: dict[str, Any], reason: str
) -> None:
    refuse(authenticator, forge(claims=claims), reason)


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": ["x", "nexus"]}, {"exp": NOW - 4.9, "iat": NOW - 60}, {"nbf": NOW + 5}, {"iat": NOW + 5},
        {"exp": NOW + 30 * 86_400}, {"exp": int(NOW) + 9, "iat": int(NOW), "nbf": 0}, {"roles": []}, {"other": [1]},
    ],
)  # fmt: skip
def test_the_edges_of_what_is_allowed_are_let_in(
    authenticator: Authenticator, forge: Forge, claims: dict[str, Any]
) -> None:
    assert authenticator.authenticate(forge(claims=claims)).principal == "ann"


def test_a_name_that_stands_twice_is_refused_in_header_and_claims(
    authenticator: Authenticator, forge: Forge, key: SigningKey
) -> None:
    twice = json.dumps({"alg": "EdDSA", "typ": "nexus+jwt", "kid": key.kid})[:-1] + ',"alg":"EdDSA"}'

    refuse(authenticator, forge(raw_header=twice.encode()), "json")
    refuse(authenticator, forge(raw_claims=b'{"sub":"ann","sub":"root"}'), "json")
    refuse(authenticator, forge(raw_claims=b'{"exp":' + FAR.encode() + b"}"), "issuer_or_audience")


def test_a_number_too_large_for_any_clock_is_refused(authenticator: Authenticator, forge: Forge) -> None:
    text = forge(claims={"exp": 1}).split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(text + "=="))
    raw = json.dumps(claims).replace('"exp": 1', f'"exp": {FAR}').encode()

    refuse(authenticator, forge(raw_claims=raw), "claim_exp")


@pytest.mark.parametrize("spelling", [lambda part: part + "=", lambda part: part + "==", lambda part: part + "\n",
                                      lambda part: " " + part, lambda part: part.replace("_", "/")])  # fmt: skip
def test_another_spelling_of_the_same_bytes_is_refused(
    authenticator: Authenticator, forge: Forge, spelling: Any
) -> None:
    token = next(token for n in range(100) if "_" in (token := forge(claims={"jti": str(n)})).split(".")[2])
    header, claims, signature = token.split(".")
    authenticator.authenticate(token)

    refuse(authenticator, f"{header}.{claims}.{spelling(signature)}", "base64")


def test_bits_that_base64_throws_away_are_refused(authenticator: Authenticator, forge: Forge) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token = forge()
    last = alphabet.index(token[-1])
    assert last % 16 == 0, "64 bytes leave 4 bits over"

    for extra in range(1, 16):
        refuse(authenticator, token[:-1] + alphabet[last + extra], "base64")


def test_every_change_of_a_byte_is_found(authenticator: Authenticator, forge: Forge) -> None:
    token = forge()
    for position in range(len(token)):
        other = "A" if token[position] != "A" else "B"

        with pytest.raises(UnauthenticatedError):
            authenticator.authenticate(token[:position] + other + token[position + 1 :])
        with pytest.raises(UnauthenticatedError):
            authenticator.authenticate(token[:position])


def test_the_public_key_is_not_a_secret_to_sign_with(authenticator: Authenticator, key: SigningKey) -> None:
    public = key.private.public_key().public_bytes_raw()
    for algorithm in ("HS256", "EdDSA"):
        header = b64(json.dumps({"alg": algorithm, "typ": "nexus+jwt", "kid": key.kid}).encode())
        signed = f"{header}.{b64(json.dumps({'sub': 'root'}).encode())}"
        mac = hmac.digest(public, signed.encode(), hashlib.sha256)

        refuse(authenticator, f"{signed}.{b64(mac)}", "algorithm_or_type" if algorithm == "HS256" else "signature")


def test_an_unsigned_token_is_refused(authenticator: Authenticator, forge: Forge) -> None:
    header, claims, _ = forge().split(".")

    refuse(authenticator, f"{header}.{claims}.", "signature")


def test_the_key_of_another_issuer_is_refused_also_under_our_key_id(
    authenticator: Authenticator, key: SigningKey, tmp_path: Path, clock: ManualClock
) -> None:
    (tmp_path / "other").mkdir()
    other = load_or_create_issuer_key(tmp_path / "other")
    settings = TokenSettings()

    refuse(authenticator, issue_token(other, settings, "ann", ["reader"], 60, clock.now()), "unknown_key")
    posing = SigningKey(key.kid, Ed25519PrivateKey.generate())
    refuse(authenticator, issue_token(posing, settings, "ann", ["reader"], 60, clock.now()), "signature")


def test_a_remembered_token_ends_when_it_expires(
    authenticator: Authenticator, forge: Forge, clock: ManualClock
) -> None:
    token = forge(claims={"exp": NOW + 10})
    authenticator.authenticate(token)

    clock.advance(14.9)
    assert authenticator.authenticate(token).principal == "ann"
    clock.advance(0.1)
    refuse(authenticator, token, "expired")
    refuse(authenticator, token, "expired")


def test_a_token_that_is_over_by_its_own_word_costs_no_signature_and_one_that_is_not_does(
    authenticator: Authenticator, key: SigningKey, forge: Forge, clock: ManualClock
) -> None:
    posing = SigningKey(key.kid, Ed25519PrivateKey.generate())
    past = issue_token(posing, TokenSettings(), "ann", ["reader"], 60, clock.now() - 3600)
    future = issue_token(posing, TokenSettings(), "ann", ["reader"], 60, clock.now())

    for _ in range(2):
        refuse(authenticator, past, "expired")
        refuse(authenticator, forge(claims={"exp": NOW - 6}), "expired")
        refuse(authenticator, future, "signature")


def test_no_more_tokens_are_remembered_than_the_limit(key: SigningKey, tmp_path: Path, forge: Forge) -> None:
    authenticator = Authenticator.from_folder(tmp_path, TokenSettings(cached_max=2), ManualClock())
    tokens = [forge(claims={"jti": str(n)}) for n in range(3)]

    sessions = [authenticator.authenticate(token) for token in tokens]

    assert authenticator.authenticate(tokens[2]) is sessions[2]
    assert authenticator.authenticate(tokens[0]) is not sessions[0]


def test_attempts_are_counted_by_how_they_ended(authenticator: Authenticator, forge: Forge) -> None:
    def counted(result: str) -> float:
        name = f'nexus_auth_attempts_total{{method="token",provider="local",result="{result}"}} '
        lines = [line for line in metrics.exposition().decode().splitlines() if line.startswith(name)]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    success, failure = counted("success"), counted("failure")

    authenticator.authenticate(forge())
    for token in (None, "x", forge({"alg": "none"})):
        with pytest.raises(UnauthenticatedError):
            authenticator.authenticate(token)

    assert (counted("success") - success, counted("failure") - failure) == (1, 3)


@pytest.mark.parametrize(
    ("principal", "roles", "lifetime_s"),
    [("", ["reader"], 60), ("a\n", ["reader"], 60), ("x" * 201, ["reader"], 60), ("ann", ["a b"], 60),
     ("ann", [""], 60), ("ann", [], 0), ("ann", [], -1), ("ann", [], 31 * 86_400), ("ann", [], float("nan"))],
)  # fmt: skip
def test_no_token_is_issued_that_would_be_refused(
    key: SigningKey, principal: str, roles: list[str], lifetime_s: float
) -> None:
    with pytest.raises(InvalidArgumentError):
        issue_token(key, TokenSettings(), principal, roles, lifetime_s, NOW)


def test_two_tokens_are_never_the_same(key: SigningKey) -> None:
    assert len({issue_token(key, TokenSettings(), "ann", [], 60, NOW) for _ in range(100)}) == 100
