"""Calls between processes of one machine, on both event loops that hosts may have."""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from nexus_ray.agents.task import TaskOrder
from nexus_ray.core.errors import FailedPreconditionError, InternalError, ResourceExhaustedError, UnavailableError
from nexus_ray.core.identity import AgentId
from nexus_ray.goals.goal import Claim, GoalStatus, Outcome, RequestCancel
from nexus_ray.runtime import wire
from nexus_ray.runtime.parcels import Cancel, Reply, Request
from nexus_ray.runtime.peer import socket_folder
from nexus_ray.runtime.wire import WireClient, WireServer

ORDER = TaskOrder("goal-1", "step-1", AgentId("reader", "a"), b'{"n":1}', {"traceparent": ""}, 12.5, True)
LOOPS = [None, uvloop.new_event_loop]


def run(loop_factory: Any, law: Callable[[WireClient, WireServer], Any], path: Path, **methods: Any) -> None:
    async def within() -> None:
        server = WireServer(path, methods)
        await server.start()
        client = await WireClient.connect(path)
        try:
            await asyncio.wait_for(law(client, server), 10)
        finally:
            client.close()
            await server.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(within())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return socket_folder(tmp_path / "state") / "one.sock"


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_sent_is_what_arrives_and_answers_find_their_calls(loop: Any, path: Path) -> None:
    sent = [
        Request(1, ORDER), Reply(2, None, "unavailable", "no"), Cancel(3), Claim("g", 1.0),
        RequestCancel("g", 1.0, "me"), Outcome(GoalStatus.SUCCEEDED, 2.0, b"1"), {"big": b"x" * 3_000_000},
    ]  # fmt: skip

    async def slowly(value: Any, turns: int) -> Any:
        for _ in range(turns):
            await asyncio.sleep(0)
        return value

    async def law(client: WireClient, _: WireServer) -> None:
        answers = await asyncio.gather(
            *(client.call("slowly", value, 20 - turn) for turn, value in enumerate(sent)),
            *(client.call("at_once", value) for value in sent),
        )
        assert answers == sent + sent

    run(loop, law, path, slowly=slowly, at_once=lambda value: value)


@pytest.mark.parametrize("loop", LOOPS)
def test_what_the_far_side_raises_on_purpose_comes_back_and_a_bug_tells_nothing(loop: Any, path: Path) -> None:
    def full() -> None:
        raise ResourceExhaustedError("the mailbox is full", retry_after_s=2.0)

    async def bug() -> None:
        raise KeyError("a secret")

    async def law(client: WireClient, _: WireServer) -> None:
        with pytest.raises(ResourceExhaustedError, match="full") as caught:
            await client.call("full")
        assert caught.value.details == {"retry_after_s": 2.0}
        with pytest.raises(InternalError) as told:
            await client.call("bug")
        assert "secret" not in str(told.value)

    run(loop, law, path, full=full, bug=bug)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_that_breaks_tells_every_caller_that_nobody_knows(loop: Any, path: Path) -> None:
    async def law(client: WireClient, server: WireServer) -> None:
        calls = [asyncio.ensure_future(client.call("never")) for _ in range(3)]
        await asyncio.sleep(0)
        await server.close()
        for call in calls:
            with pytest.raises(UnavailableError) as caught:
                await call
            assert caught.value.details["is_lost"]
        with pytest.raises(UnavailableError):
            await client.call("never")

    run(loop, law, path, never=lambda: asyncio.Event().wait())


@pytest.mark.parametrize("loop", LOOPS)
def test_what_runs_for_a_caller_that_hangs_up_is_cancelled(loop: Any, path: Path) -> None:
    ended = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def law(client: WireClient, _: WireServer) -> None:
        call = asyncio.ensure_future(client.call("waits"))
        assert await client.call("ping") == "pong"  # The first call has begun.
        client.close()
        await ended.wait()
        with pytest.raises(UnavailableError):
            await call

    run(loop, law, path, waits=waits, ping=lambda: "pong")


async def test_nobody_there_is_said_at_once(path: Path) -> None:
    with pytest.raises(UnavailableError, match="nobody listens"):
        await WireClient.connect(path)


async def test_a_socket_left_by_a_dead_process_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = WireServer(path, {"ping": lambda: "pong"})

    await server.start()

    client = await WireClient.connect(path)
    assert await client.call("ping") == "pong"
    client.close()
    await server.close()
    assert not path.exists()


async def test_a_process_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_peer_user", lambda _: os.getuid() + 1)
    server = WireServer(path, {"ping": lambda: "pong"})
    await server.start()

    client = await WireClient.connect(path)

    with pytest.raises(UnavailableError):
        await client.call("ping")
    await server.close()


async def test_the_kernel_names_the_user_on_the_other_end(path: Path) -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert wire._peer_user(one) == os.getuid()


async def test_a_length_that_cannot_be_ours_ends_the_connection(path: Path) -> None:
    server = WireServer(path, {})
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(path))

    writer.write(struct.pack(">I", 2**31))

    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await server.close()


def test_sockets_and_their_folder_are_closed_to_others(path: Path) -> None:
    async def law(_: WireClient, __: WireServer) -> None:
        assert path.stat().st_mode & 0o777 == 0o600

    run(None, law, path)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_have_a_hand_in_is_refused(tmp_path: Path) -> None:
    socket_folder(tmp_path).chmod(0o755)

    with pytest.raises(FailedPreconditionError, match="remove it"):
        socket_folder(tmp_path)


def test_a_long_state_folder_has_its_sockets_elsewhere(tmp_path: Path) -> None:
    long = tmp_path / ("deep" * 30)

    folder = socket_folder(long)

    assert len(str(folder)) < 60 and folder != socket_folder(tmp_path / ("deep" * 31))
    folder.rmdir()
    socket_folder(tmp_path / ("deep" * 31)).rmdir()
