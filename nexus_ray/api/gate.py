"""The gate: finds out who is calling before anything else looks at the request.

Law: deny by default. Only the few paths that are named here are open, compared to the letter; a stranger gets the same
401 for every other path, method and body, whether there is such a route or not.
"""

import re

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from nexus_ray.api.listener import certificate_of
from nexus_ray.api.problems import of_error
from nexus_ray.audit.auditor import Scene, arrive
from nexus_ray.core.clock import SystemClock
from nexus_ray.core.errors import NexusError, NotFoundError, UnauthenticatedError
from nexus_ray.core.identity import Session
from nexus_ray.observe.traces import trace_id_of
from nexus_ray.runtime.front import FrontDoor
from nexus_ray.security.dpop import Shown
from nexus_ray.security.fetch import is_loopback_url
from nexus_ray.security.throttle import Throttle, ThrottleSettings, claimed_name

_ENCODED = re.compile(rb"%(?:2e|2f|5c|25|7f|[01][0-9a-f])", re.IGNORECASE)  # Dot, slash, backslash, percent, control.
LOG_IN_PATHS = frozenset({"/v1/token", "/v1/saml/login", "/v1/saml/acs", "/v1/saml/metadata"})
"""Where those ask who have no token yet."""
OPEN_PATHS = LOG_IN_PATHS | {"/health"}
_SESSION = "nexus.session"
_SHOWN = "nexus.shown"
# A browser shows its certificate for every page that has it send something; these it sends along, and no program does.
_OF_BROWSERS = frozenset({b"origin", b"sec-fetch-site"})


class Gate:
    """Stands between the edge and the routes."""

    def __init__(
        self, app: ASGIApp, front: FrontDoor, public_url: str = "", throttle: ThrottleSettings | None = None
    ) -> None:
        self._app = app
        self._front = front
        self._public_url = public_url
        self._throttle = Throttle(throttle or ThrottleSettings(), SystemClock())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a known caller through, and anybody to what is open."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN_PATHS):
            if scope["type"] == "http" and scope["path"] in LOG_IN_PATHS:
                arrive(_scene(scope))
                scope[_SHOWN] = _shown(scope, "dpop" if _proofs(scope) else "bearer", self._public_url)
            await self._app(scope, receive, send)
            return
        arrive(_scene(scope))
        try:
            scope[_SESSION] = await self._identify(scope)
            _check_path(scope)
        except NexusError as error:
            await refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _identify(self, scope: Scope) -> Session:
        """Return who is calling; who has failed too often from here is not looked at."""
        throttle = self._throttle
        credential, shown = _presented(scope, self._public_url)
        source = str((scope.get("client") or ("",))[0])
        # Whom it says it names costs more to find out than most else here, and matters where something failed only.
        is_watched = throttle.is_watching(source)
        if is_watched and credential:
            throttle.admit(source, claimed_name(credential))
        try:
            session = await self._front.identify(credential, shown)
        except UnauthenticatedError:
            if credential:
                throttle.failed(source, claimed_name(credential))
            raise
        if is_watched:
            throttle.succeeded(source, claimed_name(credential))
        return session


async def refuse(error: NexusError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a problem document, a handshake too where the server can."""
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await of_error(error)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": "refused"})


async def caller(connection: HTTPConnection) -> Session:
    """Return who is calling, as the gate found out."""
    session: Session = connection.scope[_SESSION]
    return session


def proofs_of(scope: Scope) -> Shown:
    """Return what came with a request for a token beside its fields."""
    shown: Shown = scope[_SHOWN]
    return shown


def _check_path(scope: Scope) -> None:
    """Refuse a path that another server on the way, or a rule over paths, may read as another one."""
    raw = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
    path = scope["path"]
    is_plain = not _ENCODED.search(raw) and path.isprintable() and "\\" not in path and "//" not in path
    if not is_plain or not {".", ".."}.isdisjoint(path.split("/")):
        raise NotFoundError("a path has no empty, '.' or '..' parts, and nothing encoded that parts it")


def _scene(scope: Scope) -> Scene:
    """Return where a request comes from, as the edge found out."""
    client = scope.get("client")
    traceparent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), "")
    return Scene(client[0] if client else "", trace_id_of(traceparent))


def _presented(scope: Scope, public_url: str) -> tuple[str | None, Shown]:
    """Return the credential of a request, and how it was presented."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if not found:
        is_by_browser = any(name in _OF_BROWSERS for name, _ in scope["headers"])
        return None, Shown(certificate=None if is_by_browser else certificate_of(scope))
    if len(found) != 1:
        return None, Shown()  # Of two, another server on the way may have looked at the other one.
    scheme, _, credential = found[0].decode("latin-1").partition(" ")
    scheme = scheme.lower()
    if scheme not in ("bearer", "dpop"):
        return None, Shown()
    return credential.strip(), _shown(scope, scheme, public_url)


def _shown(scope: Scope, scheme: str, public_url: str) -> Shown:
    proofs, peer = _proofs(scope), certificate_of(scope)
    if scheme == "bearer" and not proofs:
        return Shown(certificate=peer)
    return Shown(scheme, proofs, scope.get("method", ""), _address(scope, public_url), peer)


def _proofs(scope: Scope) -> tuple[str, ...]:
    return tuple(value.decode("latin-1") for name, value in scope["headers"] if name == b"dpop")


def _address(scope: Scope, public_url: str) -> str:
    """Return the address of a request as this fleet knows itself; what `Host` says is believed of loopback only.

    Whoever tricked a client into a proof for his own server could present it here under his own name.
    """
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    own = public_url.rstrip("/")
    if not own:
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        own = f"{scope.get('scheme', 'http')}://{host}"
        if not is_loopback_url(own):
            return ""
    return own + path.decode("latin-1").partition("?")[0]
