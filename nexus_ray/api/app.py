"""The HTTP application: routes over a `FrontDoor`.

Law: a route parses, asks and answers. Who is calling is found out before any route, by the gate.
"""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Header, Query, Request
from sse_starlette.sse import EventSourceResponse
from starlette.responses import Response

from nexus_ray.api import problems
from nexus_ray.api.access import access_routes
from nexus_ray.api.agents import agent_routes
from nexus_ray.api.audit import audit_routes
from nexus_ray.api.batch import batch_route
from nexus_ray.api.dashboard import dashboard_routes
from nexus_ray.api.gate import Gate, caller
from nexus_ray.api.hosts import host_routes
from nexus_ray.api.limits import Edge
from nexus_ray.api.openapi import answer, document, needs, refusals
from nexus_ray.api.questions import question_routes
from nexus_ray.api.schemas import (
    ACCEPTED_EXAMPLE,
    ENTRY_EXAMPLE,
    EVENT_EXAMPLE,
    GOAL_EXAMPLE,
    READY_EXAMPLE,
    TYPE_EXAMPLE,
    AcceptedAnswer,
    GoalAnswer,
    GoalsAnswer,
    GoalTypesAnswer,
    HealthAnswer,
    JournalAnswer,
    ReadyAnswer,
    TraceAnswer,
    entry_json,
    goal_json,
)
from nexus_ray.api.submission import SUBMISSION_BODY, preferred_wait_s, read_submission
from nexus_ray.api.tokens import token_routes
from nexus_ray.config import RuntimeSettings
from nexus_ray.core.errors import NexusError
from nexus_ray.core.identity import Session
from nexus_ray.ledger.goal import Entry, EntryKind, Goal, GoalQuery, GoalRecord, GoalStatus
from nexus_ray.ledger.ports import Acceptance
from nexus_ray.observe.logs import get_logger
from nexus_ray.runtime.front import FrontDoor
from nexus_ray.security.throttle import ThrottleSettings

log = get_logger("api.app")

_PING_S = 15
_JOURNAL_ENTRIES_MAX = 1000
_SEQ_MAX = 2**63 - 1  # What a ledger can count to.
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Caller = Annotated[Session, Depends(caller)]
Seq = Annotated[int, Query(ge=0, le=_SEQ_MAX, description="Only entries whose `seq` is above this.")]


class _Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class _Events(Response):
    media_type = "text/event-stream"


class _Text(Response):
    media_type = "text/plain"


def build_app(
    front: FrontDoor, settings: RuntimeSettings, public_url: str = "", throttle: ThrottleSettings | None = None,
    ray_token: Path | None = None,
) -> FastAPI:  # fmt: skip
    """Return the application; `ray_token` is the file of the token for Ray's dashboard, where there is one."""
    app = FastAPI(
        title="Nexus",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # A redirect would repeat the host that the caller claims to speak to.
        telemetry={"tracing": False},
        generate_unique_id_function=lambda route: route.name,
    )
    problems.install(app)
    app.add_middleware(Gate, front=front, public_url=public_url, throttle=throttle)
    app.add_middleware(Edge, settings=settings)
    _submit_route(app, front, settings)
    batch_route(app, front, settings)
    _goal_routes(app, front, settings)
    question_routes(app, front)
    _history_routes(app, front)
    agent_routes(app, front)
    host_routes(app, front)
    access_routes(app, front)
    audit_routes(app, front)
    token_routes(app, front)
    dashboard_routes(app, front, settings, ray_token)
    _fleet_routes(app, front)
    _service_routes(app, front)
    return app


def _submit_route(app: FastAPI, front: FrontDoor, settings: RuntimeSettings) -> None:
    @app.post(
        "/v1/goals",
        status_code=202,
        tags=["goals"],
        openapi_extra={**needs("goal:submit"), "requestBody": SUBMISSION_BODY},
        responses={
            200: answer(GoalAnswer, "It was accepted before, or has ended within the wait.", GOAL_EXAMPLE),
            202: answer(
                GoalAnswer | AcceptedAnswer, "Accepted: it is on disk.", ACCEPTED_EXAMPLE,
                headers={"Location": "Where it stands.", "Preference-Applied": "The wait that was granted."},
            ),
            **refusals(400, 403, 404, 409, 415, 422),
        },
    )  # fmt: skip
    async def submit(
        request: Request,
        session: Caller,
        idempotency_key: Annotated[str, Header(description="The same key gives the same goal.")] = "",
        prefer: Annotated[str, Header(description="`wait=SECONDS` holds the answer back until it has ended.")] = "",
        traceparent: Annotated[str, Header(description="W3C trace context.")] = "",
    ) -> Response:
        """Accept a goal; when this answers, it is on disk."""
        wanted = read_submission(request, await request.body(), idempotency_key)
        acceptance, asked = await front.submit(session, wanted, traceparent)
        wait_s = preferred_wait_s(prefer, settings.wait_s_max)
        headers = {"Location": f"/v1/goals/{acceptance.goal_id}"}
        record = await _accepted(front, session, acceptance, asked, wait_s)
        if record is None:
            fields = {"id": acceptance.goal_id, "type": wanted.type, "status": GoalStatus.ACCEPTED.value}
            return _Json(fields, 202, headers)
        if wait_s:
            headers["Preference-Applied"] = f"wait={wait_s:g}"
        is_old_news = not acceptance.is_new or record.outcome is not None
        return _Json(goal_json(record), 200 if is_old_news else 202, headers)


def _goal_routes(app: FastAPI, front: FrontDoor, settings: RuntimeSettings) -> None:
    @app.get(
        "/v1/goals",
        tags=["goals"],
        openapi_extra=needs("goal:read"),
        responses={
            200: answer(GoalsAnswer, "A page.", {"goals": [GOAL_EXAMPLE], "next": GOAL_EXAMPLE["id"]}),
            **refusals(403, 422),
        },
    )
    async def goals(
        session: Caller,
        status: Annotated[GoalStatus | None, Query(description="Only goals that stand there.")] = None,
        type: Annotated[str, Query(max_length=63, description="Only goals of this type.")] = "",
        parent: Annotated[str, Query(max_length=400, description="Only goals that this one asked for.")] = "",
        before: Annotated[str, Query(max_length=400, description="`next` of the page before.")] = "",
        limit: Annotated[int, Query(ge=1, le=settings.page_size_max)] = min(50, settings.page_size_max),
    ) -> Response:
        """List goals, newest first; `next` is the `before` of the page after."""
        query = GoalQuery(status.value if status else "", type, "", parent, before, limit)
        records = await front.goals(session, query)
        following = records[-1].goal.id if len(records) == limit else None
        return _Json({"goals": [goal_json(record) for record in records], "next": following})

    @app.get(
        "/v1/goals/{goal_id}",
        tags=["goals"],
        openapi_extra=needs("goal:read"),
        responses={
            200: answer(GoalAnswer, "The goal as it stands.", GOAL_EXAMPLE),
            **refusals(403, 404, 422, 429),
        },
    )
    async def goal(
        session: Caller,
        goal_id: str,
        wait: Annotated[
            float,
            Query(ge=0, le=settings.wait_s_max, allow_inf_nan=False, description="Seconds to wait for its end."),
        ] = 0.0,
    ) -> Response:
        """Return a goal and where it stands, at once or when it has ended."""
        record = await (front.wait(session, goal_id, wait) if wait else front.goal(session, goal_id))
        return _Json(goal_json(record))

    @app.post(
        "/v1/goals/{goal_id}/cancel",
        status_code=202,
        tags=["goals"],
        openapi_extra=needs("goal:cancel"),
        responses={
            202: answer(GoalAnswer, "Asked for; its end tells.", ACCEPTED_EXAMPLE),
            **refusals(403, 404, 409),
        },
    )
    async def cancel(session: Caller, goal_id: str) -> Response:
        """Ask for a goal to be cancelled."""
        return _Json(goal_json(await front.cancel(session, goal_id)), 202)


def _history_routes(app: FastAPI, front: FrontDoor) -> None:
    @app.get(
        "/v1/goals/{goal_id}/events",
        tags=["goals"],
        response_class=_Events,
        openapi_extra=needs("goal:read"),
        responses={
            200: answer(None, "Events until `finished`.", EVENT_EXAMPLE, media_type="text/event-stream"),
            **refusals(403, 404, 422, 429),
        },
    )
    async def events(
        session: Caller,
        goal_id: str,
        last_event_id: Annotated[
            int, Header(ge=0, le=_SEQ_MAX, description="The `seq` of the last event that was seen.")
        ] = 0,
        after: Seq = 0,
    ) -> Response:
        """Follow a goal's journal as server-sent events; resume with `Last-Event-ID`."""
        await front.goal(session, goal_id)
        stream = _stream(front.follow(session, goal_id, max(after, last_event_id)))
        response: Response = EventSourceResponse(stream, ping=_PING_S)
        return response

    @app.get(
        "/v1/goals/{goal_id}/journal",
        tags=["goals"],
        openapi_extra=needs("goal:read"),
        responses={
            200: answer(JournalAnswer, "Entries in order.", {"entries": [ENTRY_EXAMPLE]}),
            **refusals(403, 404, 422),
        },
    )
    async def journal(
        session: Caller,
        goal_id: str,
        after: Seq = 0,
        limit: Annotated[int, Query(ge=1, le=_JOURNAL_ENTRIES_MAX)] = _JOURNAL_ENTRIES_MAX,
    ) -> Response:
        """Return a goal's journal."""
        entries = await front.journal(session, goal_id, after, limit)
        return _Json({"entries": [entry_json(entry) for entry in entries]})

    @app.get(
        "/v1/goals/{goal_id}/trace",
        tags=["goals"],
        openapi_extra=needs("trace:read"),
        responses={200: answer(TraceAnswer, "Spans, oldest first.", {"spans": []}), **refusals(403, 404)},
    )
    async def trace(session: Caller, goal_id: str) -> Response:
        """Return the spans of a goal; none where its trace was not kept."""
        return _Json({"spans": await front.trace(session, goal_id)})


def _fleet_routes(app: FastAPI, front: FrontDoor) -> None:
    @app.get(
        "/v1/goal-types",
        tags=["fleet"],
        openapi_extra=needs("goal_type:read"),
        responses={
            200: answer(GoalTypesAnswer, "Goal types.", {"goal_types": [TYPE_EXAMPLE]}),
            **refusals(403),
        },
    )
    async def goal_types(session: Caller) -> Response:
        """Return what can be submitted, with JSON schemas."""
        return _Json({"goal_types": await front.goal_types(session)})


def _service_routes(app: FastAPI, front: FrontDoor) -> None:
    documents: list[dict[str, Any]] = []

    @app.get(
        "/health",
        tags=["service"],
        responses={200: answer(HealthAnswer, "It lives.", {"status": "ok"}), **refusals()},
    )
    async def health() -> Response:
        """Tell that the process lives; open to everybody, and says nothing else."""
        return _Json({"status": "ok"})

    not_ready = refusals()
    not_ready[503] = {
        **not_ready[503],
        **answer(ReadyAnswer, "Some part does not answer, or there are too many requests."),
        "content": {**not_ready[503]["content"], "application/json": {"example": {**READY_EXAMPLE, "ready": False}}},
    }

    @app.get(
        "/ready", tags=["service"], responses={200: answer(ReadyAnswer, "All answer.", READY_EXAMPLE), **not_ready}
    )
    async def ready(session: Caller) -> Response:
        """Tell whether hosts, ledger and keys answer."""
        parts = await front.ready()
        return _Json({"ready": all(parts.values()), **parts}, 200 if all(parts.values()) else 503)

    @app.get(
        "/metrics",
        tags=["service"],
        response_class=_Text,
        openapi_extra=needs("metrics:read"),
        responses={200: answer(None, "Prometheus text.", media_type="text/plain"), **refusals(403)},
    )
    async def metrics(session: Caller) -> Response:
        """Return the metrics of this node as Prometheus text."""
        return Response(await front.metrics(session), media_type=_METRICS_TYPE)

    @app.get("/openapi.json", tags=["service"], responses={200: answer(None, "The document.", {}), **refusals()})
    async def openapi(session: Caller) -> Response:
        """Return this document."""
        if not documents:
            documents.append(document(app))
        return _Json(documents[0])


async def _accepted(
    front: FrontDoor, session: Session, acceptance: Acceptance, asked: Goal, wait_s: float
) -> GoalRecord | None:
    """Return where an accepted goal stands, or None where that cannot be said.

    The goal is on disk, so nothing that fails from here on may read like a refusal: a role that may submit but not
    read, a ledger that is gone for the moment.
    """
    with contextlib.suppress(NexusError):
        if wait_s:
            return await front.wait(session, acceptance.goal_id, wait_s)
        if acceptance.is_new:
            # Not read back: a moment ago it was accepted, and this saves half of what a request costs the ledger.
            front.check_may_read(session, acceptance.goal_id)
            return GoalRecord(asked, GoalStatus.ACCEPTED)
        return await front.goal(session, acceptance.goal_id)
    return None


async def _stream(entries: AsyncIterator[Entry]) -> AsyncIterator[dict[str, str]]:
    try:
        async for entry in entries:
            body = orjson.dumps(entry_json(entry)).decode()
            yield {"id": str(entry.seq), "event": entry.kind.value, "data": body}
            if entry.kind is EntryKind.FINISHED:
                return
    except NexusError as error:
        # The answer has begun, so it can only end; the caller takes it up again where it broke.
        log.warning("api.stream_broken", code=error.code, error=error.message)
