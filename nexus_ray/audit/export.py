"""An export of the whole log, and receipts, as the stand-alone verifier reads them.

Law: a record goes out byte for byte as it was hashed.
"""

from collections.abc import AsyncIterator
from typing import Any

import orjson

from nexus_ray.audit.ports import AuditLog, Proof, RecordQuery
from nexus_ray.audit.record import Record
from nexus_ray.audit.verify_export import FORMAT

_PAGE = 1000


async def export(log: AuditLog) -> AsyncIterator[bytes]:
    """Yield the lines of an export, each with its end: the log as it is when this begins."""
    newest = await log.checkpoint()
    origin, size = newest.split("\n")[0], int(newest.split("\n")[1])
    yield _line({"export": FORMAT, "origin": origin, "size": size})
    after = -1
    while after < size - 1:
        query = RecordQuery(after=after, before=size, limit=_PAGE, is_oldest_first=True)
        page = await log.records(query)
        yield b"".join(_bytes_of(record) + b"\n" for record in page)
        after = page[-1].seq
    after_size = -1
    while checkpoints := await log.checkpoints(after_size, _PAGE):
        sizes = [int(text.split("\n")[1]) for text in checkpoints]
        yield b"".join(_line({"checkpoint": text}) for text, at in zip(checkpoints, sizes, strict=True) if at <= size)
        after_size = sizes[-1]


def receipt(proof: Proof) -> dict[str, Any]:
    """Return a proof as a receipt: the record as text, to the letter as it was hashed, and what proves it."""
    return {
        "record": _bytes_of(proof.record).decode(), "path": [one.hex() for one in proof.path],
        "checkpoint": proof.checkpoint,
    }  # fmt: skip


def _bytes_of(record: Record) -> bytes:
    if record.body is not None:
        return record.body
    return orjson.dumps({"emptied": record.hash.hex(), "seq": record.seq})


def _line(fields: dict[str, Any]) -> bytes:
    return orjson.dumps(fields) + b"\n"
