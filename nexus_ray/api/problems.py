"""Errors at the edge: RFC 9457 problem documents, from one table.

Law: a problem says what to do and nothing about the inside; what nobody foresaw is a bare 500.
"""

from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from nexus_ray.core.errors import NexusError
from nexus_ray.observe.logs import get_logger

log = get_logger("api.problems")

MEDIA_TYPE = "application/problem+json"
STATUSES = {
    "invalid_argument": (422, "The request does not fit"),
    "unauthenticated": (401, "Authentication failed"),
    "permission_denied": (403, "Not allowed"),
    "not_found": (404, "Not found"),
    "already_exists": (409, "Exists already"),
    "failed_precondition": (409, "Not in a state for this"),
    "aborted": (409, "Aborted"),
    "resource_exhausted": (429, "Over a limit"),
    "unavailable": (503, "Not available now"),
    "deadline_exceeded": (504, "Too late"),
}
"""What each code of an error is at the edge; any other code is a 500."""

TITLES = {
    400: "Not JSON",
    405: "No such method here",
    413: "Too large",
    415: "Not a media type for this",
    500: "Internal error",
}
_INTERNAL = "something went wrong here; the log says what"
FIELDS_MAX = 20  # More would only bury the first one.


def status_of(code: str) -> int:
    """Return the HTTP status of an error's code."""
    return STATUSES.get(code, (500, ""))[0]


def problem(status: int, title: str, detail: str, code: str, **members: Any) -> Response:
    """Return a problem document."""
    body = {"type": f"urn:nexus:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    headers = {}
    retry_after_s = members.pop("retry_after_s", 1.0 if status in (429, 503) else None)
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(float(retry_after_s))))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(orjson.dumps({**body, **members}), status, headers, media_type=MEDIA_TYPE)


def of_error(error: NexusError) -> Response:
    """Return the problem document of an error."""
    status, title = STATUSES.get(error.code, (500, ""))
    if status == 500:
        log.error("api.failed", code=error.code, error=error.message)
        return problem(500, TITLES[500], _INTERNAL, error.code)
    members: dict[str, Any] = {}
    if "problems" in error.details:
        members["errors"] = error.details["problems"]
    if "retry_after_s" in error.details:
        members["retry_after_s"] = error.details["retry_after_s"]
    return problem(status, title, error.message, error.code, **members)


def unforeseen(error: Exception) -> Response:
    """Return the bare 500 for what nobody foresaw; the log has the rest."""
    log.error("api.unforeseen", error_type=type(error).__name__, exc_info=error)
    return problem(500, TITLES[500], _INTERNAL, "internal")


def install(app: FastAPI) -> None:
    """Have every error of `app` answered with a problem document."""

    @app.exception_handler(NexusError)
    async def nexus_error(_: Request, error: NexusError) -> Response:
        return of_error(error)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        status = error.status_code
        code = "not_found" if status == 404 else "invalid_argument" if status < 500 else "internal"
        title = TITLES.get(status) or STATUSES["not_found"][1]
        answer = problem(status, title, str(error.detail), code)
        answer.headers.update(error.headers or {})  # `Allow`, where a method is refused.
        return answer

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> Response:
        errors = [
            {"field": ".".join(str(part) for part in one["loc"]), "problem": one["msg"]}
            for one in error.errors()[:FIELDS_MAX]
        ]
        detail = f"{errors[0]['field']}: {errors[0]['problem']}"
        status, title = STATUSES["invalid_argument"]
        return problem(status, title, detail, "invalid_argument", errors=errors)
