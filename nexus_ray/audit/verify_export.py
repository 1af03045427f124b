"""Verifies an export of a Nexus audit log, or a receipt; one file that stands alone, to be read before it is trusted.

    python verify_export.py EXPORT --key verifier.key [--known CHECKPOINT ...]
    python verify_export.py --receipt RECEIPT --key verifier.key

Law: it needs Python and `cryptography` and nothing of Nexus, and believes nothing in the export: the key comes from
somewhere else, and a checkpoint that was kept elsewhere shows a log that was cut short or begun anew.

An export is lines. The first names the log and counts its records; each of the next is one record, byte for byte as it
was hashed, or `{"emptied":HASH,"seq":N}` where its time was over; then come the checkpoints, the last one of all of it.
"""

import argparse
import base64
import binascii
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FORMAT = "nexus-audit/1"
_EMPTY_ROOT = hashlib.sha256(b"").digest()


class Refused(ValueError):
    """What was given cannot be verified at all."""


@dataclass(frozen=True)
class Key:
    """The key of a log and the log's name."""

    origin: str
    identity: bytes
    public: Ed25519PublicKey


@dataclass
class Report:
    """What was found: nothing in `findings` is what should be."""

    findings: list[str] = field(default_factory=list)
    records: int = 0
    emptied: int = 0
    checkpoints: int = 0
    open_intents: list[int] = field(default_factory=list)


def read_key(text: str) -> Key:
    """Read a verifier key: `NAME+IDENTITY+BASE64`, as C2SP's signed notes have it."""
    try:
        name, identity, encoded = text.strip().split("+", 2)
        raw = base64.b64decode(encoded, validate=True)
        key = Key(name, bytes.fromhex(identity), Ed25519PublicKey.from_public_bytes(raw[1:]))
    except (ValueError, binascii.Error):
        raise Refused("this is not a verifier key") from None
    if raw[:1] != b"\x01" or hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4] != key.identity:
        raise Refused("this is not a verifier key")
    return key


def read_checkpoint(text: str, key: Key) -> tuple[int, bytes]:
    """Return size and root of a checkpoint that the key signed."""
    note, gap, signatures = text.rpartition("\n\n")
    lines = note.split("\n")
    if not gap or len(lines) < 3 or lines[0] != key.origin:
        raise Refused("it is not a checkpoint of this log")
    for line in signatures.split("\n"):
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.rpartition(" ")
        try:
            signature = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            continue
        is_plain = base64.b64encode(signature).decode() == encoded  # Not another spelling of the same bytes.
        if is_plain and dash == "\u2014" and name == key.origin and signature[:4] == key.identity:
            try:
                key.public.verify(signature[4:], f"{note}\n".encode())
                return int(lines[1]), base64.b64decode(lines[2], validate=True)
            except (InvalidSignature, ValueError):
                raise Refused("its signature is not good") from None
    raise Refused("it is not signed by this key")


def verify_export(lines: Iterable[bytes], key: Key, known: Sequence[str] = ()) -> Report:
    """Verify an export, given as its lines without their ends, against checkpoints that were kept elsewhere."""
    report = Report()
    following = iter(lines)
    header = _object(next(following, b""))
    size = header.get("size")
    if set(header) != {"export", "origin", "size"} or header["export"] != FORMAT or type(size) is not int or size < 0:
        raise Refused("this is not an export of an audit log")
    if header["origin"] != key.origin:
        report.findings.append("the export is of another log than the key")
    tree = _Tree()
    texts = _records(following, size, tree, report)
    signed = _checkpoints(texts, key, tree, report)
    if not signed or signed[-1] != size:
        report.findings.append(f"no checkpoint is signed over all {size} records: some were taken away or added")
    for text in known:
        try:
            known_size, root = read_checkpoint(text, key)
        except Refused as error:
            report.findings.append(f"a checkpoint that was kept elsewhere: {error}")
            continue
        if known_size > tree.size:
            report.findings.append(f"the log was cut short: it had {known_size} records and now has {tree.size}")
        elif tree.root(known_size) != root:
            report.findings.append(f"the log was begun anew: its first {known_size} records were others")
    return report


def _records(lines: Iterable[bytes], size: int, tree: "_Tree", report: Report) -> list[bytes]:
    """Verify the records; return the lines after them."""
    previous = bytes(32)
    operations: dict[tuple[str, str], int] = {}
    emptied: list[int] = []
    allowed: list[tuple[int, int]] = []
    after: list[bytes] = []
    for line in lines:
        fields = _object(line)
        if "checkpoint" in fields or tree.size == size:
            after.append(line)
            continue
        seq = tree.size
        if set(fields) == {"emptied", "seq"}:
            if not _is_canonical(line, fields):
                report.findings.append(f"record {seq}: not as it was written")
            emptied.append(seq)
            digest = _hash_of(fields["emptied"])
        else:
            digest = hashlib.sha256(b"\x00" + line).digest()
            if fields.get("previous") != previous.hex():
                report.findings.append(f"record {seq}: it does not name the record before it")
            _operation(fields, seq, operations, report)
            allowed += _allowances(fields)
        if fields.get("seq") != seq or isinstance(fields.get("seq"), bool):
            report.findings.append(f"record {seq}: it says that it is record {fields.get('seq')}")
        tree.add(digest)
        previous = digest
    if tree.size != size:
        report.findings.append(f"the export has {tree.size} records and says that it has {size}")
    may = {seq for low, high in allowed for seq in range(low, min(high + 1, size))}
    report.findings += [f"record {seq}: emptied, and no record of retention says so" for seq in emptied
                        if seq not in may]  # fmt: skip
    report.records, report.emptied = tree.size, len(emptied)
    ended = {operation for operation, kind in operations if kind == "outcome"}
    report.open_intents = [seq for (operation, kind), seq in operations.items()
                           if kind == "intent" and operation not in ended]  # fmt: skip
    return after


def _operation(fields: dict[str, Any], seq: int, operations: dict[tuple[str, str], int], report: Report) -> None:
    name = str(fields.get("operation")), str(fields.get("kind"))
    if name in operations:
        report.findings.append(f"record {seq}: the same as record {operations[name]}")
    operations[name] = seq


def _allowances(fields: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the stretches that a record of retention says it emptied; only of records before it."""
    if fields.get("action") != "audit:retain" or fields.get("retention") != "forever":
        return []
    try:
        return [(int(low), min(int(high), int(fields["seq"]) - 1)) for low, high in fields["facts"]["emptied"]]
    except (KeyError, TypeError, ValueError):
        return []


def _checkpoints(lines: Iterable[bytes], key: Key, tree: "_Tree", report: Report) -> list[int]:
    """Verify the checkpoints; return their sizes."""
    sizes: list[int] = []
    for number, line in enumerate(lines):
        fields = _object(line)
        if set(fields) != {"checkpoint"} or not _is_canonical(line, fields):
            report.findings.append(f"after the records: line {number} is not a checkpoint")
            continue
        try:
            size, root = read_checkpoint(str(fields["checkpoint"]), key)
        except Refused as error:
            report.findings.append(f"checkpoint {number}: {error}")
            continue
        if sizes and size <= sizes[-1]:
            report.findings.append(f"checkpoint {number}: it goes back from {sizes[-1]} records to {size}")
        if size > tree.size or tree.root(size) != root:
            report.findings.append(f"checkpoint {number}: its {size} records were others than these")
        sizes.append(size)
    report.checkpoints = len(sizes)
    return sizes


def verify_receipt(receipt: dict[str, Any], key: Key) -> list[str]:
    """Verify that a record stands in the log; return what is wrong."""
    try:
        record = str(receipt["record"]).encode()
        index, path = json.loads(record)["seq"], [bytes.fromhex(one) for one in receipt["path"]]
        size, root = read_checkpoint(str(receipt["checkpoint"]), key)
    except Refused as error:
        return [f"the checkpoint: {error}"]
    except (KeyError, TypeError, ValueError):
        return ["this is not a receipt"]
    if type(index) is not int or not 0 <= index < size:
        return ["the checkpoint is older than the record"]
    # RFC 9162, 2.1.3.2.
    fn, sn, r = index, size - 1, hashlib.sha256(b"\x00" + record).digest()
    for p in path:
        if sn == 0:
            return ["the path is too long"]
        if fn & 1 or fn == sn:
            r = _node(p, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = _node(r, p)
        fn, sn = fn >> 1, sn >> 1
    return [] if sn == 0 and r == root else ["the record is not in the log that was signed"]


class _Tree:
    """The Merkle tree of RFC 9162 over the hashes of the records; remembers them all, 32 bytes each."""

    def __init__(self) -> None:
        self._hashes: list[bytes] = []
        self._at = 0
        self._peaks: list[tuple[int, bytes]] = []  # Complete subtrees of the first `_at` records: level and hash.

    @property
    def size(self) -> int:
        return len(self._hashes)

    def add(self, digest: bytes) -> None:
        self._hashes.append(digest)

    def root(self, size: int) -> bytes:
        if size < self._at:
            self._at, self._peaks = 0, []
        while self._at < size:
            level, digest = 0, self._hashes[self._at]
            while self._peaks and self._peaks[-1][0] == level:
                digest = _node(self._peaks.pop()[1], digest)
                level += 1
            self._peaks.append((level, digest))
            self._at += 1
        found = b""
        for _, digest in reversed(self._peaks):
            found = _node(digest, found) if found else digest
        return found or _EMPTY_ROOT


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _hash_of(text: Any) -> bytes:
    try:
        return bytes.fromhex(text)
    except (TypeError, ValueError):
        return b""


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_canonical(line: bytes, fields: dict[str, Any]) -> bool:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode() == line


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify what the command line names; 0 where all is in order, 1 where not, 2 where nothing can be said."""
    parser = argparse.ArgumentParser(description="Verify an export of a Nexus audit log, or a receipt.")
    parser.add_argument("export", nargs="?", type=Path, help="what `nexus audit export` wrote")
    parser.add_argument("--key", type=Path, required=True, help="the log's verifier key, from a source you trust")
    parser.add_argument("--known", type=Path, action="append", default=[], help="a checkpoint that you kept")
    parser.add_argument("--receipt", type=Path, help="a receipt, instead of an export")
    given = parser.parse_args(arguments)
    if (given.export is None) == (given.receipt is None):
        parser.error("give an export or a receipt")
    try:
        key = read_key(given.key.read_text(encoding="utf-8"))
        if given.receipt is not None:
            findings = verify_receipt(_object(given.receipt.read_bytes()), key)
            told = "the record stands in the log"
        else:
            known = [path.read_text(encoding="utf-8") for path in given.known]
            with given.export.open("rb") as file:
                report = verify_export((line.removesuffix(b"\n") for line in file), key, known)
            findings = report.findings
            told = (f"{report.records} records, {report.emptied} of them emptied by retention, {report.checkpoints} "
                    f"checkpoints, {len(report.open_intents)} intents without an outcome")  # fmt: skip
    except (Refused, OSError, UnicodeDecodeError) as error:
        print(f"cannot verify: {error}", file=sys.stderr)
        return 2
    for finding in findings:
        print(finding)
    print(f"NOT in order: {len(findings)} findings" if findings else f"in order: {told}")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
