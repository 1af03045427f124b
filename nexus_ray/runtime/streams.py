"""Streams: the wire between machines, over TLS 1.3 with certificates that the membership names.

Law: both sides show a certificate, and each lets in exactly the certificates of the membership that it goes by now:
compared whole, before anything is read. A host that has left is hung up on, and refused from then on. The key is made
in this process, never leaves it, and is on no disk; the certificate travels with the membership, which only the
directory writes and which comes by Ray's calls, behind Ray's token.

The dates in a certificate mean nothing here, so that no clock has a say: it is good for as long as the membership
names it. Who may speak is trusted as the fleet itself; see `wire`.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import tempfile
from collections.abc import Iterable, Iterator

from nexus_ray.core.errors import UnavailableError
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger
from nexus_ray.runtime.placement import Member, Membership
from nexus_ray.runtime.wire import Methods, ServerSide, WireClient
from nexus_ray.security.certificates import make_certificate

log = get_logger("runtime.streams")

FRAME_BYTES_MAX = 64 * 1024 * 1024  # Several times the largest parcel of the default limits.
_CONNECT_S = 3.0  # A packet that is lost on the way is sent again after one second.
_HANDSHAKE_S = 3.0  # On a busy machine it takes 20 ms.
_HANDSHAKES_MAX = 64  # At a time; whoever comes meanwhile waits unread in the kernel's queue.
_BACKLOG = 128
_ACCEPT_AGAIN_S = 0.1  # After the process ran out of descriptors.


class Streams:
    """This host's end of all streams: where it listens, whom it lets in, whom it dials; on one event loop only."""

    def __init__(self, host: str) -> None:
        self.certificate, self._secret = make_certificate(host)
        self.address = ""
        self._welcome: dict[bytes, str] = {}  # Host by certificate, DER.
        self._trusted: list[str] = []
        self._context: ssl.SSLContext | None = None  # Of the server side, for `_trusted`.
        self._connections: set[ServerSide] = set()
        self._handshakes = asyncio.Semaphore(_HANDSHAKES_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, ip: str, methods: Methods) -> None:
        """Answer calls on a free port of this address; where that cannot be, Ray carries."""
        try:
            family = socket.AF_INET6 if ":" in ip else socket.AF_INET
            listener = socket.create_server((ip, 0), family=family, backlog=_BACKLOG)
        except OSError as error:
            log.warning("streams.cannot_listen", ip=ip, error=str(error))
            return
        listener.setblocking(False)
        self.address = f"{ip}:{listener.getsockname()[1]}"
        self._start(self._accept(listener, methods), "accept streams")

    def set_membership(self, membership: Membership) -> None:
        """Let in exactly the members from now on; hang up on everybody else."""
        others = [member.certificate for member in membership.members if member.certificate]
        self._welcome = {
            ssl.PEM_cert_to_DER_cert(member.certificate): member.host
            for member in membership.members
            if member.certificate
        }
        self._trusted, self._context = others, None
        for connection in list(self._connections):
            if _shown(connection.transport) not in self._welcome:
                connection.transport.abort()

    async def dial(self, member: Member) -> WireClient:
        """Connect to a host of another machine.

        Raises:
            UnavailableError: It cannot be reached, is somebody else, or does not let us in.
        """
        expected = ssl.PEM_cert_to_DER_cert(member.certificate)
        context = self._make_context(ssl.PROTOCOL_TLS_CLIENT, [member.certificate])
        ip, _, port = member.stream.rpartition(":")
        client: WireClient | None = None
        try:
            async with asyncio.timeout(_CONNECT_S + _HANDSHAKE_S):
                _, client = await asyncio.get_running_loop().create_connection(
                    lambda: WireClient(lambda transport: _shown(transport) == expected, FRAME_BYTES_MAX),
                    ip, int(port), ssl=context, ssl_handshake_timeout=_HANDSHAKE_S,
                )  # fmt: skip
        except (OSError, TimeoutError) as error:
            raise UnavailableError(f"no stream to {member.host}", error_type=type(error).__name__) from None
        await client.greeted()
        return client

    async def close(self) -> None:
        """Stop listening, and hang up."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for connection in list(self._connections):
            connection.transport.close()

    async def _accept(self, listener: socket.socket, methods: Methods) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                await self._handshakes.acquire()
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:
                    self._handshakes.release()
                    log.error("streams.cannot_accept", error=str(error))
                    await asyncio.sleep(_ACCEPT_AGAIN_S)
                    continue
                self._start(self._take_in(connection, methods), "take in a stream")

    async def _take_in(self, connection: socket.socket, methods: Methods) -> None:
        # Neither the list of certificates nor what else comes before the handshake's end is ours to bound: OpenSSL
        # takes at most 100 KiB of the one and nothing of the other.
        try:
            if self._context is None:
                self._context = self._make_context(ssl.PROTOCOL_TLS_SERVER, self._trusted)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: ServerSide(methods, self._connections, self._is_member, FRAME_BYTES_MAX),
                connection, ssl=self._context, ssl_handshake_timeout=_HANDSHAKE_S,
            )  # fmt: skip
        except OSError as error:
            connection.close()
            _refused(getattr(error, "reason", None) or type(error).__name__)
        finally:
            self._handshakes.release()

    def _is_member(self, transport: asyncio.Transport) -> bool:
        # Asked again after the handshake: the membership may have changed meanwhile.
        if _shown(transport) in self._welcome:
            return True
        _refused("not a member")
        return False

    def _make_context(self, protocol: int, trusted: Iterable[str]) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # The certificate is compared whole, which says more than a name.
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # Each certificate stands for itself alone.
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0  # Nobody comes back without showing a certificate.
        if pem := "".join(trusted):
            context.load_verify_locations(cadata=pem)
        with _as_file(self._secret) as path:
            context.load_cert_chain(path)
        return context

    def _start(self, coroutine: "asyncio.Coroutine[None, None, None]", name: str) -> None:  # type: ignore[name-defined]
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _refused(reason: str) -> None:
    metrics.count("nexus_strangers_refused_total", door="stream")
    log.warning("streams.stranger_refused", reason=reason)


def _shown(transport: asyncio.Transport) -> bytes | None:
    """Return the certificate that the other side showed, DER."""
    tls = transport.get_extra_info("ssl_object")
    certificate: bytes | None = None if tls is None else tls.getpeercert(binary_form=True)
    return certificate


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Lend bytes as a file, which is the only way that `ssl` takes a key: in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("nexus", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile() as file:  # Of mode 0600, and gone at once.
            file.write(content)
            file.flush()
            yield file.name
