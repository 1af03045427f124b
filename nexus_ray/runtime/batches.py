"""Many goals from a client in as few requests as they need; the other half of `POST /v1/goals:batch`.

Law: every line gets a key before it is sent, so a request that was cut off is sent again and nothing is doubled.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from nexus_ray.core.ids import new_id
from nexus_ray.runtime.client import Connection

_LINES_MAX = 1000  # What a front door takes at once, unless it is set otherwise.
_BYTES_MAX = 4 * 1024 * 1024  # Half of what it takes.
_TIMEOUT_S = 60.0


def submit_batch(fleet: Connection, lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """Submit goals, one JSON object a line; yield for each line in order what became of it.

    `{"line": 1, "id": …, "is_new": …}` where it is on disk, or `{"line": 1, "problem": {…}}` where it was refused.

    Raises:
        NexusError: A request was refused as a whole, or the fleet is not reachable; what was yielded stands.
    """
    begun = 0
    for some in _pieces([_with_key(line) for line in lines]):
        response = fleet.send(  # Of this package, as the connection is.
            "POST", "/v1/goals:batch", content=b"\n".join(some), headers={"Content-Type": "application/x-ndjson"},
            timeout=_TIMEOUT_S,
        )  # fmt: skip
        for text in response.content.splitlines():
            found: dict[str, Any] = orjson.loads(text)
            yield {**found, "line": begun + found["line"]}
        begun += len(some)


def _with_key(line: bytes) -> bytes:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return line  # The fleet says what is wrong with it.
    if not isinstance(value, dict) or value.get("idempotency_key"):
        return line
    return orjson.dumps({**value, "idempotency_key": new_id("key")})


def _pieces(lines: Sequence[bytes]) -> Iterator[list[bytes]]:
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and (len(piece) == _LINES_MAX or size + len(line) > _BYTES_MAX):
            yield piece
            piece, size = [], 0
        piece.append(line)
        size += len(line) + 1
    if piece:
        yield piece
