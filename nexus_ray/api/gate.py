"""The gate: finds out who is calling before anything else looks at the request.

Law: deny by default. Only the one path that is named here is open, compared to the letter; a stranger gets the same
401 for every other path, method and body, whether there is such a route or not.
"""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from nexus_ray.api.problems import of_error
from nexus_ray.core.errors import NexusError
from nexus_ray.core.identity import Session
from nexus_ray.runtime.front import FrontDoor

OPEN_PATHS = frozenset({"/health"})
_SESSION = "nexus.session"


class Gate:
    """Stands between the edge and the routes."""

    def __init__(self, app: ASGIApp, front: FrontDoor) -> None:
        self._app = app
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a known caller through, and anybody to what is open."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN_PATHS):
            await self._app(scope, receive, send)
            return
        try:
            scope[_SESSION] = self._front.identify(_credential(scope))
        except NexusError as error:
            if scope["type"] == "http":
                await of_error(error)(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008, "reason": "authentication failed"})
            return
        await self._app(scope, receive, send)


async def caller(request: Request) -> Session:
    """Return who is calling, as the gate found out."""
    session: Session = request.scope[_SESSION]
    return session


def _credential(scope: Scope) -> str | None:
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) != 1:
        return None  # Of two, another server on the way may have looked at the other one.
    scheme, _, credential = found[0].decode("latin-1").partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else None
