"""`POST /v1/goals:batch`: many goals in one request, and how they end on the same connection.

Law: each line is accepted or refused for itself, and answered in its place; a batch is held whole in memory, so its
lines, its bytes and the batches at one time are limited. With `Prefer: wait` the goals that end are told as they end;
whoever comes again with the same keys takes up the same goals.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Header, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from nexus_ray.api import problems
from nexus_ray.api.gate import caller
from nexus_ray.api.limits import BATCH_PATH
from nexus_ray.api.openapi import answer, needs, refusals
from nexus_ray.api.schemas import GOAL_ID, BatchLine, goal_json
from nexus_ray.api.submission import check_media_type, preferred_wait_s, read_line
from nexus_ray.config import RuntimeSettings
from nexus_ray.core.errors import NexusError, UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.ledger.ports import Acceptance
from nexus_ray.observe.logs import get_logger
from nexus_ray.runtime.front import FrontDoor
from nexus_ray.runtime.intake import SubmitRequest

log = get_logger("api.batch")

_LINES = "application/x-ndjson"
_EXAMPLE = (
    f'{{"line":1,"id":"{GOAL_ID}","is_new":true}}\n'
    '{"line":2,"problem":{"type":"urn:nexus:problem:not_found","title":"Not found","status":404,'
    '"detail":"there is no goal type \'triple\'; this app has: double","code":"not_found"}}\n'
    f'{{"goal":{{"id":"{GOAL_ID}","type":"double","status":"succeeded","result":42}}}}\n'
)

Caller = Annotated[Session, Depends(caller)]
Read = SubmitRequest | Response
"""A line that can be taken, or its problem document."""


class _Lines(Response):
    media_type = _LINES


def batch_route(app: FastAPI, front: FrontDoor, settings: RuntimeSettings) -> None:
    """Add the route."""
    body = {"required": True, "content": {_LINES: {"schema": BatchLine.model_json_schema()}}}
    in_flight = 0  # Written by this loop only.

    @app.post(
        BATCH_PATH,
        tags=["goals"],
        response_class=_Lines,
        openapi_extra={**needs("goal:submit"), "requestBody": body},
        responses={
            200: answer(
                None, "A line for each line, in order; then, with `Prefer: wait`, one for each goal as it ends.",
                _EXAMPLE, media_type=_LINES, headers={"Preference-Applied": "The wait that was granted."},
            ),
            **refusals(400, 403, 415),
        },
    )  # fmt: skip
    async def submit_batch(
        request: Request,
        session: Caller,
        prefer: Annotated[str, Header(description="`wait=SECONDS` goes on with the goals as they end.")] = "",
        traceparent: Annotated[str, Header(description="W3C trace context of all of them.")] = "",
    ) -> Response:
        """Accept goals, one JSON object a line; each is on disk, or is refused for itself."""
        nonlocal in_flight
        check_media_type(request, _LINES)
        if in_flight >= settings.batches_in_flight_max:
            raise UnavailableError("too many batches at one time")
        in_flight += 1
        try:
            lines = _read(await request.body(), settings)
            told, ids = await _submitted(front, session, lines, traceparent)
        finally:
            in_flight -= 1
        wait_s = preferred_wait_s(prefer, settings.wait_s_max)
        if not wait_s or not ids:
            return Response(told, media_type=_LINES)
        headers = {"Preference-Applied": f"wait={wait_s:g}"}
        return StreamingResponse(_ending(front, session, told, ids, wait_s), 200, headers, _LINES)


def _read(body: bytes, settings: RuntimeSettings) -> list[Read]:
    lines = body.removesuffix(b"\n").split(b"\n", settings.batch_goals_max)
    if len(lines) > settings.batch_goals_max:
        raise HTTPException(413, f"a batch has at most {settings.batch_goals_max} lines")
    if lines == [b""]:
        raise HTTPException(400, "a batch has one JSON object a line, and at least one line")
    return [_read_line(line, settings.body_bytes_max) for line in lines]


def _read_line(line: bytes, bytes_max: int) -> Read:
    if len(line) > bytes_max:
        detail = f"a line has at most {bytes_max} bytes; put more into a store, and its address into the payload"
        return problems.problem(413, problems.TITLES[413], detail, "invalid_argument")
    try:
        return read_line(line)
    except HTTPException as error:
        return problems.problem(error.status_code, problems.TITLES[400], str(error.detail), "invalid_argument")
    except NexusError as error:
        return problems.of_error(error)


async def _submitted(
    front: FrontDoor, session: Session, lines: Sequence[Read], traceparent: str
) -> tuple[bytes, list[str]]:
    """Return the answer's lines, and the ids of the goals that were accepted."""
    requests = [line for line in lines if not isinstance(line, Response)]
    verdicts = iter(await front.submit_batch(session, requests, traceparent))
    told, ids = [], []
    for number, line in enumerate(lines, 1):
        found = line if isinstance(line, Response) else next(verdicts)
        fields: dict[str, Any] = {"line": number}
        if isinstance(found, Acceptance):
            fields |= {"id": found.goal_id, "is_new": found.is_new}
            ids.append(found.goal_id)
        else:
            document = found if isinstance(found, Response) else problems.of_error(found)
            fields["problem"] = orjson.Fragment(document.body)
        told.append(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))
    return b"".join(told), ids


async def _ending(
    front: FrontDoor, session: Session, told: bytes, ids: Sequence[str], wait_s: float
) -> AsyncIterator[bytes]:
    yield told
    try:
        async for record in front.outcomes(session, ids, wait_s):
            yield orjson.dumps({"goal": goal_json(record)}, option=orjson.OPT_APPEND_NEWLINE)
    except NexusError as error:
        # The goals are on disk, so nothing from here on may read like a refusal: a role that may submit but not read,
        # a ledger that is gone for the moment. The stream ends, and the caller comes again with the same keys.
        log.warning("api.batch_stream_broken", code=error.code, error=error.message)
