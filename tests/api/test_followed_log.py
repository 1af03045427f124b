"""A job's log, followed through the door: over a real socket, from a real server that stands where Ray's does."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from nexus_ray.api.app import build_app
from nexus_ray.config import RuntimeSettings
from tests.api.conftest import Door
from tests.api.test_listener import listening

RAYS_TOKEN = "5" * 64


class Ray:
    """Tells of every job but `gone` two lines, then what it is given; `asked` is what came to it."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[tuple[str, str | None]] = []
        self.heard: list[str | bytes] = []
        self.more: asyncio.Queue[str | None] = asyncio.Queue()
        self.left = asyncio.Event()

    def look(self, connection: ServerConnection, request: Request) -> Response | None:
        self.asked.append((request.path, request.headers.get("Authorization")))
        return connection.respond(HTTPStatus.NOT_FOUND, "no such job") if "/gone/" in request.path else None

    async def tell(self, connection: ServerConnection) -> None:
        await connection.send("first\n")
        await connection.send("second\n")
        hearing = asyncio.create_task(self._hear(connection))
        while (line := await self.more.get()) is not None:
            await connection.send(line)
        await connection.close()
        await hearing

    async def _hear(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                self.heard.append(message)
        self.left.set()
        self.more.put_nowait(None)


@pytest.fixture
async def ray() -> AsyncIterator[Ray]:
    ray = Ray()
    async with serve(ray.tell, "127.0.0.1", 0, process_request=ray.look) as server:
        ray.port = next(iter(server.sockets)).getsockname()[1]
        yield ray


@pytest.fixture
async def door_at(
    doors: Callable[..., Door], tmp_path: Path, ray: Ray
) -> AsyncIterator[tuple[Door, Callable[..., connect]]]:
    """Return a door that listens before that server, and what connects to a job's log as a role."""
    door = doors()
    (tmp_path / "ray_token").write_text(RAYS_TOKEN)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    runtime = RuntimeSettings(http_port=port, dashboard_port=ray.port, dashboard_followers_max=1)
    door.app = build_app(door.front, runtime, ray_token=tmp_path / "ray_token")

    def follow(role: str = "", job: str = "a", token: str = "") -> connect:
        told = token or (door.token(role) if role else "")
        headers = {"Authorization": f"Bearer {told}"} if told else {}
        url = f"ws://127.0.0.1:{port}/ray/api/jobs/{job}/logs/tail"
        return connect(url, additional_headers=headers, proxy=None, open_timeout=10)

    async with listening(door, runtime):
        yield door, follow


async def refused(following: connect) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as raised:
        await following
    answer = raised.value.response
    assert answer.headers["x-content-type-options"] == "nosniff"
    return answer.status_code, orjson.loads(answer.body)["code"]


async def rest(log: ClientConnection) -> list[str]:
    return [str(message) async for message in log]


async def test_a_log_comes_as_it_is_written_and_ends_when_it_ends(
    door_at: tuple[Door, Callable[..., connect]], ray: Ray
) -> None:
    _, follow = door_at

    async with follow("reader") as log:
        assert [await log.recv(), await log.recv()] == ["first\n", "second\n"]
        ray.more.put_nowait("third\n")
        ray.more.put_nowait(None)
        lines = await rest(log)

    assert lines == ["third\n"] and log.close_code == 1000
    assert ray.asked == [("/api/jobs/a/logs/tail", f"Bearer {RAYS_TOKEN}")]


async def test_who_may_not_look_follows_nothing_and_ray_is_not_asked(
    door_at: tuple[Door, Callable[..., connect]], ray: Ray
) -> None:
    door, follow = door_at

    assert await refused(follow()) == (401, "unauthenticated")
    assert await refused(follow(token="x" * 40)) == (401, "unauthenticated")
    assert await refused(follow("submitter")) == (403, "permission_denied")
    assert await refused(follow(token=door.token("reader", tenant="other"))) == (403, "permission_denied")
    assert ray.asked == []


async def test_what_cannot_be_followed_is_said_and_more_than_the_limit_wait(
    door_at: tuple[Door, Callable[..., connect]], ray: Ray
) -> None:
    _, follow = door_at

    assert await refused(follow("reader", job="gone")) == (404, "not_found")
    async with follow("reader"):
        assert await refused(follow("reader")) == (429, "resource_exhausted")
    await asyncio.wait_for(ray.left.wait(), 10)
    async with follow("reader") as log:
        assert await log.recv() == "first\n"


async def test_nothing_that_a_caller_says_goes_on_and_who_goes_lets_go_of_ray(
    door_at: tuple[Door, Callable[..., connect]], ray: Ray
) -> None:
    _, follow = door_at

    async with follow("reader") as log:
        await log.send("rm -rf")
        assert await log.recv() == "first\n"

    await asyncio.wait_for(ray.left.wait(), 10)
    assert ray.heard == []


async def test_who_is_suspended_meanwhile_reads_no_further(
    door_at: tuple[Door, Callable[..., connect]], ray: Ray
) -> None:
    door, follow = door_at

    async with follow("reader") as log, door.client("operator", name="eve") as eve:
        assert await log.recv() == "first\n"
        told = await eve.post("/v1/identities:suspend", params={"principal": "ada"})
        assert told.status_code == 200
        await asyncio.wait_for(log.wait_closed(), 10)

    assert log.close_code == 1008
    await asyncio.wait_for(ray.left.wait(), 10)
