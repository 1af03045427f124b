"""A cheap HTTP/1.1 client in a process of its own: one request after the other on each of some connections.

It sends the same bytes again and again and looks only for the end of each answer, so that what is measured is the
server. `python -m benchmarks.http_load HOST PORT CONNECTIONS SECONDS` takes the request on stdin, and prints JSON.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Load:
    """What one round of a client saw."""

    rate: float
    latencies_s: list[float]
    errors: int
    answer: str


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, ends_at: float) -> None:
        self._request = request
        self._ends_at = ends_at
        self._buffer = b""
        self._sent_at = 0.0
        self.latencies_s: list[float] = []
        self.errors = 0
        self.answer = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        found = _LENGTH.search(self._buffer, 0, head_end + 2)
        end = head_end + 4 + (int(found[1]) if found else 0)
        if len(self._buffer) < end:
            return
        self.answer, self._buffer = self._buffer[:end], self._buffer[end:]
        now = time.perf_counter()
        self.latencies_s.append(now - self._sent_at)
        self.errors += self.answer[9:10] != b"2"
        if now < self._ends_at:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.errors += time.perf_counter() < self._ends_at
        if not self.over.done():
            self.over.set_result(None)


async def _run(host: str, port: int, connections: int, seconds: float, request: bytes) -> None:
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    made = [
        (await loop.create_connection(lambda: _Connection(request, started + seconds), host, port))[1]
        for _ in range(connections)
    ]
    await asyncio.wait([one.over for one in made])
    elapsed = time.perf_counter() - started
    latencies = [latency for one in made for latency in one.latencies_s]
    found = {
        "rate": len(latencies) / elapsed, "latencies_s": latencies, "errors": sum(one.errors for one in made),
        "answer": made[0].answer.decode(errors="replace")[:300],
    }  # fmt: skip
    print(json.dumps(found))


def load(host: str, port: int, request: bytes, connections: int, seconds: float) -> Load:
    """Send `request` on `connections` for `seconds`, from another process."""
    command = [sys.executable, "-m", "benchmarks.http_load", host, str(port), str(connections), str(seconds)]
    done = subprocess.run(command, input=request, capture_output=True, check=True, timeout=seconds + 60)
    return Load(**json.loads(done.stdout))


def post(path: str, body: bytes, media_type: str, *headers: str) -> bytes:
    """Return a request."""
    lines = [f"POST {path} HTTP/1.1", "Host: fleet", f"Content-Type: {media_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.stdin.buffer.read()))
