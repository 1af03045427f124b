"""The local issuer's keys: an Ed25519 key pair in the state folder, and the public keys of those before it.

Law: the private key is never readable by others, not for a moment; a key that is, is refused. Whoever only checks
tokens reads the public key set and nothing else. A key that was followed by another signs nothing any more, and is
believed until all that it signed is over.
"""

import fcntl
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nexus_ray.core.errors import DataLossError, FailedPreconditionError
from nexus_ray.core.files import SHARED, make_file, replace_file, stamp_of
from nexus_ray.security.jwk import Key, base64url, read_key, thumbprint

_PRIVATE = "issuer.key"
_PUBLIC = "jwks.json"
_UNTIL = "nexus_until"  # The member of a key that was followed by another: when it is believed no more.


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key and the id that tokens name it by (RFC 7638 thumbprint)."""

    kid: str
    private: Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class KeySet:
    """The public keys of one issuer by their ids; `until` is when those are over that were followed by others."""

    keys: dict[str, Key]
    until: dict[str, float] = field(default_factory=dict)


def load_or_create_issuer_key(folder: Path) -> SigningKey:
    """Return the folder's signing key; make it, and the public key set, where there is none.

    Raises:
        FailedPreconditionError: Others can read the key.
        DataLossError: The file is not a key.
    """
    path = folder / _PRIVATE
    if not path.exists():
        make_file(path, _pem(Ed25519PrivateKey.generate()))  # Of two, the other's key is never used.
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise FailedPreconditionError(
            f"others can read the key {path} (mode {mode:04o}): run `chmod 600 {path}`, and if it may have leaked, "
            "delete it, so that a new one is made and old tokens end"
        )
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except ValueError:
        raise DataLossError(f"{path} is not a private key; delete it and a new one is made") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise DataLossError(f"{path} is not an Ed25519 key")
    key = SigningKey(thumbprint(_public(private)), private)
    public = folder / _PUBLIC
    entries = _entries(public)
    # Where it stands there already, the rest is none of our business: it may be that another key follows just now.
    if all(entry.get("kid") != key.kid for entry in entries):
        _write_public(public, [_entry(key), *(entry for entry in entries if _UNTIL in entry)])
    return key


def rotate_issuer_key(
    folder: Path, now: float, keep_s: float, before: Callable[[str, str], None]
) -> tuple[SigningKey, SigningKey]:
    """Have another key sign from now on; return the one that signed, and the one that does.

    Args:
        folder: The state folder.
        now: Wall-clock seconds.
        keep_s: How long what the one before has signed is believed: the longest that a token lives. With 0 it ends
            now, and so does what keys before that have signed.
        before: Called with both ids before anything has happened; what it raises keeps it from happening.

    Raises:
        NexusError: As `load_or_create_issuer_key`.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # Of two that rotate at once, the second follows the first.
        old = load_or_create_issuer_key(folder)
        private = Ed25519PrivateKey.generate()
        new = SigningKey(thumbprint(_public(private)), private)
        before(old.kid, new.kid)
        kept = [{**_entry(old), _UNTIL: now + keep_s}] if keep_s > 0 else []
        if keep_s > 0:
            kept += [entry for entry in _entries(folder / _PUBLIC) if entry.get(_UNTIL, 0.0) > now]
        # First whom to believe, then who signs: so nobody meets a token whose key he could not know.
        _write_public(folder / _PUBLIC, [_entry(new), *kept])
        replace_file(folder / _PRIVATE, _pem(private))
        return old, new
    finally:
        os.close(descriptor)


class FolderKey:
    """The key of a state folder that signs now: one that was rotated is taken up with the next token."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp: object = None
        self._key: SigningKey | None = None

    def __call__(self) -> SigningKey:
        """Return it; raises what `load_or_create_issuer_key` does."""
        path = self._folder / _PRIVATE
        if not path.exists():
            load_or_create_issuer_key(self._folder)
        stamp = stamp_of(path)
        if self._key is None or stamp != self._stamp:
            self._key, self._stamp = load_or_create_issuer_key(self._folder), stamp
        return self._key


def public_keys_stamp(folder: Path) -> object:
    """Return what changes whenever the public keys of a state folder do."""
    return stamp_of(folder / _PUBLIC)


def load_key_set(folder: Path) -> KeySet:
    """Return the public keys of the folder's issuer.

    Raises:
        FailedPreconditionError: There are none.
        DataLossError: The file is not a key set.
    """
    path = folder / _PUBLIC
    try:
        keys: dict[str, Key] = {}
        until: dict[str, float] = {}
        for entry in json.loads(path.read_text())["keys"]:
            if (entry["kty"], entry["crv"], entry["use"], entry["alg"]) == ("OKP", "Ed25519", "sig", "EdDSA"):
                key = read_key(entry)
                if key is None:
                    raise ValueError("a key of ours that is none")
                keys[key.kid] = key
                if _UNTIL in entry:
                    until[key.kid] = float(entry[_UNTIL])
        return KeySet(keys, until)
    except FileNotFoundError:
        raise FailedPreconditionError(f"there are no keys in {folder}; `nexus up` makes them") from None
    except (ValueError, KeyError, TypeError):
        raise DataLossError(f"{path} is not a key set") from None


def _pem(private: Ed25519PrivateKey) -> bytes:
    kind = serialization.PrivateFormat.PKCS8
    return private.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())


def _public(private: Ed25519PrivateKey) -> dict[str, str]:
    return {"kty": "OKP", "crv": "Ed25519", "x": base64url(private.public_key().public_bytes_raw())}


def _entry(key: SigningKey) -> dict[str, Any]:
    return {**_public(key.private), "kid": key.kid, "use": "sig", "alg": "EdDSA"}


def _entries(path: Path) -> list[dict[str, Any]]:
    """Return what stands in a public key set; nothing where it is none, for then it is made anew."""
    try:
        return [entry for entry in json.loads(path.read_text())["keys"] if isinstance(entry, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write_public(path: Path, entries: list[dict[str, Any]]) -> None:
    replace_file(path, json.dumps({"keys": entries}).encode(), SHARED)
