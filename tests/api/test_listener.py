"""The gateway's own listener: on a real socket, for as long as Serve keeps the replica."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest

from nexus_ray.api.ingress import build
from nexus_ray.api.listener import Listener
from nexus_ray.config import RuntimeSettings
from nexus_ray.core.errors import UnavailableError
from tests.api.conftest import Door, submit


@contextlib.asynccontextmanager
async def listening(
    door: Door, settings: RuntimeSettings, client_ca: Path | None = None
) -> AsyncIterator[Listener]:
    """Begin and end the lifespan, as Serve does."""
    listener = Listener(door.app, settings, client_ca)
    events: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    told: asyncio.Queue[str] = asyncio.Queue()

    async def send(message: dict[str, str]) -> None:
        told.put_nowait(message["type"])

    lifespan = asyncio.create_task(listener({"type": "lifespan"}, events.get, send))  # type: ignore[arg-type]
    events.put_nowait({"type": "lifespan.startup"})
    assert await asyncio.wait_for(told.get(), 10) == "lifespan.startup.complete"
    try:
        yield listener
    finally:
        events.put_nowait({"type": "lifespan.shutdown"})
        assert await asyncio.wait_for(told.get(), 10) == "lifespan.shutdown.complete"
        await lifespan


@pytest.fixture
def settings() -> RuntimeSettings:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return RuntimeSettings(http_port=probe.getsockname()[1], connections_max=3)


def test_there_are_as_many_gateways_as_the_settings_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEXUS_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("NEXUS_RUNTIME__GATEWAYS", "2")

    gateways = [build({"app": "benchmarks.fleet:app", **said})._bound_deployment for said in ({}, {"replicas": 3})]

    assert [gateway.num_replicas for gateway in gateways] == [2, 3]


async def test_it_answers_while_its_lifespan_lasts_and_refuses_strangers(
    door: Door, settings: RuntimeSettings
) -> None:
    url = f"http://127.0.0.1:{settings.http_port}"

    async with listening(door, settings) as listener, httpx2.AsyncClient(base_url=url) as client:
        listener.check()
        assert (await client.get("/health")).status_code == 200
        for path in ("/v1/goals", "/-/routes", "/-/healthz"):
            assert (await client.get(path)).status_code == 401
        client.headers["Authorization"] = f"Bearer {door.token('operator')}"
        ended = await submit(client, "echo", [7], Prefer="wait=5")
        assert ended.json()["result"] == [7]
        assert "server" not in ended.headers

    async with httpx2.AsyncClient(base_url=url) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get("/health")
    with pytest.raises(UnavailableError):
        listener.check()


async def test_a_replica_that_follows_listens_before_the_one_before_it_stops(
    door: Door, doors: Callable[..., Door], settings: RuntimeSettings
) -> None:
    url = f"http://127.0.0.1:{settings.http_port}/health"

    async with listening(door, settings):
        before = listening(door, settings)
        await before.__aenter__()
        await before.__aexit__(None, None, None)

        async with httpx2.AsyncClient() as client:
            assert (await client.get(url)).status_code == 200


async def test_more_connections_than_the_limit_are_answered_with_503(door: Door, settings: RuntimeSettings) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"

    async with listening(door, settings):
        streams = [await asyncio.open_connection("127.0.0.1", settings.http_port) for _ in range(4)]
        for _, writer in streams:
            writer.write(request)
        answers = [await asyncio.wait_for(reader.readline(), 5) for reader, _ in streams]
        for _, writer in streams:
            writer.close()

    assert any(b" 503 " in answer for answer in answers)
