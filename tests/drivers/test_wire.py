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

from nexus_ray.agents.task import Failure, TaskOrder, TaskResult
from nexus_ray.core.errors import FailedPreconditionError, InternalError, ResourceExhaustedError, UnavailableError
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.goal import Claim, GoalStatus, Outcome, RequestCancel
from nexus_ray.runtime import wire
from nexus_ray.runtime.items import Cancel, Forget, Parcel, Reply, Request
from nexus_ray.runtime.state import socket_folder
from nexus_ray.runtime.wire import WireClient, WireServer

ORDER = TaskOrder("goal-1", "step-1", AgentId("reader", "a"), b'{"n":1}', {"traceparent": ""}, 12.5, True)
LOOPS = [None, uvloop.new_event_loop]
BIG = 300_000  # More than a socket's buffers and one read hold.


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


def test_a_parcel_comes_out_as_it_went_in(path: Path) -> None:
    failed = TaskResult("s-1", b"", Failure("unknown", "it failed"), "host-b", 3, 1.0, 2.0)
    sent = Parcel([
        Request(1, ORDER), Cancel(3), Request(4, ORDER._replace(private=True, headers={"traceparent": "x"})),
        Reply(1, failed._replace(value=b"1", failure=None)), Reply(2, failed),
        Reply(3, None, "unavailable", "no"), Forget("g"),
    ])  # fmt: skip

    async def law(client: WireClient, _: WireServer) -> None:
        arrived = await client.call("at_once", sent)
        assert arrived == list(sent)
        assert [type(item) for item in arrived] == [type(item) for item in sent]
        assert type(arrived[0].order) is TaskOrder and type(arrived[0].order.agent) is AgentId
        assert type(arrived[3].result) is TaskResult
        assert await client.call("at_once", Parcel()) == []

    run(uvloop.new_event_loop, law, path, at_once=lambda value: value)


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

    with pytest.raises(UnavailableError, match="does not let us in"):
        await WireClient.connect(path)
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

    assert b"nexus" in await asyncio.wait_for(reader.read(), 5), "the greeting, and the end"
    writer.close()
    await server.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_while_too_much_is_under_way_no_more_is_read_and_callers_wait(
    loop: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_CALLS_MAX", 3)
    begun = 0
    gate = asyncio.Event()

    async def waits(payload: bytes) -> int:
        nonlocal begun
        begun += 1
        await gate.wait()
        return len(payload)

    async def law(client: WireClient, _: WireServer) -> None:
        calls = [asyncio.ensure_future(client.call("waits", b"x" * BIG)) for _ in range(40)]
        await settled(lambda: begun)
        assert 3 <= begun < 10 and not any(call.done() for call in calls)
        assert client.transport.get_write_buffer_size() < 3 * BIG, "what waits is with the callers"

        gate.set()
        assert await asyncio.gather(*calls) == [BIG] * 40

    run(loop, law, path, waits=waits)


@pytest.mark.parametrize("loop", LOOPS)
def test_of_a_caller_who_does_not_take_answers_no_more_is_read(loop: Any, path: Path) -> None:
    answered = 0

    def answer() -> bytes:
        nonlocal answered
        answered += 1
        return b"x" * BIG

    async def law(client: WireClient, _: WireServer) -> None:
        client.transport.pause_reading()
        calls = [asyncio.ensure_future(client.call("answer", b"y" * BIG)) for _ in range(40)]
        await settled(lambda: answered)
        assert 1 <= answered < 10

        client.transport.resume_reading()
        assert await asyncio.gather(*calls) == [b"x" * BIG] * 40

    run(loop, law, path, answer=lambda _: answer())


async def settled(what: Callable[[], int]) -> None:
    """Return when something has not changed for a while; a bound on it is all that is asked of it afterwards."""
    before, turns = -1, 0
    while turns < 20 or before == 0:
        turns = turns + 1 if what() == before else 0
        before = what()
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("greeting", [b"", struct.pack(">I", 65) + b"x" * 65], ids=["none", "too long"])
async def test_who_does_not_greet_is_not_listened_to(
    path: Path, greeting: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_GREETED_WITHIN_S", 0.1)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(answer, str(path))

    with pytest.raises(UnavailableError, match="does not let us in"):
        await WireClient.connect(path)
    server.close()


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
