"""The issuer's keys: one pair for a folder, and the private one for nobody's eyes."""

import base64
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey

from nexus_ray.core.errors import DataLossError, FailedPreconditionError
from nexus_ray.observe.logs import mask_secrets
from nexus_ray.security.keys import load_key_set, load_or_create_issuer_key

PRIVATE = "issuer.key"


def test_the_private_key_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        key = load_or_create_issuer_key(tmp_path)
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / PRIVATE).stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [PRIVATE, "jwks.json"]
    assert load_or_create_issuer_key(tmp_path).kid == key.kid


def test_the_public_set_holds_the_thumbprint_and_no_secret(tmp_path: Path) -> None:
    key = load_or_create_issuer_key(tmp_path)

    (entry,) = json.loads((tmp_path / "jwks.json").read_text())["keys"]

    canonical = f'{{"crv":"Ed25519","kty":"OKP","x":"{entry["x"]}"}}'
    expected = base64.urlsafe_b64encode(hashlib.sha256(canonical.encode()).digest()).rstrip(b"=").decode()
    assert entry["kid"] == key.kid == expected and "d" not in entry
    public = load_key_set(tmp_path).keys[key.kid]
    public.verify("EdDSA", key.private.sign(b"x"), b"x")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_key_that_others_can_read_is_refused_until_they_cannot(tmp_path: Path, mode: int) -> None:
    load_or_create_issuer_key(tmp_path)
    path = tmp_path / PRIVATE
    path.chmod(mode)

    with pytest.raises(FailedPreconditionError) as caught:
        load_or_create_issuer_key(tmp_path)
    assert f"chmod 600 {path}" in str(caught.value)

    path.chmod(0o600)
    load_or_create_issuer_key(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / PRIVATE
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(DataLossError):
        load_or_create_issuer_key(tmp_path)

    assert path.read_bytes() == content


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / PRIVATE
    path.write_bytes(
        Ed448PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    path.chmod(0o600)

    with pytest.raises(DataLossError):
        load_or_create_issuer_key(tmp_path)


def test_processes_that_make_a_key_at_once_agree_on_one(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom nexus_ray.security.keys import load_or_create_issuer_key\n"
        "print('ready', flush=True); sys.stdin.read()\nprint(load_or_create_issuer_key(Path(sys.argv[1])).kid)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    makers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for maker in makers:
        assert maker.stdout is not None and maker.stdout.readline() == "ready\n"
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.close()
        maker.stdin = None
    kids = {maker.communicate(timeout=20)[0].strip() for maker in makers}

    assert kids == set(load_key_set(tmp_path).keys) == {load_or_create_issuer_key(tmp_path).kid}
    assert sorted(path.name for path in tmp_path.iterdir()) == [PRIVATE, "jwks.json"]


def test_what_a_crash_left_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / f"{PRIVATE}.{os.getpid()}.new").write_bytes(b"torn")

    assert load_or_create_issuer_key(tmp_path).kid in load_key_set(tmp_path).keys


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"keys":1}', '{"keys":[1]}', '{"keys":[{}]}', "\udcff",
     '{"keys":[{"kty":"OKP","crv":"Ed25519","use":"sig","alg":"EdDSA","x":"AA","kid":"k"}]}'],
)  # fmt: skip
def test_what_is_no_key_set_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "jwks.json").write_bytes(content.encode("utf-8", "surrogateescape"))

    with pytest.raises(DataLossError):
        load_key_set(tmp_path)


def test_keys_of_other_kinds_are_not_taken(tmp_path: Path) -> None:
    load_or_create_issuer_key(tmp_path)
    path = tmp_path / "jwks.json"
    (entry,) = json.loads(path.read_text())["keys"]
    others = [{**entry, "kid": "enc", "use": "enc"}, {**entry, "kid": "hs", "alg": "HS256"}]
    path.write_text(json.dumps({"keys": [entry, *others]}))

    assert set(load_key_set(tmp_path).keys) == {entry["kid"]}


def test_no_keys_at_all_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError):
        load_key_set(tmp_path)


def test_no_secret_reaches_a_log_line() -> None:
    event = {
        "event": "x", "token": "s", "Authorization": "s", "client_secret": "s", "access_token": "s", "api-key": "s",
        "headers": {"authorization": "s", "accept": "json"}, "items": [{"password": "s"}, "plain"], "tokens_left": 3,
    }  # fmt: skip

    masked = mask_secrets(None, "info", event)

    assert masked == {
        "event": "x", "token": "***", "Authorization": "***", "client_secret": "***", "access_token": "***",
        "api-key": "***", "headers": {"authorization": "***", "accept": "json"},
        "items": [{"password": "***"}, "plain"], "tokens_left": 3,
    }  # fmt: skip
