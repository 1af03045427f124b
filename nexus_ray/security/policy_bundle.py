"""A signed policy in one file, in the format of Open Policy Agent's bundles: both engines decide by the same bytes.

Law: nothing in it counts before its signature is proved, and then only what the signature names; what OPA decides by
must be what Nexus reads. An older one than was in force is refused, whoever signed it.
Source: Open Policy Agent, "Bundle File Format" and "Signing".
"""

import contextlib
import gzip
import hashlib
import io
import json
import stat
import tarfile
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from nexus_ray.core.errors import FailedPreconditionError, InvalidArgumentError, UnauthenticatedError
from nexus_ray.core.files import SHARED, replace_file
from nexus_ray.security import jose
from nexus_ray.security.jwk import Key, base64url
from nexus_ray.security.policy import Policy, parse_policy
from nexus_ray.security.rego_engine import read_module

_MODULE, _CONTENT, _MANIFEST, _SIGNATURES = "authz.rego", "data.json", ".manifest", ".signatures.json"
_SIGNED = (_MANIFEST, _MODULE, _CONTENT)
_HEADER = {"alg": "ES256", "kid": "nexus"}
_BYTES_MAX = 4 * 1024 * 1024  # Some ten thousand bindings; unpacked, so that a small file cannot fill the memory.
_SKEW_S = 300.0  # How far ahead the clock of who signs may be.
_SEEN = "policy.seen"
_ORDER_BYTES = 32  # Of P-256: r and s of a signature are as long.


class Bundle(NamedTuple):
    """A policy that was signed, when, and how it stood in its file."""

    policy: Policy
    made_at: int
    table: dict[str, Any]


def write_bundle(table: Mapping[str, Any], key: ec.EllipticCurvePrivateKey, made_at: int) -> bytes:
    """Return the bundle of a policy as it stands in a file.

    Raises:
        InvalidArgumentError: The policy is malformed, or too large.
    """
    policy = parse_policy(table)
    manifest = {
        "revision": policy.revision, "roots": ["nexus"], "rego_version": 1, "metadata": {"made_at": made_at},
    }  # fmt: skip
    files = {
        _CONTENT: _canonical({"nexus": {"policy": policy.document, "source": table}}),
        _MODULE: read_module().encode(),
        _MANIFEST: _canonical(manifest),
    }
    claims = {"files": [_listed(name, files[name]) for name in _SIGNED], "iat": made_at}
    parts = [base64url(_canonical(part)) for part in (_HEADER, claims)]
    r, s = decode_dss_signature(key.sign(".".join(parts).encode(), ec.ECDSA(hashes.SHA256())))
    token = ".".join([*parts, base64url(r.to_bytes(_ORDER_BYTES) + s.to_bytes(_ORDER_BYTES))])
    files[_SIGNATURES] = _canonical({"signatures": [token]})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"/{name}")
            entry.size, entry.mtime = len(content), made_at
            archive.addfile(entry, io.BytesIO(content))
    if packed.tell() > _BYTES_MAX:
        raise InvalidArgumentError(f"the policy is larger than {_BYTES_MAX} bytes")
    return gzip.compress(packed.getvalue(), mtime=made_at)


def read_bundle(raw: bytes, key: ec.EllipticCurvePublicKey, now: float) -> Bundle:
    """Return the policy of a bundle that `key` signed.

    Raises:
        InvalidArgumentError: It is none, another signed it, or something in it was altered.
    """
    # 1. Four files, each once, and nothing else; not too much.
    files = _unpack(raw)
    # 2. One signature, with the one algorithm that such a key has.
    try:
        (token,) = jose.read_object(files[_SIGNATURES])["signatures"]
        parsed = jose.parse(token, _BYTES_MAX)
        if parsed.header != _HEADER:
            raise ValueError("another header")
        jose.check_signature(parsed, Key("", frozenset({"ES256"}), key), "ES256")
        claims = jose.read_object(parsed.payload)
    except (ValueError, KeyError, TypeError, UnauthenticatedError):
        raise InvalidArgumentError("its signature is not of the verification key") from None
    # 3. What was signed is what is here, no more and no less.
    if claims.get("files") != [_listed(name, files[name]) for name in _SIGNED]:
        raise InvalidArgumentError("it was altered after it was signed")
    # 4. Made for this Nexus: what OPA decides by is what Nexus reads, and by the same rules.
    try:
        content, manifest = json.loads(files[_CONTENT])["nexus"], json.loads(files[_MANIFEST])
        policy, made_at = parse_policy(content["source"]), manifest["metadata"]["made_at"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidArgumentError("it is no policy of Nexus") from None
    is_same = content["policy"] == policy.document and manifest["revision"] == policy.revision
    if not is_same or files[_MODULE] != read_module().encode():
        raise InvalidArgumentError("another version of Nexus made it: `nexus policy bundle` makes it anew")
    # 5. Of a time that has come.
    if type(made_at) is not int or not 0 <= made_at <= now + _SKEW_S:
        raise InvalidArgumentError("it was made in the future")
    return Bundle(policy, made_at, content["source"])


def load_bundle(path: Path, key_path: Path, folder: Path, *, is_noted: bool = True) -> Policy:
    """Return the policy of a bundle file, and remember in the state folder how old it is, unless told not to.

    Raises:
        FailedPreconditionError: A file cannot be read.
        InvalidArgumentError: See `read_bundle`; or an older one than was loaded before.
    """
    try:
        raw = _read(path)
        found = read_bundle(raw, load_verification_key(key_path), time.time())
        seen = _last_seen(folder)
        if found.made_at < seen:
            raise InvalidArgumentError(
                f"it is older than one that was in force, as {folder / _SEEN} says; `nexus policy bundle` makes it anew"
            )
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"the policy bundle {path}: {error.message}") from None
    if is_noted and found.made_at > seen:
        replace_file(folder / _SEEN, str(found.made_at).encode(), SHARED)
    return found.policy


def load_verification_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Return the public key of who signs bundles.

    Raises:
        FailedPreconditionError: It cannot be read.
        InvalidArgumentError: It is no such key.
    """
    key = None
    with contextlib.suppress(ValueError, UnsupportedAlgorithm):
        key = serialization.load_pem_public_key(_read(path))
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidArgumentError(f"{path} is no public key on P-256, PEM")
    return key


def load_signing_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the private key that signs bundles.

    Raises:
        FailedPreconditionError: It cannot be read, or others can read it.
        InvalidArgumentError: It is no such key.
    """
    raw = _read(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise FailedPreconditionError(f"others can read the key {path}: run `chmod 600 {path}`")
    key = None
    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = serialization.load_pem_private_key(raw, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidArgumentError(f"{path} is no private key on P-256, PEM, without a password")
    return key


def _last_seen(folder: Path) -> int:
    try:
        return int((folder / _SEEN).read_text())
    except FileNotFoundError:
        return 0
    except (OSError, ValueError):
        raise InvalidArgumentError(f"{folder / _SEEN}, which says how old the last was, cannot be read") from None


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            raw = file.read(_BYTES_MAX + 1)
    except OSError as error:
        raise FailedPreconditionError(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > _BYTES_MAX:
        raise InvalidArgumentError(f"{path} is larger than {_BYTES_MAX} bytes")
    return raw


def _unpack(raw: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
            unpacked = packed.read(_BYTES_MAX + 1)
        if len(unpacked) > _BYTES_MAX:
            raise InvalidArgumentError("it is too large")
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
            for entry in archive:
                name = entry.name.removeprefix("/")
                # A sparse file may say that it is as large as it likes.
                is_plain = entry.isreg() and not entry.issparse() and entry.size <= len(unpacked)
                file = archive.extractfile(entry) if is_plain else None
                if file is None or name in found or name not in {*_SIGNED, _SIGNATURES}:
                    raise InvalidArgumentError("it holds what does not belong there")
                found[name] = file.read()
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError):
        raise InvalidArgumentError("it is no bundle") from None
    if set(found) != {*_SIGNED, _SIGNATURES}:
        raise InvalidArgumentError("it is not signed, or not whole")
    return found


def _listed(name: str, content: bytes) -> dict[str, str]:
    # OPA hashes what is JSON as it means it, in a form of its own; ours is written in that form, byte for byte.
    return {"name": name, "hash": hashlib.sha256(content).hexdigest(), "algorithm": "SHA-256"}


def _canonical(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").encode()
