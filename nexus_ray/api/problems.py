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

_STATUS = {
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
_BY_STATUS = {400: "invalid_argument", 404: "not_found", 405: "invalid_argument", 413: "invalid_argument",
              415: "invalid_argument"}  # fmt: skip


def problem(status: int, title: str, detail: str, code: str, **members: Any) -> Response:
    """Return a problem document."""
    body = {"type": f"urn:nexus:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    headers = {}
    retry_after_s = members.pop("retry_after_s", 1.0 if status in (429, 503) else None)
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(float(retry_after_s))))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(orjson.dumps({**body, **members}), status, headers, media_type="application/problem+json")


def of_error(error: NexusError) -> Response:
    """Return the problem document of an error."""
    status, title = _STATUS.get(error.code, (500, "Internal error"))
    if status == 500:
        log.error("api.failed", code=error.code, error=error.message)
        return problem(500, title, "something went wrong here; the log says what", error.code)
    members: dict[str, Any] = {}
    if "problems" in error.details:
        members["errors"] = error.details["problems"]
    if "retry_after_s" in error.details:
        members["retry_after_s"] = error.details["retry_after_s"]
    return problem(status, title, error.message, error.code, **members)


def install(app: FastAPI) -> None:
    """Have every error of `app` answered with a problem document."""

    @app.exception_handler(NexusError)
    async def nexus_error(_: Request, error: NexusError) -> Response:
        return of_error(error)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        code = _BY_STATUS.get(error.status_code, "internal")
        return problem(error.status_code, str(error.detail), str(error.detail), code)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> Response:
        errors = [
            {"field": ".".join(str(part) for part in one["loc"]), "problem": one["msg"]} for one in error.errors()[:20]
        ]
        detail = f"{errors[0]['field']}: {errors[0]['problem']}"
        return problem(422, "The request does not fit", detail, "invalid_argument", errors=errors)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        log.error("api.unforeseen", error_type=type(error).__name__, exc_info=error)
        return problem(500, "Internal error", "something went wrong here; the log says what", "internal")
