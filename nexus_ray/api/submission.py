"""What a request to `POST /v1/goals` says: its body, and how long it is willing to wait.

Law: what is wrong is told with the field that is wrong; a wait that makes no sense is no wait, as RFC 7240 has it.
"""

import math
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from nexus_ray.agents.schema import dump_json
from nexus_ray.api.problems import FIELDS_MAX
from nexus_ray.api.schemas import BatchLine, Submission
from nexus_ray.core.errors import InvalidArgumentError
from nexus_ray.runtime.intake import SubmitRequest

_Model = TypeVar("_Model", bound=BaseModel)

SUBMISSION_BODY = {"required": True, "content": {"application/json": {"schema": Submission.model_json_schema()}}}


def read_submission(request: Request, body: bytes, idempotency_key: str) -> SubmitRequest:
    """Return what a request's body asks for.

    Raises:
        HTTPException: 415 or 400: it is not JSON.
        InvalidArgumentError: It is, and does not fit; `details["problems"]` lists the fields.
    """
    check_media_type(request, "application/json")
    submission = _validated(Submission, read_json(body))
    # What can be read can be too deep to be written.
    payload = dump_json(submission.payload, "payload")
    return SubmitRequest(submission.type, payload, submission.timeout_s, idempotency_key)


def read_line(line: bytes) -> SubmitRequest:
    """Return what a line of a batch asks for.

    Raises:
        HTTPException: 400: it is not JSON.
        InvalidArgumentError: It is, and does not fit; `details["problems"]` lists the fields.
    """
    submission = _validated(BatchLine, read_json(line))
    payload = dump_json(submission.payload, "payload")
    return SubmitRequest(submission.type, payload, submission.timeout_s, submission.idempotency_key)


def check_media_type(request: Request, wanted: str) -> None:
    """Refuse a body that says it is something else.

    Raises:
        HTTPException: 415.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != wanted:
        raise HTTPException(415, f"send {wanted}")


def read_json(body: bytes) -> Any:
    """Return the value that JSON says.

    Raises:
        HTTPException: 400: it is not JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from None


def _validated(model: type[_Model], value: Any) -> _Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        listed = error.errors(include_url=False)
        found = [
            {"field": ".".join(map(str, one["loc"])) or "body", "problem": one["msg"]} for one in listed[:FIELDS_MAX]
        ]
        first = found[0] if found else {"field": "body", "problem": "malformed"}
        raise InvalidArgumentError(f"{first['field']}: {first['problem']}", problems=found) from None


def preferred_wait_s(prefer: str, wait_s_max: float) -> float:
    """Return the seconds of `wait=…` (RFC 7240), capped; 0 where there is none, or nothing that makes sense."""
    for preference in prefer.split(","):
        name, _, value = preference.partition(";")[0].strip().partition("=")
        if name.strip().lower() == "wait":
            try:
                wait_s = float(value.strip().strip('"'))
            except ValueError:
                return 0.0
            return min(max(wait_s, 0.0), wait_s_max) if math.isfinite(wait_s) else 0.0
    return 0.0
