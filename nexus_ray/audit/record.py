"""Records of the audit log: what happened, as canonical bytes that name the record before.

Law: pure. The bytes are what is hashed, kept, exported and proved; nothing is ever encoded a second time.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from nexus_ray.audit.tree import leaf_hash
from nexus_ray.core.errors import InvalidArgumentError

VERSION = 1
GENESIS = bytes(32)
"""What the first record names as the hash of the one before it."""
_TEXT_CHARACTERS_MAX = 400  # Ids, names and addresses; a longer one is an attempt to fill the disk.
_FACTS_BYTES_MAX = 16_384  # A retention record names every stretch that it emptied.


class Kind(StrEnum):
    """An intent stands before an operation and an outcome after it; an event is its own outcome."""

    INTENT = "intent"
    OUTCOME = "outcome"
    EVENT = "event"


class Retention(StrEnum):
    """How long a record is kept in clear; each is a setting. What is `FOREVER` shows that the rest was in order."""

    ACCESS = "access"
    CHANGE = "change"
    ADMINISTRATION = "administration"
    FOREVER = "forever"


@dataclass(frozen=True, slots=True)
class Entry:
    """What happened, before it has its place in the log.

    `operation` joins an intent with its outcome and names the entry together with `kind`: given twice, it stands once.
    `at` is wall-clock seconds. `source` is where the caller was, `outcome` is `ok` or an error's code. `trace`, `goal`
    and `request` are ids, empty where there are none; `facts` are a few more, never a payload or a secret.
    """

    operation: str
    kind: Kind
    at: float
    action: str
    retention: Retention = Retention.CHANGE
    principal: str = ""
    tenant: str = ""
    session: str = ""
    source: str = ""
    resource: str = ""
    decision: str = ""
    outcome: str = ""
    reason: str = ""
    trace: str = ""
    goal: str = ""
    request: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


_TEXTS = (
    "operation", "action", "principal", "tenant", "session", "source", "resource", "decision", "outcome", "reason",
    "trace", "goal", "request",
)  # fmt: skip
_texts_of = operator.attrgetter(*_TEXTS)


@dataclass(frozen=True, slots=True)
class Record:
    """A record in its place: number (from 0), leaf hash, and its bytes, None where only the hash is left."""

    seq: int
    hash: bytes
    body: bytes | None

    @property
    def fields(self) -> dict[str, Any]:
        """What it says; only its number where retention has emptied it."""
        if self.body is None:
            return {"seq": self.seq, "emptied": self.hash.hex()}
        found: dict[str, Any] = orjson.loads(self.body)
        return found


def check_entry(entry: Entry) -> None:
    """Refuse an entry that cannot be kept.

    Raises:
        InvalidArgumentError: A text is too long, or the facts are too many or cannot be written as JSON.
    """
    texts = _texts_of(entry)
    if not entry.operation or max(map(len, texts)) > _TEXT_CHARACTERS_MAX:
        raise InvalidArgumentError(f"a text of an audit entry is at most {_TEXT_CHARACTERS_MAX} characters")
    try:
        size_bytes = len(orjson.dumps(dict(entry.facts))) if entry.facts else 0
        "".join(texts).encode()
    except (TypeError, UnicodeEncodeError):
        raise InvalidArgumentError("an audit entry is text and JSON") from None
    if size_bytes > _FACTS_BYTES_MAX:
        raise InvalidArgumentError(f"the facts of an audit entry are at most {_FACTS_BYTES_MAX} bytes")


def seal(entry: Entry, seq: int, previous: bytes) -> Record:
    """Give an entry its place: after the record whose leaf hash is `previous`."""
    fields: dict[str, Any] = {
        "v": VERSION, "seq": seq, "previous": previous.hex(), "kind": entry.kind.value, "at": round(entry.at, 6),
        "retention": entry.retention.value,
    }  # fmt: skip
    # Sorted, and without what is empty: the same entry has one spelling, and an auditor's page is short.
    for name, value in zip(_TEXTS, _texts_of(entry), strict=True):
        if value:
            fields[name] = value
    if entry.facts:
        fields["facts"] = dict(entry.facts)
    body = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    return Record(seq, leaf_hash(body), body)
