"""The JOSE layer: public vectors and the attacks that they name, for every algorithm, and 100,000 mutated tokens.

`NEXUS_FUZZ_TOKENS=100000` makes that many mutants; without it there are 2,000. The seed is in the title of a failure.
Wycheproof's vectors stand here in part (`vectors/jws.json`); the attacks that its cases name are made anew from the
valid token of each group, and from keys of our own for the algorithms that the part does not hold.
"""

import hashlib
import hmac
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from nexus_ray.core.errors import UnauthenticatedError
from nexus_ray.security import jose
from nexus_ray.security.jwk import ALGORITHMS, Key, read_key, read_key_set
from tests.security.conftest import b64

VECTORS = json.loads((Path(__file__).parent / "vectors" / "jws.json").read_text())["groups"]
MUTANTS = int(os.environ.get("NEXUS_FUZZ_TOKENS", "2000"))
RSA_KEY = rsa.generate_private_key(65537, 2048)
NOW = 1_000_000.0
Sign = Callable[[bytes], bytes]


def rules(*algorithms: str, **changes: Any) -> jose.Rules:
    wanted = {"issuer": "them", "audiences": frozenset({"us"}), "types": frozenset({"", "JWT"}), **changes}
    return jose.Rules(algorithms=frozenset(algorithms) or ALGORITHMS, **wanted)


def is_taken(token: str, keys: dict[str, Key], wanted: jose.Rules) -> bool:
    try:
        jose.verify(jose.parse(token, wanted.bytes_max), keys, wanted)
    except UnauthenticatedError as error:
        assert str(error) == "authentication failed"
        return False
    return True


def number(value: int, size: int) -> str:
    return b64(value.to_bytes(size, "big"))


def maker(algorithm: str) -> tuple[dict[str, Any], Sign]:
    """Return a public JWK of our own and what signs with it."""
    digest = {"384": hashes.SHA384(), "512": hashes.SHA512()}.get(algorithm[2:], hashes.SHA256())
    entry: dict[str, Any] = {"kid": "k", "alg": algorithm, "use": "sig"}
    if algorithm == "EdDSA":
        edwards = Ed25519PrivateKey.generate()
        x = b64(edwards.public_key().public_bytes_raw())
        return {**entry, "kty": "OKP", "crv": "Ed25519", "x": x}, edwards.sign
    if algorithm == "HS256":
        return {**entry, "kty": "oct", "k": b64(b"s" * 32)}, lambda text: hmac.digest(b"s" * 32, text, "sha256")
    if algorithm.startswith("ES"):
        name, curve = {"ES256": ("P-256", ec.SECP256R1()), "ES384": ("P-384", ec.SECP384R1()),
                       "ES512": ("P-521", ec.SECP521R1())}[algorithm]  # fmt: skip
        private, size = ec.generate_private_key(curve), (curve.key_size + 7) // 8
        point = private.public_key().public_numbers()

        def sign(text: bytes) -> bytes:
            r, s = decode_dss_signature(private.sign(text, ec.ECDSA(digest)))
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")

        return {**entry, "kty": "EC", "crv": name, "x": number(point.x, size), "y": number(point.y, size)}, sign
    pad = padding.PSS(padding.MGF1(digest), digest.digest_size) if algorithm[0] == "P" else padding.PKCS1v15()
    modulus = RSA_KEY.public_key().public_numbers().n
    public = {**entry, "kty": "RSA", "n": number(modulus, 256), "e": "AQAB"}
    return public, lambda text: RSA_KEY.sign(text, pad, digest)


def compact(header: Any, payload: bytes, sign: Sign) -> str:
    signed = f"{b64(json.dumps(header).encode())}.{b64(payload)}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def broken(token: str, key: dict[str, Any]) -> dict[str, str]:
    """Return what Wycheproof makes of each valid token, by the names of its cases."""
    header, payload, signature = token.split(".")
    fields = json.loads(jose.decode(header))
    none = b64(json.dumps({**fields, "alg": "none"}).encode())
    other = b64(json.dumps({**fields, "kid": "X" + fields["kid"]}).encode())
    whole = {"payload": payload, "signatures": [{"protected": header, "signature": signature}]}
    found = {
        "ModifiedSignature": f"{header}.{payload}.{'X' if signature[0] != 'X' else 'Y'}{signature[1:]}",
        "MissingSignature": f"{header}.{payload}.", "MissingSignatureAndSeparator": f"{header}.{payload}",
        "ModifiedPayload": f"{header}.WG9v.{signature}", "MissingPayload": f"{header}..{signature}",
        "MissingPayloadAndSeparator": f"{header}.{signature}", "ModifiedHeader": f"{other}.{payload}.{signature}",
        "MissingHeader": f".{payload}.{signature}", "MissingHeaderAndSeparator": f"{payload}.{signature}",
        "MissingHeaderAndSignature": f".{payload}.", "OnlyPayload": payload, "Empty": "", "Dots": "..",
        "ExtraEmptyComponent": f"{token}.", "ExtraComponent": f"{token}.foo", "None": f"{none}.{payload}.",
        "NoneWithSignature": f"{none}.{payload}.{signature}", "JsonSerialization": json.dumps(whole),
        "Padding": f"{token}=", "PaddedHeader": f"{header}=.{payload}.{signature}", "Space": f" {token}",
        "NewLine": f"{token}\n", "Truncated": token[:-4], "Longer": f"{token}AAAA", "Doubled": f"{token}{signature}",
        "Zeros": f"{header}.{payload}.{b64(bytes(len(jose.decode(signature))))}",
    }  # fmt: skip
    secret = json.dumps(key).encode()
    for name in ("HS256", "HS384", "HS512"):
        confused = f"{b64(json.dumps({**fields, 'alg': name}).encode())}.{payload}"
        found[f"Confused{name}"] = f"{confused}.{b64(hmac.digest(secret, confused.encode(), 'sha256'))}"
    return found


@pytest.mark.parametrize("group", VECTORS, ids=lambda group: group["key"]["kid"])
def test_of_the_public_vectors_the_valid_are_taken_and_nothing_else(group: dict[str, Any]) -> None:
    keys = read_key_set({"keys": [group["key"]]}, is_secret=True)
    wrong = broken(group["valid"], group["key"]) | group["invalid"]

    assert is_taken(group["valid"], keys, rules())
    assert all(is_taken(token, keys, rules()) for token in group.get("also_valid", {}).values())
    assert [name for name, token in wrong.items() if is_taken(token, keys, rules())] == []
    assert not is_taken(group["valid"], keys, rules(*(ALGORITHMS - {group["key"]["alg"]})))


@pytest.mark.parametrize(("algorithm", "size", "order"), [
    ("ES256", 32, 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551),
    ("ES384", 48, 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973),
])  # fmt: skip
def test_no_r_and_s_at_the_edges_of_the_curve_are_a_signature(algorithm: str, size: int, order: int) -> None:
    entry, sign = maker(algorithm)
    keys = read_key_set({"keys": [entry]})
    token = compact({"alg": algorithm, "kid": "k"}, b"foo", sign)
    head, _, signature = token.rpartition(".")
    r, s = jose.decode(signature)[:size], jose.decode(signature)[size:]
    edges = [n.to_bytes(size, "big") for n in (0, 1, order - 1, order, order + 1, 2 ** (8 * size) - 1)]
    # Of (r, s) and (r, n - s) both are right: that is ECDSA, and no token is told from another by its signature.
    twin = (order - int.from_bytes(s)).to_bytes(size, "big")
    wrong = [first + second for first in edges for second in edges]
    wrong += [bytes(1) + r + bytes(1) + s, bytes(size) + r + bytes(size) + s, r + s + bytes(1), s + r, r, b""]

    assert is_taken(f"{head}.{b64(r + twin)}", keys, rules())
    assert [text.hex() for text in wrong if is_taken(f"{head}.{b64(text)}", keys, rules())] == []


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_takes_its_own_signature_and_no_broken_one(algorithm: str) -> None:
    entry, sign = maker(algorithm)
    keys = read_key_set({"keys": [entry]}, is_secret=True)
    token = compact({"alg": algorithm, "kid": "k"}, b"foo", sign)

    assert is_taken(token, keys, rules(algorithm))
    assert [name for name, wrong in broken(token, entry).items() if is_taken(wrong, keys, rules())] == []
    for other in ALGORITHMS - {algorithm}:
        assert not is_taken(compact({"alg": other, "kid": "k"}, b"foo", sign), keys, rules())
        assert read_key({**entry, "alg": other}, is_secret=True) is None or entry["kty"] == "RSA"


@pytest.mark.parametrize(
    "change",
    [{"use": "enc"}, {"use": ["sig"]}, {"use": None}, {"key_ops": ["encrypt"]}, {"key_ops": []}, {"key_ops": "verify"},
     {"key_ops": ["verify", "verify"]}, {"key_ops": ["verify", "encrypt"]}, {"key_ops": ["sign"]}, {"kty": "oct"},
     {"kty": "EC"}, {"kty": []}, {"n": b64(b"\xff" * 128)}, {"n": b64(b"\xff" * 2000)}, {"e": "Aw"}, {"e": "AQAC"},
     {"n": 5}, {"n": "=="}, {"e": "AQAB="}, {"d": "AQAB"}, {"alg": "none"}, {"alg": "HS256"}, {"alg": ["RS256"]},
     {"kid": 1}, {"kid": None}],
)  # fmt: skip
def test_a_key_that_says_of_itself_what_does_not_fit_is_left_out(change: dict[str, Any]) -> None:
    entry, sign = maker("RS256")
    token = compact({"alg": "RS256", "kid": "k"}, b"foo", sign)
    assert is_taken(token, read_key_set({"keys": [{**entry, "key_ops": ["verify"]}]}), rules())

    assert read_key_set({"keys": [{**entry, **change}]}) == {}


def test_a_point_off_the_curve_or_of_another_length_is_no_key() -> None:
    entry, _ = maker("ES256")

    assert read_key(entry) is not None
    assert read_key({**entry, "y": entry["x"]}) is None
    assert read_key({**entry, "x": b64(bytes(1) + jose.decode(entry["x"]))}) is None
    assert read_key({**entry, "crv": "secp256k1"}) is None


def test_symmetric_keys_come_from_here_and_never_from_the_net() -> None:
    entry, _ = maker("HS256")

    assert set(read_key_set({"keys": [entry]}, is_secret=True)) == {"k"}
    assert read_key_set({"keys": [entry]}) == {}
    assert read_key_set({"keys": [{**entry, "k": b64(b"short")}]}, is_secret=True) == {}


def test_of_two_keys_with_one_id_neither_is_taken() -> None:
    first, second, third = maker("EdDSA")[0], maker("ES256")[0], {**maker("EdDSA")[0], "kid": "other"}

    assert set(read_key_set({"keys": [first, second, third, 1, {"kid": []}]})) == {"other"}


@pytest.mark.parametrize("document", [None, [], {}, {"keys": {}}, {"keys": [{}] * 101}])
def test_what_is_no_key_set_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match="key set"):
        read_key_set(document)


def test_the_public_rsa_key_is_no_secret_in_any_spelling() -> None:
    entry, _ = maker("RS256")
    keys = read_key_set({"keys": [{name: entry[name] for name in ("kty", "n", "e", "kid")}]})
    public = RSA_KEY.public_key()
    pem, der = serialization.Encoding.PEM, serialization.Encoding.DER
    spellings = [
        public.public_bytes(encoding, layout)
        for encoding in (pem, der)
        for layout in (serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PublicFormat.PKCS1)
    ]

    for secret in [*spellings, *(text.strip() for text in spellings), b"", jose.decode(entry["n"])]:
        token = compact({"alg": "HS256", "kid": "k"}, b"foo", lambda text: hmac.digest(secret, text, "sha256"))  # noqa: B023
        assert not is_taken(token, keys, rules())


@pytest.mark.parametrize(
    "kid",
    ["../../etc/passwd", "/dev/null", "k' OR '1'='1", "k\x00", "", "K", "k ", "x' UNION SELECT 'k'--", "%2e%2e/k",
     "http://127.0.0.1/k", "a" * 1000, 0, None, [], {}, ["k"], True],
)  # fmt: skip
def test_a_key_id_is_looked_up_and_nothing_else_is_done_with_it(kid: Any) -> None:
    entry, sign = maker("EdDSA")
    keys = read_key_set({"keys": [entry]})

    assert not is_taken(compact({"alg": "EdDSA", "kid": kid}, b"foo", sign), keys, rules())


@pytest.mark.parametrize("name", ["jku", "x5u", "x5c", "jwk", "crit", "b64", "zip", "enc", "x5t", "other"])
def test_a_header_field_that_the_rules_do_not_name_is_refused(name: str) -> None:
    entry, sign = maker("EdDSA")
    keys = read_key_set({"keys": [entry]})
    token = compact({"alg": "EdDSA", "kid": "k", name: ["b64"]}, b"foo", sign)

    assert not is_taken(token, keys, rules())
    if name in ("x5t", "other"):
        assert is_taken(token, keys, rules(ignored=frozenset({name})))
    elif name not in ("zip", "enc"):
        with pytest.raises(ValueError, match="must be refused"):
            rules(ignored=frozenset({name}))


def test_json_nests_so_deep_and_no_deeper_and_is_text() -> None:
    assert jose.read_object(b'{"a":[[[[[[[1]]]]]]]}') == {"a": [[[[[[[1]]]]]]]}
    assert len(jose.read_object(b'{"a":[{},{},{},{},{},{},{},{},{},{},"[[["]}')["a"]) == 11
    deep = [b'{"a":' + b"[" * n + b"]" * n + b"}" for n in (8, 100, 100_000)]
    doubled = [b'{"a":1,"a":1}', b'{"a":{"b":1,"\\u0062":2}}']
    odd = [b'{"a":"\\ud800"}', b'{"\\udc00":1}', '{"a":1}'.encode("utf-16"), b'\xef\xbb\xbf{"a":1}', b'{"a":"\xff"}',
           b'{"a":NaN}', b'{"a":-Infinity}', b"{'a':1}", b'{"a":1}x', b"[]", b"1", b"",
           b'{"a":' + b"9" * 5000 + b"}"]  # fmt: skip

    for raw in deep + doubled + odd:
        with pytest.raises(UnauthenticatedError):
            jose.read_object(raw)


def test_claims_that_only_some_issuers_leave_out_are_as_the_rules_say() -> None:
    claims = {"iss": "them", "aud": ["us"], "iat": NOW, "exp": NOW + 60, "sub": "ann"}

    jose.check_claims(claims, rules(), NOW)
    for wanted, wrong in (
        (rules(required=("sub", "client_id")), claims), (rules(required=("nbf",)), claims),
        (rules(), {**claims, "nbf": NOW + 6}), (rules(), {**claims, "sub": ""}), (rules(), {**claims, "aud": [["us"]]}),
        (rules(), {**claims, "aud": {"us": 1}}), (rules(), {**claims, "iss": ["them"]}),
        (rules(), {**claims, "iss": "them/"}), (rules(lifetime_max_s=59.0), claims),
        (rules(), {**claims, "exp": NOW - 5}), (rules(), {**claims, "exp": 2**60}),
    ):  # fmt: skip
        with pytest.raises(UnauthenticatedError):
            jose.check_claims(wrong, wanted, NOW)


def test_of_all_mutated_tokens_none_is_taken_and_none_breaks_anything() -> None:
    """A mutant differs from every valid token by at least one byte."""
    seed = int(os.environ.get("NEXUS_FUZZ_SEED", "20"))
    dice = random.Random(seed)
    keys: dict[str, Key] = {}
    valid: list[str] = []
    for algorithm in ("EdDSA", "ES256", "RS256", "HS256"):
        entry, sign = maker(algorithm)
        keys |= read_key_set({"keys": [{**entry, "kid": algorithm}]}, is_secret=True)
        claims = json.dumps({"iss": "them", "aud": "us", "sub": "ann", "iat": NOW, "exp": NOW + 60}).encode()
        valid.append(compact({"alg": algorithm, "kid": algorithm, "typ": "JWT"}, claims, sign))
    wanted = rules()
    assert all(is_taken(token, keys, wanted) for token in valid)

    taken = []
    for count in range(MUTANTS):
        mutant = mutate(dice.choice(valid), valid, dice)
        if mutant not in valid and is_taken(mutant, keys, wanted):
            taken.append((count, mutant))

    assert taken == [], f"seed {seed}"


def mutate(token: str, others: list[str], dice: random.Random) -> str:
    def at() -> int:
        return dice.randrange(len(token))

    def parts_of_two() -> str:
        other = dice.choice(others).split(".")
        return ".".join(dice.choice(pair) for pair in zip(token.split("."), other, strict=True))

    def in_the_bytes() -> str:
        parts = token.split(".")
        chosen = dice.randrange(3)
        raw = bytearray(jose.decode(parts[chosen]))
        for _ in range(dice.randint(1, 3)):
            raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        parts[chosen] = b64(bytes(raw))
        return ".".join(parts)

    def in_the_header() -> str:
        header, rest = token.split(".", 1)
        fields = json.loads(jose.decode(header))
        odd = dice.choice([None, "none", "HS256", 0, [], {}, "", "RS256", "EdDSA", "ES256", "\ud800", 1e9, True])
        fields[dice.choice(["alg", "kid", "typ", "crit", "jwk", "b64", "x5u", "zip"])] = odd
        return f"{b64(json.dumps(fields).encode())}.{rest}"

    def a_character() -> str:
        place = at()
        return token[:place] + chr(dice.choice([dice.randrange(128), dice.randrange(0x11000)])) + token[place + 1 :]

    def cut() -> str:
        first, last = sorted((at(), at()))
        return token[:first] + token[last + 1 :]

    def repeat() -> str:
        first, last = sorted((at(), at()))
        return token[:last] + token[first:]

    def swap() -> str:
        first, last = sorted((at(), at()))
        return token[:first] + token[last] + token[first + 1 : last] + token[first] + token[last + 1 :]

    return dice.choice([parts_of_two, in_the_bytes, in_the_header, a_character, cut, repeat, swap])()


def test_a_hash_of_a_token_is_what_a_proof_says() -> None:
    expected = b64(hashlib.sha256(b"abc").digest())

    assert jose.token_hash("abc") == expected
    assert jose.same(expected, expected) and not jose.same(None, expected) and not jose.same(expected[:-1], expected)
