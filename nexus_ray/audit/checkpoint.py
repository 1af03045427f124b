"""Checkpoints: signed notes that say how many records a log has and what the root of its tree is.

Law: pure. The text is exactly that of the C2SP specifications `tlog-checkpoint` and `signed-note`, with Ed25519, so
that tools of others read it.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nexus_ray.audit.tree import HASH_BYTES

_ED25519 = b"\x01"
_DASH = "\u2014 "  # What a signature's line begins with.
_TEXT_BYTES_MAX = 4096


class BadCheckpoint(ValueError):
    """A text that is not a checkpoint, or is not signed by the key."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint says. `origin` names the log; two logs never have the same."""

    origin: str
    size: int
    root: bytes

    def note(self) -> str:
        """Return the text that is signed."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n"


def sign_checkpoint(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> str:
    """Return the signed note; the key goes by the name of the log."""
    note = checkpoint.note()
    public = key.public_key()
    signature = _base64(key_id(checkpoint.origin, public) + key.sign(note.encode()))
    return f"{note}\n{_DASH}{checkpoint.origin} {signature}\n"


def open_checkpoint(text: str, origin: str, key: Ed25519PublicKey) -> Checkpoint:
    """Return what a checkpoint of this log says, if the key signed it.

    Raises:
        BadCheckpoint: It is none, or of another log, or not signed by this key.
    """
    if len(text) > _TEXT_BYTES_MAX:
        raise BadCheckpoint("too long")
    note, gap, signatures = text.rpartition("\n\n")
    note += "\n"
    checkpoint = _parsed(note)
    if not gap or not signatures.endswith("\n") or checkpoint.origin != origin:
        raise BadCheckpoint("not a checkpoint of this log")
    wanted = key_id(origin, key)
    for line in signatures.removesuffix("\n").split("\n"):
        name, _, encoded = line.removeprefix(_DASH).rpartition(" ")
        signature = _decoded(encoded)
        # Other signatures may stand there as well: of witnesses, or of a key that follows this one.
        if line.startswith(_DASH) and name == origin and signature[:4] == wanted:
            try:
                key.verify(signature[4:], note.encode())
            except InvalidSignature:
                raise BadCheckpoint("the signature is not good") from None
            return checkpoint
    raise BadCheckpoint("not signed by this key")


def key_id(name: str, key: Ed25519PublicKey) -> bytes:
    """Return the four bytes by which a signature names its key."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + key.public_bytes_raw()).digest()[:4]


def verifier_key(name: str, key: Ed25519PublicKey) -> str:
    """Return the key as one line for those who verify."""
    return f"{name}+{key_id(name, key).hex()}+{_base64(_ED25519 + key.public_bytes_raw())}"


def _parsed(note: str) -> Checkpoint:
    lines = note.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
        raise BadCheckpoint("not a checkpoint")
    origin, size, root = lines[:3]  # What follows are extensions, which only those read who know them.
    hashed = _decoded(root)
    if not (size.isascii() and size.isdecimal() and str(int(size)) == size) or len(hashed) != HASH_BYTES:
        raise BadCheckpoint("not a checkpoint")
    return Checkpoint(origin, int(size), hashed)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _decoded(text: str) -> bytes:
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadCheckpoint("not base64") from None
    if _base64(value) != text:
        raise BadCheckpoint("not base64")  # Another spelling of the same bytes.
    return value
