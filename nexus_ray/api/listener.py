"""The gateway's own listener: a replica of Ray Serve answers HTTP itself, without Serve's proxy before it.

Law: Serve places, supervises, checks and replaces the replica; only the bytes take the short way. It begins to listen
when the application starts and stops when Serve lets it go; a listener that has ended makes the replica unhealthy.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from nexus_ray.config import RuntimeSettings
from nexus_ray.core.errors import UnavailableError
from nexus_ray.observe.logs import get_logger
from nexus_ray.security.client_certificates import PeerCertificate

log = get_logger("api.listener")

_KEEP_ALIVE_S = 90  # As Serve's proxy: longer than clients keep a connection that they do not use.
_CLOSE_S = 5
_BACKLOG = 1024
_MESSAGE_BYTES_MAX = 4096  # Nobody has anything to say over a web socket here: logs are followed, that is all.
_CERTIFICATE = "nexus.certificate"
_BIND_TRIES = 50
_BIND_PAUSE_S = 0.1


class _Connection(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """A connection that tells who has proved what certificate on it: uvicorn has no word for that."""

    app_state: dict[str, Any]

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        if der:
            # The state goes into the scope of each request, and into that of a web socket too.
            self.app_state = {**self.app_state, _CERTIFICATE: PeerCertificate(der)}


def certificate_of(scope: Scope) -> PeerCertificate | None:
    """Return the client certificate that TLS has proved on the connection of a request."""
    peer = scope.get("state", {}).get(_CERTIFICATE)
    return peer if isinstance(peer, PeerCertificate) else None


class Listener:
    """An ASGI application that listens for as long as its lifespan."""

    def __init__(self, app: ASGIApp, settings: RuntimeSettings, client_ca: Path | None = None) -> None:
        """`client_ca` are the authorities of client certificates; without them none are asked for."""
        self._client_ca = client_ca
        self._app = app
        self._settings = settings
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; of the lifespan, note its beginning and its end."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        while True:
            if (await receive())["type"] == "lifespan.startup":
                await self._open()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def check(self) -> None:
        """Refuse if nobody listens any more.

        Raises:
            UnavailableError: The listener has ended.
        """
        if self._serving is None or self._serving.done():
            raise UnavailableError("the front door does not listen any more")

    async def _open(self) -> None:
        settings = self._settings
        tls: dict[str, Any] = {}
        if settings.tls_cert is not None:
            tls = {
                "ssl_certfile": str(settings.tls_cert), "ssl_keyfile": str(settings.tls_key),
                "ssl_context_factory": self._context,
            }  # fmt: skip
        config = uvicorn.Config(
            self._app,
            ws="websockets-sansio",
            ws_max_size=_MESSAGE_BYTES_MAX,
            ws_per_message_deflate=False,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            http=_Connection,
            proxy_headers=False,  # Whose word about the caller counts is for the edge to say.
            limit_concurrency=settings.connections_max,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_CLOSE_S,
            **tls,
        )
        server = uvicorn.Server(config)
        # Signals are Serve's; uvicorn would take them where it runs in the main thread.
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        bound = await _bind(settings.http_host, settings.http_port)
        self._server = server
        self._serving = asyncio.get_running_loop().create_task(server.serve(sockets=[bound]), name="listener")

    def _context(self, config: uvicorn.Config, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        context = make()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL  # Who shows none may have a token; who shows a wrong one is out.
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            context.num_tickets = 0  # Or who resumes a session would not be looked at again.
        return context

    async def _close(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait({self._serving}, timeout=_CLOSE_S + 1)


async def _bind(host: str, port: int) -> socket.socket:
    """Return a socket that is shared with the other replicas of this user, whom the kernel deals out connections to."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    for attempt in range(1, _BIND_TRIES + 1):
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            bound.bind(address)
            bound.listen(_BACKLOG)
            bound.setblocking(False)
            return bound
        except OSError as error:
            bound.close()
            if attempt == _BIND_TRIES:
                raise UnavailableError(f"cannot listen on {host}:{port}: {error.strerror}") from None
            await asyncio.sleep(_BIND_PAUSE_S)
    raise AssertionError("unreachable")
