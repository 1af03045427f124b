"""The HTTP application: routes over a `FrontDoor`.

Law: a route parses, asks and answers. Every route but `/health` begins by finding out who is calling.
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi.openapi.utils import get_openapi
from pydantic import ValidationError
from sse_starlette.sse import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from nexus_ray.api import problems
from nexus_ray.api.limits import Edge
from nexus_ray.api.schemas import Submission, entry_json, goal_json
from nexus_ray.config import RuntimeSettings
from nexus_ray.core.errors import InvalidArgumentError
from nexus_ray.core.identity import Session
from nexus_ray.goals.goal import Entry, EntryKind, GoalQuery, GoalStatus
from nexus_ray.runtime.front import FrontDoor, SubmitRequest

_PING_S = 15
_JOURNAL_ENTRIES_MAX = 1000
_AGENTS_MAX = 10_000


class _Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def build_app(front: FrontDoor, settings: RuntimeSettings) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="Nexus", docs_url=None, redoc_url=None, openapi_url=None, telemetry={"tracing": False})
    problems.install(app)
    app.add_middleware(Edge, settings=settings)

    async def caller(request: Request) -> Session:
        scheme, _, credential = request.headers.get("authorization", "").partition(" ")
        return front.identify(credential.strip() if scheme.lower() == "bearer" else None)

    _goal_routes(app, front, settings, caller)
    _fleet_routes(app, front, caller)
    return app


def _goal_routes(app: FastAPI, front: FrontDoor, settings: RuntimeSettings, caller: Any) -> None:
    Caller = Annotated[Session, Depends(caller)]

    @app.post("/v1/goals", status_code=202, openapi_extra={"requestBody": _SUBMISSION_BODY})
    async def submit(
        request: Request,
        session: Caller,
        idempotency_key: Annotated[str, Header()] = "",
        prefer: Annotated[str, Header()] = "",
        traceparent: Annotated[str, Header()] = "",
    ) -> Response:
        """Accept a goal; when this answers, it is on disk."""
        submission = _submission(request, await request.body())
        wanted = SubmitRequest(
            submission.type, orjson.dumps(submission.payload), submission.timeout_s, idempotency_key
        )
        acceptance = await front.submit(session, wanted, traceparent)
        wait_s = _preferred_wait_s(prefer, settings.wait_s_max)
        headers = {"Location": f"/v1/goals/{acceptance.goal_id}"}
        if wait_s:
            headers["Preference-Applied"] = f"wait={wait_s:g}"
        record = await (
            front.wait(session, acceptance.goal_id, wait_s) if wait_s else front.goal(session, acceptance.goal_id)
        )
        is_old_news = not acceptance.is_new or record.outcome is not None
        return _Json(goal_json(record), 200 if is_old_news else 202, headers)

    @app.get("/v1/goals")
    async def goals(
        session: Caller,
        status: GoalStatus | None = None,
        type: Annotated[str, Query(max_length=63)] = "",
        parent: Annotated[str, Query(max_length=400)] = "",
        before: Annotated[str, Query(max_length=400)] = "",
        limit: Annotated[int, Query(ge=1, le=settings.page_size_max)] = min(50, settings.page_size_max),
    ) -> Response:
        """List goals, newest first; `next` is the `before` of the page after."""
        query = GoalQuery(status.value if status else "", type, "", parent, before, limit)
        records = await front.goals(session, query)
        following = records[-1].goal.id if len(records) == limit else None
        return _Json({"goals": [goal_json(record) for record in records], "next": following})

    @app.get("/v1/goals/{goal_id}")
    async def goal(
        session: Caller, goal_id: str, wait: Annotated[float, Query(ge=0, le=settings.wait_s_max)] = 0.0
    ) -> Response:
        """Return a goal and where it stands, at once or when it has ended."""
        record = await (front.wait(session, goal_id, wait) if wait else front.goal(session, goal_id))
        return _Json(goal_json(record))

    @app.post("/v1/goals/{goal_id}/cancel", status_code=202)
    async def cancel(session: Caller, goal_id: str) -> Response:
        """Ask for a goal to be cancelled."""
        return _Json(goal_json(await front.cancel(session, goal_id)), 202)

    @app.get("/v1/goals/{goal_id}/events")
    async def events(
        session: Caller,
        goal_id: str,
        last_event_id: Annotated[int, Header(ge=0)] = 0,
        after: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        """Follow a goal's journal as server-sent events; resume with `Last-Event-ID`."""
        await front.goal(session, goal_id)
        stream = _stream(front.follow(session, goal_id, max(after, last_event_id)))
        response: Response = EventSourceResponse(stream, ping=_PING_S)
        return response

    @app.get("/v1/goals/{goal_id}/journal")
    async def journal(
        session: Caller,
        goal_id: str,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=_JOURNAL_ENTRIES_MAX)] = _JOURNAL_ENTRIES_MAX,
    ) -> Response:
        """Return a goal's journal."""
        entries = await front.journal(session, goal_id, after, limit)
        return _Json({"entries": [entry_json(entry) for entry in entries]})

    @app.get("/v1/goals/{goal_id}/trace")
    async def trace(session: Caller, goal_id: str) -> Response:
        """Return the spans of a goal; none where its trace was not kept."""
        return _Json({"spans": await front.trace(session, goal_id)})


def _fleet_routes(app: FastAPI, front: FrontDoor, caller: Any) -> None:
    Caller = Annotated[Session, Depends(caller)]

    @app.get("/v1/agents")
    async def agents(session: Caller, limit: Annotated[int, Query(ge=1, le=_AGENTS_MAX)] = 1000) -> Response:
        """Return the agents that are awake."""
        return _Json({"agents": await front.agents(session, limit)})

    @app.get("/v1/hosts")
    async def hosts(session: Caller) -> Response:
        """Return the agent hosts and how busy each is."""
        return _Json({"hosts": await front.hosts(session)})

    @app.get("/v1/goal-types")
    async def goal_types(session: Caller) -> Response:
        """Return what can be submitted, with JSON schemas."""
        return _Json({"goal_types": await front.goal_types(session)})

    @app.get("/health")
    async def health() -> Response:
        """Tell that the process lives; open to everybody, and says nothing else."""
        return _Json({"status": "ok"})

    @app.get("/ready")
    async def ready(session: Caller) -> Response:
        """Tell whether hosts, ledger and keys answer."""
        parts = await front.ready()
        return _Json({"ready": all(parts.values()), **parts}, 200 if all(parts.values()) else 503)

    @app.get("/metrics")
    async def metrics(session: Caller) -> Response:
        """Return the metrics of this node as Prometheus text."""
        return Response(await front.metrics(session), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(session: Caller) -> Response:
        """Return the OpenAPI document."""
        return _Json(get_openapi(title="Nexus", version="1", routes=app.routes))


async def _stream(entries: AsyncIterator[Entry]) -> AsyncIterator[dict[str, Any]]:
    async for entry in entries:
        yield {"id": str(entry.seq), "event": entry.kind.value, "data": orjson.dumps(entry_json(entry)).decode()}
        if entry.kind is EntryKind.FINISHED:
            return


def _submission(request: Request, body: bytes) -> Submission:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, "send application/json")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from None
    try:
        return Submission.model_validate(value)
    except ValidationError as error:
        listed = error.errors(include_url=False)
        found = [{"field": ".".join(map(str, one["loc"])) or "body", "problem": one["msg"]} for one in listed[:20]]
        first = found[0] if found else {"field": "body", "problem": "malformed"}
        raise InvalidArgumentError(f"{first['field']}: {first['problem']}", problems=found) from None


def _preferred_wait_s(prefer: str, wait_s_max: float) -> float:
    for preference in prefer.split(","):
        name, _, value = preference.strip().partition("=")
        if name.strip().lower() == "wait":
            try:
                return min(max(float(value), 0.0), wait_s_max)
            except ValueError:
                return 0.0
    return 0.0


_SUBMISSION_BODY = {"required": True, "content": {"application/json": {"schema": Submission.model_json_schema()}}}
