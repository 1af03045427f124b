"""Identifiers: short, sortable by time, safe in URLs and file names.

Law: an id says what it names (`goal-…`, `host-…`) and never carries anything secret.
It is deliberately not parsed back for its time: the ledger holds the times.
"""

import hashlib
import secrets
import time

# Crockford's base 32: no I, L, O or U, so an id read over the telephone survives.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_TIME_CHARACTERS = 10
_RANDOM_CHARACTERS = 12


def new_id(prefix: str) -> str:
    """Make a new id: `prefix-` and 22 characters, the first ten of them milliseconds since 1970.

    Sixty random bits make two ids of the same millisecond collide once in 10^18 pairs.
    """
    number = (time.time_ns() // 1_000_000 << 60) | secrets.randbits(60)
    return f"{prefix}-{_base32(number, _TIME_CHARACTERS + _RANDOM_CHARACTERS)}"


def digest(*parts: bytes) -> str:
    """Return 32 hexadecimal characters that name `parts` by content; where one part ends matters."""
    lengths = ",".join([str(len(part)) for part in parts])
    return hashlib.blake2b(f"{lengths};".encode() + b"".join(parts), digest_size=16).hexdigest()


def _base32(number: int, length: int) -> str:
    characters = []
    for _ in range(length):
        characters.append(_ALPHABET[number & 31])
        number >>= 5
    return "".join(reversed(characters))
