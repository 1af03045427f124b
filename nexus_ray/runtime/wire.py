"""The wire between processes of one machine: calls over Unix sockets, many under way at a time.

Law: only processes of the same user get through: the folder is closed to others, and a server asks the kernel who
connects. A call that was sent and not answered when the connection breaks is `UnavailableError`: nobody knows.

A Ray call between two actors costs 1.4 to 2 ms of CPU, one over a Unix socket 0.05 to 0.1: every goal makes several.
Between machines there are only Ray calls; see `peer`.
"""

import asyncio
import contextlib
import inspect
import io
import os
import pickle
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from nexus_ray.agents.task import AgentState, Failure, TaskOrder, TaskResult
from nexus_ray.core.errors import InternalError, NexusError, UnavailableError, error_classes
from nexus_ray.core.identity import AgentId
from nexus_ray.goals.goal import Claim, Finish, Goal, Note, Outcome, Release, RequestCancel, Step
from nexus_ray.goals.ledger import Acceptance
from nexus_ray.observe.logs import get_logger

log = get_logger("runtime.wire")

_FRAME_BYTES_MAX = 1 << 30  # A length above this is not ours: the largest parcel is far smaller.
_LENGTH = struct.Struct(">I")
_PEER_CREDENTIALS = struct.Struct("3i")

Methods = Mapping[str, Callable[..., Any]]


def _by_fields(cls: type[Any]) -> Callable[[Any], tuple[Any, ...]]:
    if issubclass(cls, tuple):
        return lambda value: (cls, tuple(value))
    names = [field.name for field in fields(cls)]
    get = attrgetter(*names)
    if len(names) == 1:
        return lambda value: (cls, (get(value),))
    return lambda value: (cls, get(value))


# How pickle takes apart what crosses most: by its fields, in C, rather than by a state dictionary made in Python.
_REDUCERS: dict[type, Callable[[Any], Any]] = {
    cls: _by_fields(cls)
    for cls in (
        Acceptance, AgentId, AgentState, Claim, Failure, Finish, Goal, Note, Outcome, Release, RequestCancel, Step,
        TaskOrder, TaskResult,
    )
}  # fmt: skip


def register(*classes: type[Any]) -> None:
    """Have dataclasses and named tuples cross quickly; others cross too."""
    _REDUCERS.update((cls, _by_fields(cls)) for cls in classes)


def _frame(value: tuple[Any, ...]) -> bytes:
    buffer = io.BytesIO()
    buffer.write(b"\0\0\0\0")
    pickler = pickle.Pickler(buffer, 5)
    pickler.dispatch_table = _REDUCERS
    pickler.dump(value)
    whole = buffer.getbuffer()
    _LENGTH.pack_into(whole, 0, len(whole) - _LENGTH.size)
    return bytes(whole)


class _Framed(asyncio.Protocol):
    """Cuts the stream into frames."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._read = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # By kind only: uvloop's is no subclass of it.

    def data_received(self, chunk: bytes) -> None:
        read = self._read
        read += chunk
        at = 0
        while len(read) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(read, at)
            if length > _FRAME_BYTES_MAX:
                log.error("wire.frame_refused", bytes=length)
                self.transport.abort()
                return
            end = at + _LENGTH.size + length
            if len(read) < end:
                break
            with memoryview(read) as view:
                frame = pickle.loads(view[at + _LENGTH.size : end])
            at = end
            self.frame_received(frame)
        if at:
            del read[:at]

    def frame_received(self, frame: tuple[Any, ...]) -> None:
        raise NotImplementedError


class _ServerSide(_Framed):
    def __init__(self, methods: Methods, connections: "set[_ServerSide]") -> None:
        super().__init__()
        self._methods = methods
        self._connections = connections
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        user = _peer_user(transport.get_extra_info("socket"))
        if user not in (None, os.getuid()):
            log.warning("wire.stranger_refused", user=user)
            self.transport.abort()
            return
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        for task in self._tasks:
            task.cancel()  # Nobody is there for the answer.

    def frame_received(self, frame: tuple[Any, ...]) -> None:
        number, name, arguments = frame
        try:
            answer = self._methods[name](*arguments)
        except Exception as error:
            self._reply(number, error)
            return
        if inspect.isawaitable(answer):
            task = asyncio.get_running_loop().create_task(self._answer(number, answer), name=name)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._reply(number, answer)

    async def _answer(self, number: int, answer: Any) -> None:
        try:
            value = await answer
        except Exception as error:
            value = error
        self._reply(number, value)

    def _reply(self, number: int, value: Any) -> None:
        if self.transport.is_closing():
            return
        if isinstance(value, NexusError):
            self.transport.write(_frame((number, type(value).__name__, (value.message, value.details))))
        elif isinstance(value, Exception):
            log.error("wire.failed", error_type=type(value).__name__, exc_info=value)
            self.transport.write(_frame((number, InternalError.__name__, ("failed; the log says why", {}))))
        else:
            self.transport.write(_frame((number, "", value)))


class WireServer:
    """Answers calls on one socket, by name, with functions or coroutine functions."""

    def __init__(self, path: Path, methods: Methods) -> None:
        self._path = path
        self._methods = methods
        self._connections: set[_ServerSide] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Begin to listen; a socket that was left at this path by a process that died is replaced."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _ServerSide(self._methods, self._connections), str(self._path)
        )
        self._path.chmod(0o600)

    async def close(self) -> None:
        """Stop listening, and hang up."""
        if self._server is not None:
            self._server.close()
            for connection in list(self._connections):
                connection.transport.close()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()


class WireClient(_Framed):
    """One connection to a `WireServer`; used from one event loop only."""

    def __init__(self) -> None:
        super().__init__()
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.is_open = False

    @classmethod
    async def connect(cls, path: Path) -> "WireClient":
        """Connect to the server at `path`.

        Raises:
            UnavailableError: Nobody listens there.
        """
        try:
            _, client = await asyncio.get_running_loop().create_unix_connection(cls, str(path))
        except OSError as error:
            raise UnavailableError(f"nobody listens at {path.name}", error_type=type(error).__name__) from None
        client.is_open = True
        return client

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and return its answer.

        Raises:
            NexusError: What the other side raised.
            UnavailableError: The connection broke; it is not known whether the call was carried out.
        """
        if not self.is_open:
            raise UnavailableError("the connection is closed", is_lost=True)
        self._number += 1
        number = self._number
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self.transport.write(_frame((number, method, arguments)))
            return await future
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Hang up."""
        self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell everybody who waits that nobody knows."""
        self.is_open = False
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(UnavailableError("the connection broke before the answer came", is_lost=True))

    def frame_received(self, frame: tuple[Any, ...]) -> None:
        """Give an answer to whoever waits for it."""
        number, error, value = frame
        future = self._waiting.get(number)
        if future is None or future.done():
            return
        if error:
            message, details = value
            future.set_exception(error_classes().get(error, NexusError)(message, **details))
        else:
            future.set_result(value)


def _peer_user(connection: Any) -> int | None:
    """Return the user id on the other end; None where the kernel does not tell (then the folder's mode guards)."""
    if connection is None or not hasattr(socket, "SO_PEERCRED"):
        return None
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _, user, _ = _PEER_CREDENTIALS.unpack(packed)
    return int(user)
