"""Limits at the edge, as one ASGI middleware: body size, requests in flight, security headers, and counting.

Law: a refusal is cheaper than an answer, and says when to come back. Nothing leaves without the security headers,
the answer to what nobody foresaw included.
"""

import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nexus_ray.api.problems import problem, unforeseen
from nexus_ray.api.proxies import Proxies
from nexus_ray.config import RuntimeSettings
from nexus_ray.observe import metrics

BATCH_PATH = "/v1/goals:batch"
PACKAGE_PATHS = "/ray/api/packages/"
SECURITY_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
_HEADERS = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
_OURS = frozenset(name for name, _ in _HEADERS)
_LENGTH_DIGITS_MAX = 15  # A petabyte; and `int` refuses texts of thousands of digits with another error.


class _TooLargeError(Exception):
    """The body outgrew the limit while it was read."""


class Edge:
    """Stands in front of the application."""

    def __init__(self, app: ASGIApp, settings: RuntimeSettings) -> None:
        self._app = app
        self._settings = settings
        self._proxies = Proxies(settings)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "lifespan":
            scope = self._proxies.seen_through(scope)
        if scope["type"] != "http":
            await self._app(scope, receive, _with_headers(send))
            return
        started = time.perf_counter()
        status = 0
        safe_send = _with_headers(send)

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await safe_send(message)

        try:
            await self._serve(scope, receive, counted_send)
        except ClientDisconnect:
            pass  # Nobody is left to answer.
        except Exception as error:
            if status:
                raise  # The answer has begun: all that is left is to break off, which the caller sees.
            await unforeseen(error)(scope, receive, counted_send)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "OTHER"
            metrics.count("nexus_http_requests_total", route=route, method=method, status=status or 500)
            metrics.record(
                "nexus_http_request_duration_seconds", time.perf_counter() - started, route=route, method=method
            )

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self._settings
        limit = _body_limit(scope["path"], settings)
        read = 0

        async def counted_receive() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > limit:
                    raise _TooLargeError
            return message

        if self._in_flight >= settings.requests_in_flight_max:
            busy = problem(503, "Not available now", "too many requests at one time", "unavailable")
            await busy(scope, receive, send)
            return
        if _is_longer(dict(scope["headers"]).get(b"content-length", b"0"), limit):
            await _too_large(scope, receive, send, limit)
            return
        self._in_flight += 1
        try:
            await self._app(scope, counted_receive, send)
        except _TooLargeError:
            await _too_large(scope, receive, send, limit)
        finally:
            self._in_flight -= 1


def _with_headers(send: Send) -> Send:
    async def safe_send(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            kept = [item for item in message.get("headers", ()) if item[0].lower() not in _OURS]
            message["headers"] = [*kept, *_HEADERS]
        await send(message)

    return safe_send


def _body_limit(path: str, settings: RuntimeSettings) -> int:
    if path == BATCH_PATH:
        return settings.batch_bytes_max
    return settings.dashboard_body_bytes_max if path.startswith(PACKAGE_PATHS) else settings.body_bytes_max


def _is_longer(length: bytes, limit: int) -> bool:
    return not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX or int(length) > limit


async def _too_large(scope: Scope, receive: Receive, send: Send, limit: int) -> None:
    detail = f"a body has at most {limit} bytes; put more into a store, and its address into the payload"
    await problem(413, "Too large", detail, "invalid_argument")(scope, receive, send)
