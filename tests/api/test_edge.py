"""What is odd about a request before anybody looks at what it asks for: its path, its framing, where it comes from."""

import asyncio

import httpx2

from nexus_ray.config import RuntimeSettings
from tests.api.conftest import Door
from tests.api.test_listener import listening, settings  # noqa: F401

ODD_PATHS = [
    "/v1//goals", "//v1/goals", "/v1/./goals", "/v1/x/../goals", "/v1/%2e%2e/v1/goals", "/v1/x/%2E%2e/goals",
    "/v1%2fgoals", "/v1%2Fgoals", "/v1%5cgoals", "/v1\\goals", "/v1/goals%00", "/v1/goals%0d%0aX:%20y",
    "/v1/%252e%252e", "/v1/goals/%7f",
]  # fmt: skip
GET = "GET /v1/goals HTTP/1.1\r\nHost: localhost\r\n"


async def raw(port: int, request: str) -> bytes:
    """Send bytes as they are, and return all that comes until the other side hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode("latin-1"))
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def test_a_path_that_can_be_read_as_another_is_refused(door: Door, settings: RuntimeSettings) -> None:  # noqa: F811
    known = f"Authorization: Bearer {door.token('operator')}\r\nConnection: close\r\n\r\n"
    said = {}

    async with listening(door, settings):
        plain = await raw(settings.http_port, GET + known)
        for path in ODD_PATHS:
            odd = await raw(settings.http_port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{known}")
            begun = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            said[path] = (odd[9:12], (await raw(settings.http_port, begun))[9:12])

    assert plain.startswith(b"HTTP/1.1 200")
    assert said == dict.fromkeys(ODD_PATHS, (b"404", b"401"))


async def test_a_path_in_other_letters_is_another_path(door: Door) -> None:
    headers = {"Authorization": f"Bearer {door.token('operator')}"}
    others = ["/V1/goals", "/v1/Goals", "/v1/goals/", "/v1/goals;x=1", "/v1/goals%20"]

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(door.app), base_url="http://fleet") as client:
        answers = [(await client.get(path, headers=headers)).status_code for path in others]

    assert answers == [404] * len(others)


FRAMINGS = {
    "both": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/hosts HTTP/1.1\r\nHost: a\r\n\r\n",
    "two lengths": "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "signed length": "Content-Length: +5\r\n\r\nabcde",
    "unknown coding": "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "odd chunk": "Transfer-Encoding: chunked\r\n\r\n0x5\r\nabcde\r\n0\r\n\r\n",
    "space before the colon": "Content-Length : 5\r\n\r\nabcde",
    "bare CR": "X: a\r\n b\rContent-Length: 5\r\n\r\nabcde",
}


async def test_a_body_whose_end_is_in_doubt_is_refused_and_nothing_after_it_is_read(
    door: Door, settings: RuntimeSettings  # noqa: F811
) -> None:
    said = {}

    async with listening(door, settings):
        for name, framing in FRAMINGS.items():
            answer = await raw(settings.http_port, "POST /v1/goals HTTP/1.1\r\nHost: localhost\r\n" + framing)
            said[name] = (answer[:12], answer.count(b"HTTP/1.1 "))

    assert said == dict.fromkeys(FRAMINGS, (b"HTTP/1.1 400", 1))


async def test_no_other_origin_is_let_in(door: Door) -> None:
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(door.app), base_url="http://fleet") as client:
        asked = await client.options("/v1/goals", headers=headers)
        answered = await client.get(
            "/v1/goals", headers={**headers, "Authorization": f"Bearer {door.token('operator')}"}
        )

    assert asked.status_code == 401 and answered.status_code == 200
    assert not [name for answer in (asked, answered) for name in answer.headers if name.startswith("access-control")]


async def test_what_a_caller_says_of_itself_in_headers_counts_for_nothing(door: Door) -> None:
    claims = {
        "X-Forwarded-User": "admin", "X-Remote-User": "admin", "principal": "admin", "roles": "operator",
        "session": "1", "X-Forwarded-For": "127.0.0.1", "X-Original-URL": "/health", "X-HTTP-Method-Override": "GET",
    }  # fmt: skip

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(door.app), base_url="http://fleet") as client:
        stranger = await client.get("/v1/goals", headers=claims)
        reader = await client.post(
            "/v1/goals", headers={**claims, "Authorization": f"Bearer {door.token('reader')}"},
            json={"type": "echo", "payload": [1]},
        )  # fmt: skip

    assert (stranger.status_code, reader.status_code) == (401, 403)
