"""The door to Ray's dashboard and jobs: a caller's session decides what he may do there, and Ray's token stays here.

Law: deny by default. What may be looked at is named below, path by path; what changes a job needs the action for it;
anything else is for an admin. Of what a caller sends only the headers named here go on, and of what Ray answers only
those named here come back: no token, no cookie and no redirect passes in either direction.
"""

import asyncio
import hashlib
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote

import httpx2
import orjson
from fastapi import Depends, FastAPI, Request, WebSocket
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from nexus_ray.api.followed_log import FollowedLogs
from nexus_ray.api.gate import caller, refuse
from nexus_ray.api.openapi import answer, needs, refusals
from nexus_ray.config import RuntimeSettings
from nexus_ray.core.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NexusError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from nexus_ray.core.identity import Session
from nexus_ray.runtime.front import FrontDoor
from nexus_ray.runtime.ray_desk import read_ray_token

Caller = Annotated[Session, Depends(caller)]
_NAME = r"[\w.-]{1,200}"
_LOOKS = re.compile(
    r"|favicon\.ico|static/[\w./-]{1,200}|timezone|cluster_id|usage_stats_enabled|events"
    rf"|nodes(?:/{_NAME})?|logical/actors(?:/{_NAME})?"
    r"|api/(?:authentication_mode|version|ray/version|component_activities|cluster_status|profiling_enabled)"
    r"|api/(?:healthz|gcs_healthz|serve/applications/)"
    rf"|api/jobs/|api/jobs/{_NAME}(?:/logs(?:/tail)?)?|api/packages/gcs/{_NAME}|api/data/datasets/{_NAME}"
    r"|api/train/v2/runs(?:/v1)?"
    r"|api/v0/(?:cluster_events|cluster_metadata|actors|jobs|nodes|placement_groups|workers|tasks|objects)"
    r"|api/v0/(?:runtime_envs|runtime_env_redaction|logs|logs/file|logs/stream|tasks/timeline)"
    r"|api/v0/(?:tasks|actors|objects)/summarize",
    re.ASCII,
)
_CHANGES = (
    ("POST", re.compile(r"api/jobs/", re.ASCII), "job:submit"),
    ("PUT", re.compile(rf"api/packages/gcs/{_NAME}", re.ASCII), "job:submit"),
    ("POST", re.compile(rf"api/jobs/{_NAME}/stop", re.ASCII), "job:stop"),
    ("DELETE", re.compile(rf"api/jobs/{_NAME}", re.ASCII), "job:delete"),
)
# It takes Ray's token and answers with it in a cookie: there is nothing here that a caller could want of it.
_NEVER = "api/authenticate"
_FOLLOWED_LOGS = re.compile(rf"api/jobs/{_NAME}/logs/tail", re.ASCII)
_HEADERS_SENT = ("accept", "accept-encoding", "content-type", "if-none-match", "if-modified-since")
_HEADERS_TAKEN = ("content-type", "content-encoding", "content-length", "content-disposition", "etag", "last-modified")
_BYTES = "application/octet-stream"
_CONNECT_S = 5.0
_LOOPBACK = "http://127.0.0.1"


_ROUTES = (
    ("GET", "ray_look", "dashboard:read",
     "Look at Ray's dashboard and jobs; what is not for looking needs `dashboard:write`."),
    ("POST", "ray_post", "job:submit",
     "Submit a job to Ray, or stop one (`job:stop`); anything else needs `dashboard:write`."),
    ("PUT", "ray_put", "job:submit", "Hand in a package for a job; anything else needs `dashboard:write`."),
    ("DELETE", "ray_delete", "job:delete", "Delete a job that has ended; anything else needs `dashboard:write`."),
)  # fmt: skip


def action_of(method: str, path: str) -> str:
    """Return the action that a request to Ray's dashboard needs."""
    if method in ("GET", "HEAD") and _LOOKS.fullmatch(path):
        return "dashboard:read"
    for asked, pattern, action in _CHANGES:
        if method == asked and pattern.fullmatch(path):
            return action
    # Not for looking, though by GET: profiles and tracebacks stop a worker, and a delay holds a request.
    return "dashboard:write"


def dashboard_routes(app: FastAPI, front: FrontDoor, settings: RuntimeSettings, ray_token: Path | None) -> None:
    """Add the routes; `ray_token` is the file of Ray's token, or None where there is no dashboard."""
    door = _Door(front, settings, ray_token)
    shown = {
        200: answer(None, "What Ray answers, with its own status and type.", "…", media_type=_BYTES),
        **refusals(400, 403, 404, 409, 422, 429),
    }

    followed = FollowedLogs(front, settings, door.ray_token)

    @app.websocket("/ray/api/jobs/{job}/logs/tail")
    async def ray_follow(websocket: WebSocket, session: Caller, job: str) -> None:
        """Follow a job's log until it ends."""
        try:
            await followed.follow(websocket, session, job)
        except NexusError as error:
            await refuse(error, websocket.scope, websocket.receive, websocket.send)

    async def pass_on(request: Request, session: Caller, path: str) -> Response:
        return await door.pass_on(request, session, path)

    for method, name, action, told in _ROUTES:
        app.add_api_route(
            "/ray/{path:path}", pass_on, methods=[method], name=name, description=told, tags=["ray"],
            response_class=_Passed, openapi_extra=needs(action), responses=shown,
        )  # fmt: skip


class _Door:
    def __init__(self, front: FrontDoor, settings: RuntimeSettings, ray_token: Path | None) -> None:
        self._front = front
        self._settings = settings
        self.ray_token = ray_token if settings.dashboard else None
        self._under_way = 0

    async def pass_on(self, request: Request, session: Session, path: str) -> Response:
        """Authorize a request, send it to Ray, and give back what Ray answers."""
        action = action_of(request.method, path)
        self._front.ray_desk.permit(session, action, path)
        if path.strip("/").casefold() == _NEVER:
            raise NotFoundError("Ray's token is not handed out")
        if _FOLLOWED_LOGS.fullmatch(path):
            raise FailedPreconditionError("a log is followed over a web socket; `/logs` says what there is")
        if ".." in unquote(request.url.query):
            raise InvalidArgumentError("a file is named by its place in the log folder, without '..'")
        if self._under_way >= self._settings.dashboard_requests_max:
            raise ResourceExhaustedError("too many requests to the dashboard at one time", retry_after_s=1.0)
        self._under_way += 1
        try:
            token = await read_ray_token(self.ray_token)
            exchange = _Exchange(self._front, self._settings, session, self._left)
        except BaseException:
            self._left()
            raise
        try:
            return await exchange.answer(request, path, action, token)
        except BaseException:
            await exchange.close()
            raise

    def _left(self) -> None:
        self._under_way -= 1


class _Exchange:
    """One request to Ray and its answer, within bounds of time and size."""

    def __init__(
        self, front: FrontDoor, settings: RuntimeSettings, session: Session, on_closed: Callable[[], None]
    ) -> None:
        self._front = front
        self._settings = settings
        self._session = session
        self._on_closed = on_closed
        self._ends_at = time.monotonic() + settings.dashboard_s_max
        # Plain HTTP on loopback: no authorities are loaded, which would block the loop for some 20 ms.
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(settings.dashboard_s_max, connect=_CONNECT_S),
            follow_redirects=False, trust_env=False, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )  # fmt: skip
        self._response: httpx2.Response | None = None

    async def answer(self, request: Request, path: str, action: str, token: str) -> Response:
        """Send a request on and return Ray's answer, of which the body is still to come."""
        is_look = action == "dashboard:read"
        headers = {name: request.headers[name] for name in _HEADERS_SENT if name in request.headers}
        headers["authorization"] = f"Bearer {token}"
        # To what it takes for a browser, Ray shows no secrets of a job's environment, and does nothing for it.
        headers["user-agent"] = "Mozilla/5.0 (nexus)" if is_look else "nexus"
        headers.setdefault("accept-encoding", "identity")
        content, facts = await self._content(request, action)
        url = httpx2.URL(f"{_LOOPBACK}:{self._settings.dashboard_port}/{quote(path)}")
        if request.scope["query_string"]:
            url = url.copy_with(query=request.scope["query_string"])
        asked = self._http.build_request(request.method, url, headers=headers, content=content)

        async def send() -> httpx2.Response:
            return await self._send(asked)

        if is_look:
            found = await send()
        else:
            desk = self._front.ray_desk
            found = await desk.change(self._session, action, f"{request.method} {path}", facts, send, _outcome)
        if found.is_redirect:
            raise UnavailableError("Ray's dashboard sends elsewhere, which is not followed")
        if found.status_code in (401, 403):
            # Its caller is this door: his own status would say that the session is not good.
            raise UnavailableError("Ray's dashboard does not take the token of this fleet")
        taken = {name: found.headers[name] for name in _HEADERS_TAKEN if name in found.headers}
        return _Passed(self._body(found), found.status_code, taken, ends_at=self._ends_at, close=self.close)

    async def _content(
        self, request: Request, action: str
    ) -> tuple[bytes | AsyncIterator[bytes] | None, dict[str, Any]]:
        if request.method in ("GET", "HEAD"):
            return None, {}
        if request.method == "PUT":
            return request.stream(), {}
        body = await request.body()
        if action == "job:submit":
            body = _signed_for(body, self._session)
        return body, {"body_sha256": hashlib.sha256(body).hexdigest()}

    async def _send(self, asked: httpx2.Request) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._ends_at - time.monotonic()):
                self._response = await self._http.send(asked, stream=True)
            return self._response
        except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout):
            raise DeadlineExceededError("Ray's dashboard did not answer in time") from None
        except httpx2.TransportError:
            raise UnavailableError("Ray's dashboard cannot be reached from here") from None

    async def _body(self, found: httpx2.Response) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in found.aiter_raw():
            await self._front.access.check(self._session)  # Who was suspended meanwhile reads no further.
            read += len(chunk)
            if read > self._settings.dashboard_answer_bytes_max:
                raise UnavailableError("Ray's answer is larger than this door passes on")
            yield chunk

    async def close(self) -> None:
        """Let go of the connection to Ray."""
        try:
            if self._response is not None:
                await self._response.aclose()
            await self._http.aclose()
        finally:
            self._on_closed()


class _Passed(StreamingResponse):
    """An answer that is passed on as it comes, until its time is over."""

    media_type = _BYTES

    def __init__(
        self, content: AsyncIterator[bytes], status_code: int = 200, headers: Mapping[str, str] | None = None, *,
        ends_at: float, close: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        super().__init__(content, status_code, headers, media_type=(headers or {}).get("content-type", _BYTES))
        self._ends_at = ends_at
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._ends_at - time.monotonic()):
                await super().__call__(scope, receive, send)
        finally:
            await self._close()


def _signed_for(body: bytes, session: Session) -> bytes:
    """Return a job's submission with who submits it in its metadata, whatever it said itself."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidArgumentError("a job's submission is a JSON object") from None
    metadata = (fields.get("metadata") or {}) if isinstance(fields, dict) else None
    if not isinstance(metadata, dict):
        raise InvalidArgumentError("a job's submission is a JSON object, and so is its `metadata`")
    fields["metadata"] = {**metadata, "nexus_principal": session.principal, "nexus_tenant": session.home}
    return orjson.dumps(fields)


def _outcome(found: httpx2.Response) -> str:
    """Return what became of a change, in the words of the audit log."""
    if found.status_code < 300:
        return "ok"
    if found.status_code == 404:
        return "not_found"
    return "invalid_argument" if 400 <= found.status_code < 500 else "unavailable"
