"""The wire between processes of a fleet: calls in frames, many under way at a time.

Law: nothing is read from whoever has not been let in, and who was let in is told so before anything is asked. On a
machine, over Unix sockets, only processes of the same user are: the folder is closed to others, and a server asks the
kernel who connects. Between machines see `streams`. A call that was sent and not answered when the connection breaks
is `UnavailableError`: nobody knows.

Frames are pickles, as Ray's own calls are: whoever is let in is trusted as the fleet itself, and no one else is read.
What waits is bounded: a caller waits while the other side does not read, and a server reads no more while its answers
are not taken or too much is under way.
"""

import asyncio
import contextlib
import inspect
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
from nexus_ray.core.errors import InternalError, NexusError, ResourceExhaustedError, UnavailableError, error_classes
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.goal import Claim, Finish, Goal, Note, Outcome, Release, RequestCancel, Step
from nexus_ray.ledger.ports import Acceptance
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger

log = get_logger("runtime.wire")

_FRAME_BYTES_MAX = 1 << 30  # A length above this is not ours: a page of goals with the largest results is smaller.
_GREETING_BYTES_MAX = 64  # What a client reads before it knows that it was let in.
_GREETING = "nexus"
_GREETED_WITHIN_S = 5.0  # Longer than a busy host's loop takes to turn; until then Ray carries.
_CALLS_MAX = 10_000  # Under way for one connection, as for a Ray actor; more are not read yet.
_JOIN_BYTES_MAX = 64 * 1024  # Up to here one copy is cheaper than one more write.
_LENGTH = struct.Struct(">I")
_PEER_CREDENTIALS = struct.Struct("3i")

Methods = Mapping[str, Callable[..., Any]]
IsWelcome = Callable[[asyncio.Transport], bool]
"""Says who is let in, before anything is read."""


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


def register_plain(cls: type[Any], pack: Callable[[Any], Any], unpack: Callable[[Any], Any]) -> None:
    """Have a class cross as what `pack` makes of it; `unpack` is a function of a module.

    For what very many are in: pickle takes 0.4 µs for a plain tuple, 1.5 for an object and each one within it.
    """
    _REDUCERS[cls] = lambda value: (unpack, (pack(value),))


class _Chunks(list[bytes]):
    """What a pickler writes, uncopied: a large payload is the object itself."""

    write = list.append


def _frame(value: tuple[Any, ...], bytes_max: int) -> list[bytes]:
    chunks = _Chunks()
    pickler = pickle.Pickler(cast(Any, chunks), 5)
    pickler.dispatch_table = _REDUCERS
    pickler.dump(value)
    length = sum(map(len, chunks))
    if length > bytes_max:
        raise ResourceExhaustedError(f"a frame of {length} bytes is over the limit of {bytes_max}")
    head = _LENGTH.pack(length)
    return [head, *chunks] if length > _JOIN_BYTES_MAX else [b"".join((head, *chunks))]


class _Framed(asyncio.Protocol):
    """Cuts the stream into frames."""

    transport: asyncio.Transport

    def __init__(self, is_welcome: IsWelcome, frame_bytes_max: int) -> None:
        self._is_welcome = is_welcome
        self._read = bytearray()  # The beginning of a frame that has not come whole.
        self._frame_bytes_max = frame_bytes_max
        self._read_bytes_max = frame_bytes_max

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # By kind only: uvloop's is no subclass of it.
        if not self._is_welcome(self.transport):
            self.transport.abort()

    def data_received(self, chunk: bytes) -> None:
        if self._read:
            self._read += chunk
            with memoryview(self._read) as view:
                at = self._cut(view)
            del self._read[:at]
        else:
            at = self._cut(memoryview(chunk))
            if at < len(chunk):
                self._read += memoryview(chunk)[at:]

    def _cut(self, read: memoryview) -> int:
        """Hand on every whole frame; return where the rest begins."""
        at = 0
        while len(read) - at >= _LENGTH.size and not self.transport.is_closing():
            (length,) = _LENGTH.unpack_from(read, at)
            if length > self._read_bytes_max:
                log.error("wire.frame_refused", bytes=length)
                self.transport.abort()
                break
            end = at + _LENGTH.size + length
            if len(read) < end:
                break
            frame = pickle.loads(read[at + _LENGTH.size : end])
            at = end
            self.frame_received(frame)
        return at

    def _send(self, *frame: Any) -> None:
        chunks = _frame(frame, self._frame_bytes_max)
        if len(chunks) == 1:
            self.transport.write(chunks[0])
        else:
            self.transport.writelines(chunks)

    def frame_received(self, frame: tuple[Any, ...]) -> None:
        raise NotImplementedError


class ServerSide(_Framed):
    """One connection at the server."""

    def __init__(
        self,
        methods: Methods,
        connections: "set[ServerSide]",
        is_welcome: IsWelcome,
        frame_bytes_max: int = _FRAME_BYTES_MAX,
    ) -> None:
        super().__init__(is_welcome, frame_bytes_max)
        self._methods = methods
        self._connections = connections
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_backed_up = False  # The other side does not take its answers.
        self._is_reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let in, and say so, or hang up."""
        super().connection_made(transport)
        if not self.transport.is_closing():
            self._connections.add(self)
            self._send(0, "", _GREETING)

    def connection_lost(self, error: Exception | None) -> None:
        """Stop what was under way: nobody is there for the answer."""
        self._connections.discard(self)
        for task in self._tasks:
            task.cancel()

    def pause_writing(self) -> None:
        """Read no more until the answers are taken."""
        self._is_backed_up = True
        self._regulate()

    def resume_writing(self) -> None:
        """Read again."""
        self._is_backed_up = False
        self._regulate()

    def frame_received(self, frame: tuple[Any, ...]) -> None:
        """Carry out a call, now or in a task."""
        number, name, arguments = frame
        try:
            answer = self._methods[name](*arguments)
        except Exception as error:
            self._reply(number, error)
            return
        if inspect.isawaitable(answer):
            task = asyncio.get_running_loop().create_task(self._answer(number, answer), name=name)
            self._tasks.add(task)
            task.add_done_callback(self._answered)
            self._regulate()
        else:
            self._reply(number, answer)

    async def _answer(self, number: int, answer: Any) -> None:
        try:
            value = await answer
        except Exception as error:
            value = error
        self._reply(number, value)

    def _answered(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._regulate()

    def _regulate(self) -> None:
        is_reading = not self._is_backed_up and len(self._tasks) < _CALLS_MAX
        if is_reading is not self._is_reading and not self.transport.is_closing():
            self._is_reading = is_reading
            if is_reading:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def _reply(self, number: int, value: Any) -> None:
        if self.transport.is_closing():
            return
        try:
            if not isinstance(value, Exception):
                self._send(number, "", value)
                return
        except ResourceExhaustedError as error:
            value = error
        if isinstance(value, NexusError):
            self._send(number, type(value).__name__, (value.message, value.details))
        else:
            log.error("wire.failed", error_type=type(value).__name__, exc_info=value)
            self._send(number, InternalError.__name__, ("failed; the log says why", {}))


class WireServer:
    """Answers calls on one Unix socket, by name, with functions or coroutine functions."""

    def __init__(self, path: Path, methods: Methods) -> None:
        self._path = path
        self._methods = methods
        self._connections: set[ServerSide] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Begin to listen; a socket that was left at this path by a process that died is replaced."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: ServerSide(self._methods, self._connections, _is_same_user), str(self._path)
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
    """One connection to a server that lets us in; used from one event loop only."""

    def __init__(self, is_welcome: IsWelcome = lambda _: True, frame_bytes_max: int = _FRAME_BYTES_MAX) -> None:
        super().__init__(is_welcome, frame_bytes_max)
        self._read_bytes_max = _GREETING_BYTES_MAX
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self.is_open = False

    @classmethod
    async def connect(cls, path: Path) -> "WireClient":
        """Connect to the server at `path`.

        Raises:
            UnavailableError: Nobody listens there, or we are not let in.
        """
        try:
            _, client = await asyncio.get_running_loop().create_unix_connection(cls, str(path))
        except OSError as error:
            raise UnavailableError(f"nobody listens at {path.name}", error_type=type(error).__name__) from None
        await client.greeted()
        return client

    async def greeted(self) -> None:
        """Return as soon as the other side has let us in.

        Raises:
            UnavailableError: It has not, in time; we have hung up.
        """
        if self.is_open:
            return
        future = self._waiting[0] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(0 if self.transport.is_closing() else _GREETED_WITHIN_S):
                await future
        except (UnavailableError, TimeoutError):
            raise UnavailableError("the other side does not let us in") from None
        finally:
            del self._waiting[0]
            if not self.is_open:
                self.transport.abort()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and return its answer; waits while the other side does not read.

        Raises:
            NexusError: What the other side raised.
            ResourceExhaustedError: The call is too long for a frame, and was not sent.
            UnavailableError: The connection broke; it is not known whether the call was carried out.
        """
        while not self._writable.is_set():
            await self._writable.wait()
        if not self.is_open:
            raise UnavailableError("the connection is closed", is_lost=True)
        self._number += 1
        number = self._number
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send(number, method, arguments)
            return await future
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Hang up."""
        self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell everybody who waits that nobody knows."""
        self.is_open = False
        self._writable.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(UnavailableError("the connection broke before the answer came", is_lost=True))

    def pause_writing(self) -> None:
        """Have callers wait."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let callers go on."""
        self._writable.set()

    def frame_received(self, frame: tuple[Any, ...]) -> None:
        """Give an answer to whoever waits for it."""
        number, error, value = frame
        if number == 0:
            self.is_open = True
            self._read_bytes_max = self._frame_bytes_max
        future = self._waiting.get(number)
        if future is None or future.done():
            return
        if error:
            message, details = value
            future.set_exception(error_classes().get(error, NexusError)(message, **details))
        else:
            future.set_result(value)


def _is_same_user(transport: asyncio.Transport) -> bool:
    user = _peer_user(transport.get_extra_info("socket"))
    if user in (None, os.getuid()):
        return True
    metrics.count("nexus_strangers_refused_total", door="socket")
    log.warning("wire.stranger_refused", user=user)
    return False


def _peer_user(connection: Any) -> int | None:
    """Return the user id on the other end; None where the kernel does not tell (then the folder's mode guards)."""
    if connection is None or not hasattr(socket, "SO_PEERCRED"):
        return None
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _, user, _ = _PEER_CREDENTIALS.unpack(packed)
    return int(user)
