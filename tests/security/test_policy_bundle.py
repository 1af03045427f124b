"""A signed policy: both engines take it, and neither takes one that is altered, unsigned, another's or out of date."""

import gzip
import hashlib
import hmac
import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from nexus_ray.core.clock import ManualClock
from nexus_ray.core.errors import FailedPreconditionError, InvalidArgumentError, PermissionDeniedError
from nexus_ray.core.identity import Session
from nexus_ray.security.authz import Authorizer, load_policy, load_roles
from nexus_ray.security.jwk import base64url
from nexus_ray.security.opa import OpaEngine, OpaServer
from nexus_ray.security.policy import parse_policy
from nexus_ray.security.policy_bundle import load_signing_key, load_verification_key, read_bundle, write_bundle
from nexus_ray.security.policy_settings import PolicySettings
from tests.security.policy_cases import CASES, POLICY
from tests.support.opa import Opa, program

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = 1_000_000
PEM = serialization.Encoding.PEM
PUBLIC = KEY.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
RAW = write_bundle(POLICY, KEY, NOW)
# What OPA's form of JSON and Python's might write differently.
ODD = {"roles": {"rôle<&>": ["goal:submit ä<>&*"]}, "tenants": ["\u2028 \u007f\t\b\f", "日", "𝄞", "<&>"]}


def unpacked(raw: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]


def packed(files: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def test_a_bundle_holds_its_policy() -> None:
    for table in (POLICY, ODD, {"roles": {}}):
        found = read_bundle(write_bundle(table, KEY, NOW), KEY.public_key(), NOW)

        assert (found.policy, found.made_at) == (parse_policy(table), NOW)


def _signed_by_secret(files: dict[str, bytes]) -> bytes:
    header, claims, _ = json.loads(files["/.signatures.json"])["signatures"][0].split(".")
    header = base64url(json.dumps({"alg": "HS256", "kid": "nexus"}).encode())
    mac = base64url(hmac.digest(PUBLIC, f"{header}.{claims}".encode(), hashlib.sha256))
    return json.dumps({"signatures": [f"{header}.{claims}.{mac}"]}).encode()


def _unsigned(files: dict[str, bytes]) -> bytes:
    claims = json.loads(files["/.signatures.json"])["signatures"][0].split(".")[1]
    header = base64url(json.dumps({"alg": "none", "kid": "nexus"}).encode())
    return json.dumps({"signatures": [f"{header}.{claims}."]}).encode()


def _twice(files: dict[str, bytes]) -> bytes:
    token = json.loads(files["/.signatures.json"])["signatures"][0]
    return json.dumps({"signatures": [token, token]}).encode()


Change = Callable[[dict[str, bytes]], Any]
CHANGES: list[tuple[str, Change]] = [
    ("data", lambda f: f.update({"/data.json": f["/data.json"].replace(b"goal:read", b"goal:*")})),
    ("data by a space", lambda f: f.update({"/data.json": f["/data.json"] + b" "})),
    ("rules", lambda f: f.update({"/authz.rego": f["/authz.rego"].replace(b"allow := false", b"allow := true")})),
    ("manifest", lambda f: f.update({"/.manifest": f["/.manifest"].replace(b"nexus", b"sexun")})),
    ("time", lambda f: f.update({"/.manifest": f["/.manifest"].replace(b"1000000", b"1000001")})),
    ("no signature", lambda f: f.pop("/.signatures.json")),
    ("no rules", lambda f: f.pop("/authz.rego")),
    ("one more", lambda f: f.update({"/more.rego": b"package nexus.authz\nimport rego.v1\nallow := true\n"})),
    ("signed by nobody", lambda f: f.update({"/.signatures.json": _unsigned(f)})),
    ("signed by the public key", lambda f: f.update({"/.signatures.json": _signed_by_secret(f)})),
    ("signed twice", lambda f: f.update({"/.signatures.json": _twice(f)})),
    ("no signatures", lambda f: f.update({"/.signatures.json": b'{"signatures":[]}'})),
    ("signatures of none", lambda f: f.update({"/.signatures.json": b"[]"})),
    ("signatures without an end", lambda f: f.update({"/.signatures.json": b'{"signatures":' + b"[" * 50_000})),
    ("another's signature", lambda f: f.update(
        {"/.signatures.json": unpacked(write_bundle(POLICY, ec.generate_private_key(ec.SECP256R1()), NOW))[
            "/.signatures.json"]})),
    ("the signature of another policy", lambda f: f.update(
        {"/.signatures.json": unpacked(write_bundle({"roles": {}}, KEY, NOW))["/.signatures.json"]})),
]  # fmt: skip


@pytest.mark.parametrize("change", [change for _, change in CHANGES], ids=[name for name, _ in CHANGES])
def test_what_was_altered_is_refused(change: Change) -> None:
    files = unpacked(RAW)
    assert read_bundle(packed(list(files.items())), KEY.public_key(), NOW).policy == parse_policy(POLICY)

    change(files)

    with pytest.raises(InvalidArgumentError):
        read_bundle(packed(list(files.items())), KEY.public_key(), NOW)


def test_any_byte_that_changes_anything_is_found() -> None:
    inside = gzip.decompress(RAW)
    for position in range(0, len(inside), 173):
        changed = bytearray(inside)
        changed[position] ^= 1
        try:
            found = read_bundle(gzip.compress(bytes(changed), 1), KEY.public_key(), NOW)
        except InvalidArgumentError:
            continue
        assert (found.policy, found.made_at) == (parse_policy(POLICY), NOW), position


def test_what_is_no_bundle_is_refused_cheaply() -> None:
    large = tarfile.TarInfo("/data.json")
    large.size, large.type = 1 << 40, tarfile.GNUTYPE_SPARSE
    twice = [("/data.json", b"{}"), ("data.json", b"{}")]
    link = tarfile.TarInfo("/data.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    bombs = [b"", b"x" * 100, RAW[:-20], gzip.compress(b"\0" * (64 << 20), 1), gzip.compress(large.tobuf()),
             packed(twice), gzip.compress(link.tobuf() + b"\0" * 1024), packed([("/../data.json", b"{}")])]  # fmt: skip

    for raw in bombs:
        with pytest.raises(InvalidArgumentError):
            read_bundle(raw, KEY.public_key(), NOW)


def resigned(**changed: Any) -> bytes:
    """Return a bundle with changed contents that is signed as it should be."""
    files = unpacked(RAW)
    content, manifest = json.loads(files["/data.json"]), json.loads(files["/.manifest"])
    content["nexus"].update(changed.get("content", {}))
    manifest.update(changed.get("manifest", {}))
    files["/data.json"], files["/.manifest"] = (json.dumps(value).encode() for value in (content, manifest))
    files["/authz.rego"] += changed.get("rules", b"")
    listed = [
        {"name": name, "hash": hashlib.sha256(files[f"/{name}"]).hexdigest(), "algorithm": "SHA-256"}
        for name in (".manifest", "authz.rego", "data.json")
    ]
    parts = [base64url(json.dumps(part).encode()) for part in ({"alg": "ES256", "kid": "nexus"}, {"files": listed})]
    r, s = decode_dss_signature(KEY.sign(".".join(parts).encode(), ec.ECDSA(hashes.SHA256())))
    token = ".".join([*parts, base64url(r.to_bytes(32) + s.to_bytes(32))])
    files["/.signatures.json"] = json.dumps({"signatures": [token]}).encode()
    return packed(list(files.items()))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rules": b"\n"}, "another version"), ({"content": {"policy": {}}}, "another version"),
        ({"manifest": {"revision": "0" * 16}}, "another version"), ({"content": {"source": 1}}, "no policy"),
        ({"content": {"source": {"roles": {"a": ["goal:explode"]}}}}, "goal:explode"),
        ({"manifest": {"metadata": {}}}, "no policy"), ({"manifest": {"metadata": {"made_at": NOW + 301}}}, "future"),
        ({"manifest": {"metadata": {"made_at": True}}}, "future"),
        ({"manifest": {"metadata": {"made_at": -1}}}, "future"),
    ],
)  # fmt: skip
def test_what_is_signed_and_makes_no_sense_is_refused(changed: dict[str, Any], named: str) -> None:
    assert read_bundle(resigned(), KEY.public_key(), NOW).policy == parse_policy(POLICY)

    with pytest.raises(InvalidArgumentError, match=named):
        read_bundle(resigned(**changed), KEY.public_key(), NOW)


def test_a_fleet_with_a_bundle_goes_by_nothing_else_and_never_back(tmp_path: Path, clock: ManualClock) -> None:
    def write(raw: bytes) -> None:
        (tmp_path / "new").write_bytes(raw)
        os.replace(tmp_path / "new", tmp_path / "policy.tar.gz")
        clock.advance(1.0)

    def may(action: str) -> bool:
        try:
            authorizer.authorize(Session("s", "ann", "local", ("lead",), 9e9), action)
        except PermissionDeniedError:
            return False
        return True

    (tmp_path / "key.pem").write_bytes(PUBLIC)
    (tmp_path / "roles.toml").write_text('[roles]\nlead = ["audit:*"]\n')
    settings = PolicySettings(bundle=tmp_path / "policy.tar.gz", verification_key=tmp_path / "key.pem")
    old, newer = (write_bundle({"roles": {"lead": [action]}}, KEY, NOW + more)
                  for more, action in enumerate(["goal:read", "goal:cancel"]))  # fmt: skip
    write(old)
    authorizer = Authorizer.from_folder(tmp_path, clock, settings)
    assert (may("goal:read"), may("goal:cancel"), may("audit:read")) == (True, False, False)
    assert set(load_roles(tmp_path, settings)) == {"lead"}

    write(newer)
    assert (may("goal:read"), may("goal:cancel")) == (False, True)
    foreign = write_bundle({"roles": {"lead": ["goal:*"]}}, ec.generate_private_key(ec.SECP256R1()), NOW + 9)
    for refused in (old, foreign, b"", newer[:-9]):
        write(refused)
        assert (may("goal:read"), may("goal:cancel")) == (False, True)
        with pytest.raises(InvalidArgumentError, match="policy bundle"):
            load_policy(tmp_path, settings)  # Nor after a start.
    write(newer)
    assert (may("goal:read"), may("goal:cancel")) == (False, True)
    (tmp_path / "policy.tar.gz").unlink()

    with pytest.raises(FailedPreconditionError, match="cannot be read"):
        load_policy(tmp_path, settings)


def test_keys_of_another_kind_or_in_the_open_are_refused(tmp_path: Path) -> None:
    private = (PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "key.pem"
    path.touch(0o600)
    path.write_bytes(KEY.private_bytes(*private))
    assert load_signing_key(path).private_numbers() == KEY.private_numbers()
    path.chmod(0o640)
    with pytest.raises(FailedPreconditionError, match="chmod 600"):
        load_signing_key(path)
    path.chmod(0o600)
    others = [Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())]
    for raw in (b"", b"no key", PUBLIC, *(other.private_bytes(*private) for other in others)):
        path.write_bytes(raw)
        with pytest.raises(InvalidArgumentError, match="private key on P-256"):
            load_signing_key(path)
    for other in others:
        path.write_bytes(other.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
        with pytest.raises(InvalidArgumentError, match="public key on P-256"):
            load_verification_key(path)
    with pytest.raises(FailedPreconditionError, match="cannot be read"):
        load_verification_key(tmp_path / "none.pem")


@pytest.mark.parametrize("table", [POLICY, ODD], ids=["the table", "odd names"])
def test_a_real_opa_takes_it_and_decides_by_it(tmp_path: Path, clock: ManualClock, table: dict[str, Any]) -> None:
    (tmp_path / "key.pem").write_bytes(PUBLIC)
    (tmp_path / "policy.tar.gz").write_bytes(write_bundle(table, KEY, int(time.time())))
    server = Opa("--verification-key", str(tmp_path / "key.pem"), "--signing-alg", "ES256", "--bundle",
                 str(tmp_path / "policy.tar.gz"))  # fmt: skip
    try:
        server.start()
        policy = parse_policy(table)
        engine = OpaEngine(policy, OpaServer(server.settings, clock))
        for case in CASES:
            decision = engine.decide(case.request)
            assert table is not POLICY or (decision.is_allowed, decision.reason) == (
                case.reason == "granted", case.reason
            )  # fmt: skip
            assert decision.reason not in ("revision_unknown", "engine_undefined", "engine_failed")
    finally:
        server.close()


@pytest.mark.parametrize("name", ["data", "rules", "manifest", "no signature", "one more", "another's signature"])
def test_a_real_opa_does_not_start_with_an_altered_one(tmp_path: Path, name: str) -> None:
    files = unpacked(RAW)
    dict(CHANGES)[name](files)
    (tmp_path / "key.pem").write_bytes(PUBLIC)
    (tmp_path / "policy.tar.gz").write_bytes(packed(list(files.items())))

    ended = subprocess.run(
        [program(), "run", "--server", "--addr", f"unix://{tmp_path}/s", "--skip-version-check", "--verification-key",
         tmp_path / "key.pem", "--signing-alg", "ES256", "--bundle", tmp_path / "policy.tar.gz"],
        capture_output=True, timeout=20, check=False,
    )  # fmt: skip

    assert ended.returncode not in (0, None)
    assert b"bundle" in ended.stderr + ended.stdout
