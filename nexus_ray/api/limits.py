"""Limits at the edge, as one ASGI middleware: body size, requests in flight, security headers, and counting.

Law: a refusal is cheaper than an answer, and says when to come back.
"""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nexus_ray.api.problems import problem
from nexus_ray.config import RuntimeSettings
from nexus_ray.observe import metrics

_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]


class _TooLargeError(Exception):
    """The body outgrew the limit while it was read."""


class Edge:
    """Stands in front of the application."""

    def __init__(self, app: ASGIApp, settings: RuntimeSettings) -> None:
        self._app = app
        self._settings = settings
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500
        read = 0

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        async def counted_receive() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._settings.body_bytes_max:
                    raise _TooLargeError
            return message

        try:
            length = dict(scope["headers"]).get(b"content-length", b"0")
            if self._in_flight >= self._settings.requests_in_flight_max:
                busy = problem(503, "Not available now", "too many requests at one time", "unavailable")
                await busy(scope, receive, counted_send)
            elif not length.isdigit() or int(length) > self._settings.body_bytes_max:
                await self._too_large(scope, receive, counted_send)
            else:
                self._in_flight += 1
                try:
                    await self._app(scope, counted_receive, counted_send)
                except _TooLargeError:
                    await self._too_large(scope, receive, counted_send)
                finally:
                    self._in_flight -= 1
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "OTHER"
            metrics.count("nexus_http_requests_total", route=route, method=method, status=status)
            metrics.record(
                "nexus_http_request_duration_seconds", time.perf_counter() - started, route=route, method=method
            )

    async def _too_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._settings.body_bytes_max
        detail = f"a body has at most {limit} bytes; put more into a store, and its address into the payload"
        await problem(413, "Too large", detail, "invalid_argument")(scope, receive, send)
