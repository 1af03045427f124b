"""Routes that show agents: who is awake, and what one of them has on record.

Law: as everywhere, a route parses, asks and answers.
"""

from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Query
from pydantic import BaseModel
from starlette.responses import Response

from nexus_ray.api.gate import caller
from nexus_ray.api.openapi import answer, needs, refusals
from nexus_ray.api.schemas import AGENT_EXAMPLE, AgentsAnswer
from nexus_ray.core.identity import AgentId, Session
from nexus_ray.runtime.front import FrontDoor

_AGENTS_MAX = 10_000

Caller = Annotated[Session, Depends(caller)]


class StateAnswer(BaseModel):
    """A durable state as it is stored: how often it was committed, by which shape of the agent's class, its size."""

    version: int
    schema_version: int
    bytes: int
    body: Any


class AgentRecordAnswer(BaseModel):
    """An agent on record; `quarantine` says why its state cannot be used, where it cannot."""

    agent: str
    type: str
    key: str
    is_durable: bool
    state: StateAnswer | None = None
    quarantine: str | None = None


RECORD_EXAMPLE = {
    "agent": "account/ann", "type": "account", "key": "ann", "is_durable": True,
    "state": {"version": 12, "schema_version": 1, "bytes": 9, "body": {"sum": 7}}, "quarantine": None,
}  # fmt: skip


def agent_routes(app: FastAPI, front: FrontDoor) -> None:
    """Add the routes."""

    @app.get(
        "/v1/agents",
        tags=["fleet"],
        openapi_extra=needs("agent:read"),
        responses={200: answer(AgentsAnswer, "Agents.", {"agents": [AGENT_EXAMPLE]}), **refusals(403, 422)},
    )
    async def agents(session: Caller, limit: Annotated[int, Query(ge=1, le=_AGENTS_MAX)] = 1000) -> Response:
        """Return the agents that are awake."""
        return _json({"agents": await front.agents(session, limit)})

    @app.get(
        "/v1/agents/{type}",
        tags=["fleet"],
        openapi_extra=needs("agent:read"),
        responses={
            200: answer(AgentRecordAnswer, "What is on record.", RECORD_EXAMPLE),
            **refusals(403, 404, 422),
        },
    )
    async def agent(
        session: Caller, type: str, key: Annotated[str, Query(description="A key may hold slashes.")] = "main"
    ) -> Response:
        """Return what one agent of a type has on record: its durable state, and whether it can be read."""
        return _json(await front.agent(session, AgentId.parse(f"{type}/{key}")))


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
