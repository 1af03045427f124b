"""The OpenAPI document: what each route takes, answers and refuses, and which action of a role it needs.

Law: written once, from the routes; a test holds it against what the routes do.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from nexus_ray.api.gate import LOG_IN_PATHS, OPEN_PATHS
from nexus_ray.api.problems import MEDIA_TYPE
from nexus_ray.api.schemas import FieldProblem, Problem

_DESCRIPTION = """\
Submit goals to a fleet of agents and follow them. Every route but `/health` and \
those to log in takes a bearer token; all refusals are \
problem documents (RFC 9457)."""
_REFUSALS = {
    400: ("invalid_argument", "Not JSON", "the body is not JSON"),
    401: ("unauthenticated", "Authentication failed", "authentication failed"),
    403: ("permission_denied", "Not allowed", "not allowed"),
    404: ("not_found", "Not found", "there is no goal 'goal-0'"),
    409: ("failed_precondition", "Not in a state for this", "goal goal-0 has ended: succeeded"),
    413: ("invalid_argument", "Too large", "a body has at most 1048576 bytes"),
    415: ("invalid_argument", "Not a media type for this", "send application/json"),
    422: ("invalid_argument", "The request does not fit", "timeout_s: Input should be greater than 0"),
    429: ("resource_exhausted", "Over a limit", "too many failed attempts from here"),
    503: ("unavailable", "Not available now", "the ledger cannot write now"),
}
_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds until it is worth trying again.", "schema": {"type": "integer"}}
}


def answer(
    model: Any,
    description: str,
    example: Any = None,
    *,
    media_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the documentation of an answer: a model for JSON, or None for text; `headers` say what each is for."""
    found: dict[str, Any] = {"description": description}
    if model is not None and media_type == "application/json":
        found["model"] = model
    content: dict[str, Any] = {} if media_type == "application/json" else {"schema": {"type": "string"}}
    if example is not None:
        content["example"] = example
    if content:
        found["content"] = {media_type: content}
    if headers:
        found["headers"] = {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}
    return found


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of the problem documents with these statuses, and of those that every route has."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 401, 413, 429, 503}):
        code, title, detail = _REFUSALS[status]
        example = {"type": f"urn:nexus:problem:{code}", "title": title, "status": status, "detail": detail}
        schema = {"$ref": "#/components/schemas/Problem"}
        found[status] = {
            "description": title,
            "content": {MEDIA_TYPE: {"schema": schema, "example": {**example, "code": code}}},
        }
        if status in (429, 503):
            found[status]["headers"] = _RETRY_AFTER
    return found


def needs(action: str) -> dict[str, Any]:
    """Return the documentation of the action that a role must grant."""
    return {"x-nexus-action": action}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of `app`."""
    found = get_openapi(title="Nexus", version="1", description=_DESCRIPTION, routes=app.routes)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas.update(_problem_schemas())
    for operations in found["paths"].values():
        for operation in operations.values():
            # FastAPI notes one of its own wherever there is a parameter.
            if MEDIA_TYPE not in operation["responses"].get("422", {"content": MEDIA_TYPE})["content"]:
                del operation["responses"]["422"]
    found["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "See `nexus token create`."}
    }
    found["security"] = [{"token": []}]
    for path in OPEN_PATHS & found["paths"].keys():
        for operation in found["paths"][path].values():
            operation["security"] = []
            if path not in LOG_IN_PATHS:
                operation["responses"].pop("401", None)
    return found


@cache
def _problem_schemas() -> dict[str, Any]:
    template = "#/components/schemas/{model}"
    whole = Problem.model_json_schema(ref_template=template)
    whole.pop("$defs", None)
    return {"Problem": whole, "FieldProblem": FieldProblem.model_json_schema(ref_template=template)}
