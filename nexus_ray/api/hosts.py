"""Routes for hosts: who there is and how busy, and draining one or all of a machine's.

Law: as everywhere, a route parses, asks and answers.
"""

from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Path
from pydantic import BaseModel, Field
from starlette.responses import Response

from nexus_ray.api.gate import caller
from nexus_ray.api.openapi import answer, needs, refusals
from nexus_ray.core.identity import Session
from nexus_ray.runtime.front import FrontDoor

Caller = Annotated[Session, Depends(caller)]
Target = Annotated[
    str, Path(max_length=200, description="A host; or a machine's name, or its id or the beginning of that.")
]


class HostAnswer(BaseModel):
    """An agent host: the membership that it knows, the goals that it runs, its active agents by type."""

    host: str
    node: str
    node_id: str = Field(description="Ray's id of the machine.")
    state: str = Field(description="`active`; `draining`, it finishes what it has; `drained`, it has nothing more.")
    epoch: int
    goals: int
    agents: dict[str, int]


class HostsAnswer(BaseModel):
    """The agent hosts."""

    hosts: list[HostAnswer]


class DrainAnswer(BaseModel):
    """The hosts that drain, or do so no more."""

    hosts: list[str]


HOST_EXAMPLE = {
    "host": "host-0", "node": "node-0", "node_id": "5e2a90c1", "state": "active", "epoch": 3, "goals": 1,
    "agents": {"reader": 40},
}  # fmt: skip
_DRAIN_EXAMPLE = {"hosts": ["host-0"]}


def host_routes(app: FastAPI, front: FrontDoor) -> None:
    """Add the routes."""

    @app.get(
        "/v1/hosts",
        tags=["fleet"],
        openapi_extra=needs("host:read"),
        responses={200: answer(HostsAnswer, "Hosts.", {"hosts": [HOST_EXAMPLE]}), **refusals(403)},
    )
    async def hosts(session: Caller) -> Response:
        """Return the agent hosts and how busy each is."""
        return _json({"hosts": await front.hosts(session)})

    @app.post(
        "/v1/hosts/{host}/drain",
        tags=["fleet"],
        openapi_extra=needs("host:drain"),
        responses={200: answer(DrainAnswer, "They drain.", _DRAIN_EXAMPLE), **refusals(403, 404, 409, 422)},
    )
    async def drain(session: Caller, host: Target) -> Response:
        """Have a host, or all of a machine's, finish what they have and take no more; `state` tells how far it is."""
        return _json({"hosts": await front.drain(session, host)})

    @app.delete(
        "/v1/hosts/{host}/drain",
        tags=["fleet"],
        openapi_extra=needs("host:drain"),
        responses={200: answer(DrainAnswer, "They take their share again.", _DRAIN_EXAMPLE),
                   **refusals(403, 404, 409, 422)},
    )  # fmt: skip
    async def undrain(session: Caller, host: Target) -> Response:
        """Undo a drain."""
        return _json({"hosts": await front.drain(session, host, is_undone=True)})


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
