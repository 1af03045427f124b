"""The local issuer's keys: an Ed25519 key pair in the state folder.

Law: the private key is never readable by others, not for a moment; a key that is, is refused. Whoever only checks
tokens reads the public key set and nothing else.
"""

import json
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nexus_ray.core.errors import DataLossError, FailedPreconditionError
from nexus_ray.security.jwk import Key, base64url, read_key, thumbprint

_PRIVATE = "issuer.key"
_PUBLIC = "jwks.json"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key and the id that tokens name it by (RFC 7638 thumbprint)."""

    kid: str
    private: Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class KeySet:
    """The public keys of one issuer by their ids."""

    keys: dict[str, Key]


def load_or_create_issuer_key(folder: Path) -> SigningKey:
    """Return the folder's signing key; make it, and the public key set, where there is none.

    Raises:
        FailedPreconditionError: Others can read the key.
        DataLossError: The file is not a key.
    """
    path = folder / _PRIVATE
    if not path.exists():
        _create(path)
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
    x = base64url(private.public_key().public_bytes_raw())
    public_key = {"kty": "OKP", "crv": "Ed25519", "x": x}
    key = SigningKey(thumbprint(public_key), private)
    text = json.dumps({"keys": [{**public_key, "kid": key.kid, "use": "sig", "alg": "EdDSA"}]})
    public = folder / _PUBLIC
    if not public.exists() or public.read_text() != text:
        temporary = public.with_name(f"{_PUBLIC}.{secrets.token_hex(8)}.new")
        temporary.write_text(text)
        os.replace(temporary, public)
    return key


def load_key_set(folder: Path) -> KeySet:
    """Return the public keys of the folder's issuer.

    Raises:
        FailedPreconditionError: There are none.
        DataLossError: The file is not a key set.
    """
    path = folder / _PUBLIC
    try:
        keys = {}
        for entry in json.loads(path.read_text())["keys"]:
            if (entry["kty"], entry["crv"], entry["use"], entry["alg"]) == ("OKP", "Ed25519", "sig", "EdDSA"):
                key = read_key(entry)
                if key is None:
                    raise ValueError("a key of ours that is none")
                keys[key.kid] = key
        return KeySet(keys)
    except FileNotFoundError:
        raise FailedPreconditionError(f"there are no keys in {folder}; `nexus up` makes them") from None
    except (ValueError, KeyError, TypeError):
        raise DataLossError(f"{path} is not a key set") from None


def _create(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # Not named by the process id: in a container that is the same after a crash, and so would be what it left.
    temporary = path.with_name(f"{_PRIVATE}.{secrets.token_hex(8)}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)  # Whoever is first wins; the other's key is never used.
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)
