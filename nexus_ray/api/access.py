"""Routes for who may still come in: sessions that were seen and revoked, identities that are suspended.

Law: as everywhere, a route parses, asks and answers. A name is a query and no part of the path: it may hold slashes.
"""

from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from nexus_ray.api.gate import caller
from nexus_ray.api.openapi import answer, needs, refusals
from nexus_ray.core.identity import Session
from nexus_ray.runtime.front import FrontDoor

Caller = Annotated[Session, Depends(caller)]
Tenant = Annotated[str, Query(max_length=200, description="Another tenant, for an admin of all.")]
Principal = Annotated[str, Query(min_length=1, max_length=400, description="Whose identity.")]


class SessionAnswer(BaseModel):
    """A session that was seen and has not expired; times are seconds since 1970."""

    id: str
    principal: str
    issuer: str
    tenant: str
    roles: list[str]
    method: str = Field(description="With what somebody authenticated.")
    actor: str = Field(description="Who acts for the principal, if somebody does.")
    seen_at: float
    expires_at: float
    is_revoked: bool


class SessionsAnswer(BaseModel):
    """Sessions, in the order in which they were first seen."""

    sessions: list[SessionAnswer]


class RevokedAnswer(BaseModel):
    """What was revoked, by whom and when, and until when that is kept."""

    id: str
    tenant: str
    by: str
    at: float
    until: float


class IdentityAnswer(BaseModel):
    """An identity that is suspended, by whom and since when."""

    principal: str
    tenant: str
    by: str
    at: float


class IdentitiesAnswer(BaseModel):
    """The identities that are suspended."""

    identities: list[IdentityAnswer]


class ChangedAnswer(IdentityAnswer):
    """What became of an identity, and how many of its goals were asked to end."""

    goals_cancelled: int


_SESSION_EXAMPLE = {
    "id": "9f2c", "principal": "ada", "issuer": "nexus-local", "tenant": "main", "roles": ["operator"],
    "method": "token", "actor": "", "seen_at": 1767225600.0, "expires_at": 1767229200.0, "is_revoked": False,
}  # fmt: skip
_REVOKED_EXAMPLE = {"id": "9f2c", "tenant": "main", "by": "eve", "at": 1767225600.0, "until": 1767229200.0}
_IDENTITY_EXAMPLE = {"principal": "ada", "tenant": "main", "by": "eve", "at": 1767225600.0}
_CHANGED_EXAMPLE = {**_IDENTITY_EXAMPLE, "goals_cancelled": 3}


def access_routes(app: FastAPI, front: FrontDoor) -> None:
    """Add the routes."""
    @app.get(
        "/v1/sessions",
        tags=["access"],
        openapi_extra=needs("session:read"),
        responses={200: answer(SessionsAnswer, "Sessions.", {"sessions": [_SESSION_EXAMPLE]}), **refusals(403)},
    )
    async def sessions(session: Caller) -> Response:
        """Return the sessions that were seen lately and have not expired."""
        return _json({"sessions": await front.access.sessions(session)})

    @app.post(
        "/v1/sessions:revoke",
        tags=["access"],
        openapi_extra=needs("session:revoke"),
        responses={200: answer(RevokedAnswer, "Revoked.", _REVOKED_EXAMPLE), **refusals(403, 422, 429)},
    )
    async def revoke(
        session: Caller,
        id: Annotated[str, Query(min_length=1, max_length=400, description="The session's id.")],
        tenant: Tenant = "",
    ) -> Response:
        """Let a session in no more; within a second every part of the fleet knows."""
        return _json(await front.access.revoke(session, id, tenant))

    @app.get(
        "/v1/identities",
        tags=["access"],
        openapi_extra=needs("identity:read"),
        responses={200: answer(IdentitiesAnswer, "Identities.", {"identities": [_IDENTITY_EXAMPLE]}), **refusals(403)},
    )
    async def identities(session: Caller) -> Response:
        """Return the identities that are suspended."""
        return _json({"identities": await front.access.identities(session)})

    @app.post(
        "/v1/identities:suspend",
        tags=["access"],
        openapi_extra=needs("identity:suspend"),
        responses={200: answer(ChangedAnswer, "Suspended.", _CHANGED_EXAMPLE), **refusals(403, 409, 422, 429)},
    )
    async def suspend(
        session: Caller,
        principal: Principal,
        tenant: Tenant = "",
        cancel_goals: Annotated[bool, Query(description="End its goals under way, which go on otherwise.")] = False,
    ) -> Response:
        """Let an identity in no more, whatever it shows, until it is restored; within a second everybody knows."""
        return _json(await front.access.suspend(session, principal, tenant, cancel_goals=cancel_goals))

    @app.post(
        "/v1/identities:restore",
        tags=["access"],
        openapi_extra=needs("identity:restore"),
        responses={200: answer(ChangedAnswer, "Restored.", {**_CHANGED_EXAMPLE, "goals_cancelled": 0}),
                   **refusals(403, 422)},
    )  # fmt: skip
    async def restore(session: Caller, principal: Principal, tenant: Tenant = "") -> Response:
        """Let a suspended identity in again."""
        return _json(await front.access.restore(session, principal, tenant))


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
