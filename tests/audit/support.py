"""Entries and a key for the tests of the audit log."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nexus_ray.audit.record import Entry, Kind

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def entry(number: int = 0, kind: Kind = Kind.EVENT, **changes: Any) -> Entry:
    return Entry(**{
        "operation": f"op-{number}", "kind": kind, "at": 100.0 + number, "action": "goal:read", "principal": "ada",
        "tenant": "main", **changes,
    })  # fmt: skip
