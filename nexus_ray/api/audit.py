"""Routes of the audit log: records, proofs, an export, what is held, and the receipt of a goal.

Law: as everywhere, a route parses, asks and answers.
"""

from dataclasses import asdict
from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Path, Query, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response, StreamingResponse

from nexus_ray.api.gate import caller
from nexus_ray.api.openapi import answer, needs, refusals
from nexus_ray.api.schemas import GOAL_ID
from nexus_ray.audit.ports import RecordQuery
from nexus_ray.core.errors import InvalidArgumentError
from nexus_ray.core.identity import Session
from nexus_ray.runtime.front import FrontDoor

Caller = Annotated[Session, Depends(caller)]
_SEQ_MAX = 2**62
Text = Annotated[str, Query(max_length=400, description="Only records where it is this.")]
HoldName = Annotated[str, Path(min_length=1, max_length=100, description="What the hold is called.")]
_LINES = "application/x-ndjson"


class RecordsAnswer(BaseModel):
    """A page of records, newest first; `next` is the `before` of the page after."""

    records: list[dict[str, Any]]
    next: int | None


class ReceiptAnswer(BaseModel):
    """That a record is in the log: its text, and hashes that lead from it to the root of a signed checkpoint."""

    record: str = Field(description="To the letter as it was hashed.")
    path: list[str]
    checkpoint: str


class RecordAnswer(BaseModel):
    """A record and its receipt."""

    record: dict[str, Any]
    receipt: ReceiptAnswer


class CheckpointAnswer(BaseModel):
    """A signed checkpoint of the log as it is, to be kept elsewhere, and the key that verifies it."""

    checkpoint: str
    key: str


class ConsistencyAnswer(BaseModel):
    """That the log that a checkpoint signs begins with its first records of an earlier one (RFC 9162, 2.1.4)."""

    path: list[str]
    checkpoint: str


class HoldBody(BaseModel):
    """What is held, and why."""

    field: str = Field(description="`goal`, `principal` or `tenant`.")
    value: str = Field(min_length=1, max_length=400)
    reason: str = Field(default="", max_length=400)


class HoldAnswer(BaseModel):
    """A hold: records whose `field` is `value` keep their words, whatever their age."""

    name: str
    field: str
    value: str
    reason: str
    by: str
    at: float


class HoldsAnswer(BaseModel):
    """The holds."""

    holds: list[HoldAnswer]


class ReleasedAnswer(BaseModel):
    """The hold that was let go of."""

    released: str


_RECORD = {
    "v": 1, "seq": 7, "previous": "5d…", "operation": "op-01", "kind": "outcome", "at": 1700000000.0,
    "retention": "change", "action": "goal:submit", "resource": "audit", "principal": "ada", "tenant": "main",
    "decision": "allow", "outcome": "ok", "goal": GOAL_ID,
}  # fmt: skip
_CHECKPOINT = "nexus/audit/0f\n8\n5d…=\n\n\u2014 nexus/audit/0f 9a…=\n"
_RECEIPT = {"record": orjson.dumps(_RECORD).decode(), "path": ["5d…"], "checkpoint": _CHECKPOINT}
_HOLD = {"name": "case-7", "field": "principal", "value": "ada", "reason": "", "by": "eve", "at": 1700000000.0}


_EXPORT_EXAMPLE = '{"v":1,"seq":0,"kind":"event"}\n'


class _Lines(StreamingResponse):
    media_type = _LINES


def audit_routes(app: FastAPI, front: FrontDoor) -> None:
    """Add the routes."""
    _reading(app, front)
    _proving(app, front)
    _holding(app, front)


def _reading(app: FastAPI, front: FrontDoor) -> None:
    @app.get(
        "/v1/audit",
        tags=["audit"],
        openapi_extra=needs("audit:read"),
        responses={200: answer(RecordsAnswer, "A page.", {"records": [_RECORD], "next": 7}), **refusals(403, 422)},
    )
    async def audit(
        session: Caller,
        goal: Text = "",
        principal: Text = "",
        action: Text = "",
        decision: Text = "",
        operation: Text = "",
        open: Annotated[bool, Query(description="Only intents without an outcome.")] = False,
        before: Annotated[int, Query(ge=0, le=_SEQ_MAX, description="`next` of the page before.")] = _SEQ_MAX,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Response:
        """List records of the audit log, newest first."""
        query = RecordQuery(
            goal, principal, action, decision, operation, is_open=open, before=before, limit=limit
        )
        records = await front.audit.records(session, query)
        following = records[-1].seq if len(records) == limit else None
        return _json({"records": [record.fields for record in records], "next": following})

    @app.get(
        "/v1/audit/export",
        tags=["audit"],
        openapi_extra=needs("audit:read"),
        responses={
            200: answer(None, "The whole log, for `verify_export.py`.", _EXPORT_EXAMPLE, media_type=_LINES),
            **refusals(403),
        },
        response_class=_Lines,
    )
    async def audit_export(session: Caller) -> Response:
        """Export the log as it is: every record to the letter, and every checkpoint."""
        return _Lines(await front.audit.export(session))


def _proving(app: FastAPI, front: FrontDoor) -> None:
    @app.get(
        "/v1/audit/checkpoint",
        tags=["audit"],
        openapi_extra=needs("audit:read"),
        responses={200: answer(CheckpointAnswer, "Signed.", {"checkpoint": _CHECKPOINT, "key": "nexus/audit/0f+…"}),
                   **refusals(403)},
    )  # fmt: skip
    async def audit_checkpoint(session: Caller) -> Response:
        """Return a signed checkpoint; whoever keeps it can show later that nothing before it was changed."""
        checkpoint, key = await front.audit.checkpoint(session)
        return _json({"checkpoint": checkpoint, "key": key})

    @app.get(
        "/v1/audit/consistency",
        tags=["audit"],
        openapi_extra=needs("audit:read"),
        responses={200: answer(ConsistencyAnswer, "Proved.", {"path": ["5d…"], "checkpoint": _CHECKPOINT}),
                   **refusals(403, 422)},
    )  # fmt: skip
    async def audit_consistency(
        session: Caller, size: Annotated[int, Query(ge=1, le=_SEQ_MAX, description="Of the earlier checkpoint.")]
    ) -> Response:
        """Prove that the log still begins with what an earlier checkpoint signed."""
        path, checkpoint = await front.audit.consistency(session, size)
        return _json({"path": [one.hex() for one in path], "checkpoint": checkpoint})

    @app.get(
        "/v1/goals/{goal_id}/receipt",
        tags=["audit"],
        openapi_extra=needs("goal:read"),
        responses={200: answer(ReceiptAnswer, "Proved.", _RECEIPT), **refusals(403, 404)},
    )
    async def goal_receipt(session: Caller, goal_id: str) -> Response:
        """Prove that a goal's acceptance is in the audit log."""
        return _json(await front.audit.goal_receipt(session, goal_id))


def _holding(app: FastAPI, front: FrontDoor) -> None:
    @app.get(
        "/v1/audit/holds",
        tags=["audit"],
        openapi_extra=needs("audit:read"),
        responses={200: answer(HoldsAnswer, "Holds.", {"holds": [_HOLD]}), **refusals(403)},
    )
    async def audit_holds(session: Caller) -> Response:
        """List what is held."""
        return _json({"holds": [asdict(hold) for hold in await front.audit.holds(session)]})

    @app.put(
        "/v1/audit/holds/{name}",
        tags=["audit"],
        openapi_extra={**needs("audit:hold"), "requestBody": _body(HoldBody, _HOLD)},
        responses={200: answer(HoldAnswer, "Held.", _HOLD), **refusals(403, 404, 409, 422)},
    )
    async def audit_hold(request: Request, session: Caller, name: HoldName) -> Response:
        """Keep records in clear whatever their age, until the hold is released."""
        try:
            wanted = HoldBody.model_validate_json(await request.body())
        except ValidationError:
            raise InvalidArgumentError("a hold names a field (goal, principal or tenant) and its value") from None
        return _json(asdict(await front.audit.hold(session, name, wanted.field, wanted.value, wanted.reason)))

    @app.delete(
        "/v1/audit/holds/{name}",
        tags=["audit"],
        openapi_extra=needs("audit:hold"),
        responses={200: answer(ReleasedAnswer, "Let go of.", {"released": "case-7"}), **refusals(403, 404, 422)},
    )
    async def audit_release(session: Caller, name: HoldName) -> Response:
        """Let go of a hold."""
        await front.audit.release(session, name)
        return _json({"released": name})

    # After the others: a number is looked for last.
    @app.get(
        "/v1/audit/{seq}",
        tags=["audit"],
        openapi_extra=needs("audit:read"),
        responses={200: answer(RecordAnswer, "Proved.", {"record": _RECORD, "receipt": _RECEIPT}),
                   **refusals(403, 404, 422)},
    )  # fmt: skip
    async def audit_record(session: Caller, seq: Annotated[int, Path(ge=0, le=_SEQ_MAX)]) -> Response:
        """Return a record and the proof that it is in the log."""
        record, proof = await front.audit.record(session, seq)
        return _json({"record": record.fields, "receipt": proof})


def _body(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    shown = {name: example[name] for name in model.model_fields}
    content = {"application/json": {"schema": model.model_json_schema(), "example": shown}}
    return {"required": True, "content": content}


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
