"""What a fleet's answers mean to a client: problem documents and goals that did not succeed, as errors.

Law: one table from code to class; what no table knows is an `InternalError`, never an `UnavailableError`,
because that one invites to try again.
"""

from typing import Any

from httpx2 import Response

from nexus_ray.core.errors import (
    CancelledByCallerError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    NexusError,
    PermissionDeniedError,
    TaskFailedError,
    UnauthenticatedError,
    UnavailableError,
    error_classes,
)

# Several classes share "aborted" and two "internal"; these are the ones that a problem document means.
_BY_CODE: dict[str, type[NexusError]] = {
    **{cls.code: cls for cls in error_classes().values()},
    "internal": InternalError,
    "aborted": error_classes()["FencedError"],
}
_BY_STATUS: dict[int, type[NexusError]] = {
    400: InvalidArgumentError,
    401: UnauthenticatedError,
    403: PermissionDeniedError,
    413: InvalidArgumentError,
    415: InvalidArgumentError,
    502: UnavailableError,
    503: UnavailableError,
    504: DeadlineExceededError,
}
_FAILURE_FACTS = ("error_type", "agent", "host", "attempts", "step")


def is_problem(response: Response) -> bool:
    """Tell whether an answer is a problem document: all refusals and failures of a fleet are, a proxy's are not."""
    return str(response.headers.get("Content-Type", "")).startswith("application/problem+json")


def problem(response: Response) -> NexusError:
    """Return the error that a problem document (RFC 9457) tells of, with the message that it carries."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {}
    status = response.status_code
    cls = _BY_CODE.get(str(body.get("code"))) or _BY_STATUS.get(status, InternalError)
    if status >= 500 and not is_problem(response):
        cls = UnavailableError  # Of the fleet itself nothing was heard.
    message = str(body.get("detail") or body.get("title") or f"the fleet answered with HTTP status {status}")
    details: dict[str, Any] = {"status": status}
    if body.get("errors"):
        details["problems"] = body["errors"]
    after = response.headers.get("Retry-After", "")
    if after.isdigit():
        details["retry_after_s"] = float(after)
    return cls(message, **details)


def outcome_error(record: dict[str, Any]) -> NexusError:
    """Return the error that stands for a goal's outcome other than success."""
    failure = record.get("failure") or {}
    status = record["status"]
    fallback = {"cancelled": CancelledByCallerError, "expired": DeadlineExceededError}.get(status)
    if fallback is None:
        cls = error_classes().get(str(failure.get("error_type"))) or _BY_CODE.get(str(failure.get("code")))
        fallback = TaskFailedError if cls is None else cls
    facts = {name: failure[name] for name in _FAILURE_FACTS if name in failure}
    return fallback(str(failure.get("message") or f"the goal {status}"), goal=record.get("id"), status=status, **facts)


def jsonable(payload: Any) -> Any:
    """Return what JSON can say of a payload: a pydantic model becomes an object."""
    return payload.model_dump(mode="json") if hasattr(payload, "model_dump") else payload
