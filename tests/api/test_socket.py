"""The front door behind a real socket and a real parser: what a request looks like before anybody has tidied it."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn

from nexus_ray.config import RuntimeSettings
from tests.api.conftest import Door, submit


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # Signals are the test runner's.


@contextlib.asynccontextmanager
async def listening(door: Door) -> AsyncIterator[int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(door.app, lifespan="off", ws="none", log_config=None, access_log=False)
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await door.front.access.revocations.look()  # So that the first request is taken in without a wait.
    while not server.started:
        await asyncio.sleep(0)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        server.force_exit = True
        await task


async def ask(port: int, request: bytes) -> tuple[int, bytes]:
    """Send bytes as they are; return the status and everything that came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await writer.drain()
    writer.write_eof()
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer


LINES = (
    "GET /v1/goals HTTP/1.1", "GET //v1/goals HTTP/1.1", "GET /v1%2Fgoals HTTP/1.1", "GET /v1/./goals HTTP/1.1",
    "GET /health/../v1/goals HTTP/1.1", "GET /health/%2e%2e/v1/goals HTTP/1.1", "GET /HEALTH HTTP/1.1",
    "GET http://fleet/v1/goals HTTP/1.1", "HEAD /v1/goals HTTP/1.1", "OPTIONS * HTTP/1.1", "TRACE / HTTP/1.1",
    "GET /v1/goals?x=/health HTTP/1.1", "GET /v1/goals#/health HTTP/1.1", "GET /health%00 HTTP/1.1",
    "GET /health/ HTTP/1.1", "GET /health;/ HTTP/1.1", "GET /v1/goals HTTP/1.0", "CONNECT fleet:80 HTTP/1.1",
)  # fmt: skip


async def test_no_request_line_gets_round_the_gate(door: Door) -> None:
    tail = "\r\nHost: fleet\r\nConnection: close\r\n\r\n"

    async with listening(door) as port:
        answers = {line: (await ask(port, f"{line}{tail}".encode()))[0] for line in LINES}
        control, _ = await ask(port, f"GET /health HTTP/1.1{tail}".encode())

    assert {line: status for line, status in answers.items() if status not in (400, 401)} == {}
    assert control == 200


async def test_a_body_of_two_lengths_is_never_read_as_two_requests(door: Door) -> None:
    inner = b"GET /health HTTP/1.1\r\nHost: fleet\r\n\r\n"
    request = (
        b"POST /v1/goals HTTP/1.1\r\nHost: fleet\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: close\r\n\r\n0\r\n\r\n" + inner
    )

    async with listening(door) as port:
        status, answer = await ask(port, request)

    assert status in (400, 401)
    assert b" 200 " not in answer


async def test_a_body_that_only_shows_its_size_while_it_is_read_is_cut_off(doors: Callable[..., Door]) -> None:
    door = doors(runtime=RuntimeSettings(body_bytes_max=1000))
    head = (
        f"POST /v1/goals HTTP/1.1\r\nHost: fleet\r\nAuthorization: Bearer {door.token('operator')}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    ).encode()

    async with listening(door) as port:
        status, answer = await ask(
            port, head + b"3e8\r\n" + b"x" * 1000 + b"\r\n3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n"
        )

    assert status == 413
    assert b"application/problem+json" in answer


async def test_events_arrive_while_the_goal_runs_and_a_reader_that_leaves_frees_its_place(
    doors: Callable[..., Door],
) -> None:
    door = doors(runtime=RuntimeSettings(requests_in_flight_max=1))
    async with door.client("operator") as client:
        place = (await submit(client, "forever")).headers["location"]
    head = f"Host: fleet\r\nAuthorization: Bearer {door.token('reader')}\r\nConnection: close\r\n\r\n"
    health = b"GET /health HTTP/1.1\r\nHost: fleet\r\nConnection: close\r\n\r\n"

    async with listening(door) as port, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {place}/events HTTP/1.1\r\n{head}".encode())
        await reader.readuntil(b"event: claimed")
        busy, _ = await ask(port, health)
        writer.close()
        free = busy
        while free != 200:
            free, _ = await ask(port, health)

    assert busy == 503


async def test_a_reader_that_comes_back_sees_each_event_once(door: Door) -> None:
    async with door.client("operator") as client:
        place = (await submit(client, "forever")).headers["location"]
        token = door.token("reader")

        async def read(last: int, until: bytes) -> list[int]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"Host: fleet\r\nAuthorization: Bearer {token}\r\nLast-Event-ID: {last}\r\nConnection: close\r\n\r\n"
            writer.write(f"GET {place}/events HTTP/1.1\r\n{head}".encode())
            text = await reader.readuntil(until)
            text += await reader.readuntil(b"\r\n\r\n")
            writer.close()
            lines = [line for line in text.decode().splitlines() if line.startswith("data: ")]
            return [json.loads(line.removeprefix("data: "))["seq"] for line in lines]

        async with listening(door) as port, asyncio.timeout(30):
            first = await read(0, b"event: claimed")
            await client.post(f"{place}/cancel")
            second = await read(first[-1], b"event: finished")

    assert first + second == sorted({*first, *second})
    assert len(second) >= 2
